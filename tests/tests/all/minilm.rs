//! all-MiniLM-L6-v2 from its package: embeddings of sentences as sentence-transformers makes them.

use std::path::PathBuf;
use std::process::Command;

use drivetrain_tests::{Server, cache, python, scripts, skip};
use serde_json::json;

/// Sentences, and the first four numbers of what sentence-transformers makes of them; recorded with
/// transformers 5.23.0 and torch 2.11.0, in float32.
const SENTENCES: [(&str, [f64; 4]); 4] = [
    ("A man is eating food.", [0.03324, 0.00441, -0.00628, 0.04838]),
    ("Someone is having a meal.", [-0.00524, 0.02856, -0.02286, 0.01282]),
    ("The stock market fell sharply today.", [0.06045, 0.00545, 0.07657, 0.05383]),
    ("Shares dropped on Wall Street.", [0.05284, -0.05132, 0.05126, 0.09658]),
];

/// Cosines of the sentences of these numbers.
const COSINES: [(usize, usize, f64); 6] = [
    (0, 1, 0.6888),
    (0, 2, 0.0037),
    (0, 3, -0.0662),
    (1, 2, -0.0226),
    (1, 3, -0.0487),
    (2, 3, 0.5607),
];

/// The model's directory, or why it can't be had.
fn model() -> Result<PathBuf, String> {
    /// What the script ends with if its package can't be had.
    const NOT_TO_BE_HAD: i32 = 75;
    let folder = cache()?.join("all-minilm-l6-v2");
    let script = scripts().join("fetch_minilm.py");
    let status = Command::new(python()?).arg(script).arg(&folder).status();
    match status.map_err(|error| format!("python: {error}"))?.code() {
        Some(0) => Ok(folder),
        Some(NOT_TO_BE_HAD) => Err("all-MiniLM-L6-v2 can't be downloaded".to_owned()),
        code => panic!("fetch_minilm.py: {code:?}"),
    }
}

#[test]
fn sentences_have_the_embeddings_of_sentence_transformers() {
    let model = match model() {
        Ok(model) => model,
        Err(why) => return skip("sentences_have_the_embeddings_of_sentence_transformers", &why),
    };
    let server = Server::start(&model).unwrap();
    let body = json!({"input": SENTENCES.map(|(sentence, _)| sentence)});
    let reply = server.post("/v1/embeddings", "application/json", body.to_string()).unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let reply = reply.json().unwrap();
    let vectors: Vec<Vec<f64>> = reply["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            item["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        })
        .collect();
    for (vector, (sentence, first)) in vectors.iter().zip(SENTENCES) {
        assert_eq!(vector.len(), 384);
        for (found, expected) in vector.iter().zip(first) {
            assert!((found - expected).abs() < 1e-4, "{sentence}: {found}, {expected} expected");
        }
    }
    for (a, b, expected) in COSINES {
        let cosine: f64 = vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum();
        assert!((cosine - expected).abs() < 1e-3, "{a} and {b}: {cosine}, {expected} expected");
    }
}
