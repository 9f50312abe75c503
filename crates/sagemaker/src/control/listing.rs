//! Lists: what is left out, how the rest is sorted, and which page of it is told.

use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fault::Fault;
use crate::records::{read, timestamp};

/// Items on a page where a request does not say.
const PAGE: usize = 10;
const MAX_PAGE: usize = 100;

/// One resource of a list.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) created: SystemTime,
    pub(super) modified: SystemTime,
    pub(super) status: Option<&'static str>,
    /// What is told of it.
    pub(super) summary: Value,
}

/// What a list request asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listing {
    sort_by: Option<SortBy>,
    sort_order: Option<SortOrder>,
    next_token: Option<String>,
    max_results: Option<usize>,
    name_contains: Option<String>,
    status_equals: Option<String>,
    creation_time_after: Option<f64>,
    creation_time_before: Option<f64>,
    last_modified_time_after: Option<f64>,
    last_modified_time_before: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum SortBy {
    Name,
    #[default]
    CreationTime,
    Status,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum SortOrder {
    Ascending,
    #[default]
    Descending,
}

impl Listing {
    pub(super) fn read(operation: &str, request: &Map<String, Value>) -> Result<Self, Fault> {
        let listing: Self = read(operation, request)?;
        let n = listing.max_results.unwrap_or(PAGE);
        match (1..=MAX_PAGE).contains(&n) {
            true => Ok(listing),
            false => Err(Fault::validation(format!("MaxResults: {n}: expected 1 to {MAX_PAGE}"))),
        }
    }

    /// The answer: the page's items under `key`, and the token of the next page if there is one.
    pub(super) fn page(&self, key: &str, mut items: Vec<Item>) -> Result<Value, Fault> {
        items.retain(|item| self.takes(item));
        match self.sort_by.unwrap_or_default() {
            SortBy::Name => items.sort_by(|a, b| a.name.cmp(&b.name)),
            SortBy::CreationTime => items.sort_by_key(|item| item.created),
            SortBy::Status => items.sort_by_key(|item| item.status),
        }
        if self.sort_order.unwrap_or_default() == SortOrder::Descending {
            items.reverse();
        }
        let first = match &self.next_token {
            None => 0,
            Some(token) => token
                .parse::<usize>()
                .map_err(|_| Fault::validation("NextToken: expected the one of the page before"))?,
        };
        let end = first.saturating_add(self.max_results.unwrap_or(PAGE));
        let next = (end < items.len()).then(|| end.to_string());
        let page = items.into_iter().take(end).skip(first).map(|item| item.summary);
        let mut answer = json!({ key: page.collect::<Vec<_>>() });
        if let Some(next) = next {
            answer["NextToken"] = next.into();
        }
        Ok(answer)
    }

    fn takes(&self, item: &Item) -> bool {
        let is_after = |time, bound: Option<f64>| bound.is_none_or(|bound| seconds(time) > bound);
        let is_before = |time, bound: Option<f64>| bound.is_none_or(|bound| seconds(time) < bound);
        self.name_contains.as_ref().is_none_or(|part| item.name.contains(part.as_str()))
            && self.status_equals.as_ref().is_none_or(|status| item.status == Some(status))
            && is_after(item.created, self.creation_time_after)
            && is_before(item.created, self.creation_time_before)
            && is_after(item.modified, self.last_modified_time_after)
            && is_before(item.modified, self.last_modified_time_before)
    }
}

fn seconds(time: SystemTime) -> f64 {
    timestamp(time).as_f64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn check(request: Value, names: &[&str], next: Option<&str>) {
        let request = request.as_object().unwrap();
        let items = ["a", "b", "ab"].iter().enumerate().map(|(idx, name)| {
            let created = UNIX_EPOCH + Duration::from_secs(idx as u64);
            let status = Some(if *name == "b" { "Failed" } else { "InService" });
            let summary = json!(name);
            Item { name: (*name).to_owned(), created, modified: created, status, summary }
        });
        let answer =
            Listing::read("List", request).unwrap().page("Items", items.collect()).unwrap();
        assert_eq!(answer["Items"], json!(names), "{request:?}");
        assert_eq!(answer.get("NextToken").and_then(Value::as_str), next, "{request:?}");
    }

    #[test]
    fn the_newest_come_first_page_by_page() {
        check(json!({}), &["ab", "b", "a"], None);
        check(json!({ "MaxResults": 2 }), &["ab", "b"], Some("2"));
        check(json!({ "MaxResults": 2, "NextToken": "2" }), &["a"], None);
        check(json!({ "SortBy": "Name", "SortOrder": "Ascending" }), &["a", "ab", "b"], None);
        check(json!({ "NameContains": "a" }), &["ab", "a"], None);
        check(json!({ "StatusEquals": "Failed" }), &["b"], None);
        check(json!({ "CreationTimeAfter": 0.5, "CreationTimeBefore": 1.5 }), &["b"], None);
        check(json!({ "NextToken": "9" }), &[], None);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let read = |request: Value| Listing::read("List", request.as_object().unwrap());
        assert!(read(json!({ "MaxResults": 0 })).is_err());
        assert!(read(json!({ "MaxResults": 101 })).is_err());
        assert!(read(json!({ "SortBy": "Size" })).is_err());
        let listing = read(json!({ "NextToken": "x" })).unwrap();
        assert!(listing.page("Items", Vec::new()).is_err());
    }
}
