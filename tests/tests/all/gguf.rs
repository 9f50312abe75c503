//! Real models in GGUF, served as they are: what transformers says with the weights that the blocks
//! stand for, in float32.
//!
//! They are put into the tests' cache once; `clients.rs` says where that is and when a test that
//! can't have its model is skipped.

use std::path::Path;

use drivetrain_tests::{Server, ServerOptions, skip};
use serde_json::{Value, json};

use crate::clients::cached_model;

/// A prompt, its tokens, the new tokens, and the log-probabilities of the first of these.
struct Case {
    prompt: &'static str,
    input: &'static [u32],
    new: [u32; 24],
    log_probs: [f64; 3],
}

/// Recorded with transformers 5.23.0 and torch 2.11.0; the least distance between the best token and
/// the next is 0.003.
const SMOLLM2: [Case; 3] = [
    Case {
        prompt: "The capital of France is",
        input: &[504, 3575, 282, 4649, 314],
        new: [
            7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34,
            216, 33, 34, 42, 33,
        ],
        log_probs: [-0.2581, -0.3801, -1.0093],
    },
    Case {
        prompt: "Once upon a time, there was a little",
        input: &[6403, 1980, 253, 655, 28, 665, 436, 253, 1838],
        new: [
            8180, 3365, 20391, 617, 5732, 288, 1238, 281, 260, 2388, 30, 2306, 736, 1129, 685, 288,
            260, 10724, 284, 1238, 351, 874, 2428, 30,
        ],
        log_probs: [-0.9594, -0.0534, -1.261],
    },
    Case {
        prompt: "def fibonacci(n):\n",
        input: &[1604, 3987, 46477, 24, 94, 727, 198],
        new: [
            198, 1604, 3987, 46477, 24, 94, 727, 472, 585, 304, 10204, 216, 33, 42, 448, 1003, 304,
            472, 1745, 42, 448, 1003, 3987, 46477,
        ],
        log_probs: [-1.4195, -0.6796, -0.0963],
    },
];

/// The same for Gemma 3; the least distance is 0.012.
const GEMMA3: [Case; 3] = [
    Case {
        prompt: "The capital of France is",
        input: &[2, 818, 5279, 529, 7001, 563],
        new: [
            506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 7488, 3207, 528, 7001,
            532, 506, 1855, 7488, 3207, 528, 3879, 236761, 1030,
        ],
        log_probs: [-1.654, -0.7014, -0.1213],
    },
    Case {
        prompt: "Once upon a time, there was a little",
        input: &[2, 14946, 3324, 496, 990, 236764, 993, 691, 496, 2268],
        new: [
            3953, 7489, 60708, 236761, 2625, 691, 496, 1401, 6538, 3953, 236764, 532, 1304, 9312,
            531, 1441, 607, 1116, 4690, 236761, 3656, 1719, 236764, 60708,
        ],
        log_probs: [-0.9534, -0.9832, -3.0895],
    },
    Case {
        prompt: "def fibonacci(n):\n",
        input: &[2, 2063, 10779, 78113, 236769, 236749, 1473, 107],
        new: [
            140, 584, 538, 1251, 236743, 236771, 236787, 107, 144, 2060, 236743, 236771, 107, 140,
            36208, 538, 1251, 236743, 236770, 236787, 107, 144, 2060, 236743,
        ],
        log_probs: [-0.0889, -1.0117, -0.0612],
    },
];

/// Ids and log-probabilities of a list of tokens.
fn tokens(list: &Value) -> (Vec<u32>, Vec<f64>) {
    let each = list.as_array().unwrap().iter();
    let one = |token: &Value| {
        let log_prob = token["log_prob"].as_f64().unwrap_or_default();
        (token["id"].as_u64().unwrap() as u32, log_prob)
    };
    each.map(one).unzip()
}

/// A server that computes in f32, whatever the file holds.
fn exact(model: &Path) -> Server {
    let options = ServerOptions {
        models: vec![model.display().to_string()],
        env: vec![("OPTION_DTYPE".to_owned(), "fp32".to_owned())],
        ..ServerOptions::default()
    };
    Server::with(&options).unwrap()
}

/// The details of a case's answer.
fn details(server: &Server, case: &Case) -> Value {
    let body = json!({
        "inputs": case.prompt,
        "parameters": {
            "max_new_tokens": 24, "do_sample": false, "details": true,
            "decoder_input_details": true, "top_n_tokens": 2,
        },
    });
    let reply = server.post("/invocations", "application/json", body.to_string()).unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let reply = reply.json().unwrap();
    let details = &reply["details"];
    let details = if details.is_null() { &reply[0]["details"] } else { details };
    assert_eq!(tokens(&details["prefill"]).0, case.input, "{reply}");
    details.clone()
}

/// Tokens and log-probabilities of a case's new tokens.
fn answer(server: &Server, case: &Case) -> (Vec<u32>, Vec<f64>) {
    tokens(&details(server, case)["tokens"])
}

fn check(server: &Server, case: &Case) {
    let (ids, log_probs) = answer(server, case);
    assert_eq!(ids, case.new, "{}", case.prompt);
    for (found, expected) in log_probs.iter().zip(case.log_probs) {
        assert!((found - expected).abs() < 2e-3, "{found}, expected {expected}: {}", case.prompt);
    }
}

/// The blocks as they lie, with activations of 8 bits: the first token that transformers takes is about as
/// probable, and the likeliest, or as likely as that but for a tenth.
fn check_blocks(model: &Path, cases: &[Case]) {
    let server = Server::start(model).unwrap();
    for case in cases {
        let (ids, log_probs) = tokens(&details(&server, case)["top_tokens"][0]);
        let at = ids.iter().position(|id| *id == case.new[0]);
        let found = log_probs[at.unwrap_or_else(|| panic!("{}: {ids:?}", case.prompt))];
        assert!(log_probs[0] - found < 0.1, "{found} of {log_probs:?}: {}", case.prompt);
        let expected = case.log_probs[0];
        assert!((found - expected).abs() < 0.25, "{found}, expected {expected}: {}", case.prompt);
    }
}

#[test]
fn smollm2_says_what_transformers_says() {
    let test = "smollm2_says_what_transformers_says";
    let model = match cached_model("smollm2") {
        Ok(model) => model,
        Err(why) => return skip(test, &why),
    };
    check_blocks(&model, &SMOLLM2);
    let server = exact(&model);
    for case in &SMOLLM2 {
        check(&server, case);
    }
    let body = json!({
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0, "max_tokens": 24,
    });
    let reply = server.post("/v1/chat/completions", "application/json", body.to_string()).unwrap();
    let reply = reply.json().unwrap();
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["content"], "The capital of France is Paris.", "{reply}");
    assert_eq!(choice["finish_reason"], "stop", "{reply}");
    assert_eq!(reply["usage"]["prompt_tokens"], 37, "{reply}");
    // The token that ends the answer is in none of it.
    assert_eq!(reply["usage"]["completion_tokens"], 8, "{reply}");
}

#[test]
fn gemma3_says_what_transformers_says() {
    let test = "gemma3_says_what_transformers_says";
    let model = match cached_model("gemma3") {
        Ok(model) => model,
        Err(why) => return skip(test, &why),
    };
    check_blocks(&model, &GEMMA3);
    let server = exact(&model);
    for case in &GEMMA3 {
        check(&server, case);
    }
}
