//! The document names every route, and its examples are bodies that the routes read.

use super::*;
use crate::generation::examples;

#[test]
fn every_route_is_in_the_document() {
    let document: Value = serde_json::from_str(text()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let routes: Vec<String> = include_str!("../routes.rs")
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .map(|route| route.replace("{*", "{"))
        .collect();
    assert!(routes.len() > 12, "{routes:?}");
    for route in &routes {
        assert!(paths.contains_key(route), "{route} is not in the document");
    }
    for path in paths.keys() {
        assert!(routes.contains(path), "{path} is no route");
    }
}

#[test]
fn every_reference_in_the_document_resolves() {
    let document: Value = serde_json::from_str(text()).unwrap();
    let mut n_refs = 0;
    visit(&document, &mut |key, value| {
        if key == "$ref" {
            let pointer = value.as_str().unwrap().trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            n_refs += 1;
        }
    });
    assert!(n_refs > 10);
}

fn visit(value: &Value, see: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                see(key, value);
                visit(value, see);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| visit(value, see)),
        _ => {}
    }
}

#[test]
fn every_example_is_read_without_a_complaint() {
    let document: Value = serde_json::from_str(text()).unwrap();
    let mut n_examples = 0;
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        for body in schema["examples"].as_array().into_iter().flatten() {
            let object = body.as_object().unwrap().clone();
            let properties = schema["properties"].as_object().unwrap();
            for key in object.keys() {
                assert!(properties.contains_key(key), "{name}: {key}");
            }
            examples::read(name, object).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            n_examples += 1;
        }
    }
    assert_eq!(n_examples, 3);
    let lmi = serde_json::to_value(LmiBody::schema()).unwrap();
    let object = lmi["examples"][0].as_object().unwrap().clone();
    examples::read("LmiBody", object).unwrap();
}
