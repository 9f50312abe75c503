//! The process's environment as a value. Nothing else in the host reads environment variables.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;

use crate::secret;

/// Environment variables, taken once. Printing it masks secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process. A name or value that is not UTF-8 has its odd bytes replaced.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| {
                (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            })
            .collect()
    }

    /// The variable's value; `None` when it is unset or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Threads that a model may compute on: what the machine and the control group allow, or fewer if
    /// `OMP_NUM_THREADS` says so, of whose list the first number counts.
    pub fn n_threads(&self) -> NonZeroUsize {
        let most = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let first = self.get("OMP_NUM_THREADS").and_then(|text| text.split(',').next());
        let wanted = first.and_then(|number| number.trim().parse().ok());
        wanted.map_or(most, |wanted: NonZeroUsize| wanted.min(most))
    }

    /// All variables, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Variables whose names begin with `prefix`: the rest of the name, and the value. Empty values
    /// are left out.
    pub(crate) fn with_prefix(&self, prefix: &'static str) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter_map(move |(name, value)| {
            let rest = name.strip_prefix(prefix)?;
            (!rest.is_empty() && !value.is_empty()).then_some((rest, value))
        })
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl<N: Into<String>, V: Into<String>, const COUNT: usize> From<[(N, V); COUNT]> for Environment {
    fn from(pairs: [(N, V); COUNT]) -> Self {
        pairs.into_iter().collect()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::fmt_pairs(f, self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_can_be_fewer_than_the_machine_has() {
        let of = |text: &str| {
            let pairs = [("OMP_NUM_THREADS".to_owned(), text.to_owned())];
            pairs.into_iter().collect::<Environment>().n_threads().get()
        };
        let most = Environment::default().n_threads().get();
        assert_eq!(of("1"), 1);
        assert_eq!(of(" 1,4"), 1);
        assert_eq!(of("100000"), most);
        for text in ["", "0", "many"] {
            assert_eq!(of(text), most, "{text}");
        }
    }
}
