//! Many clients at once, some of whom vanish: the others get what they would have got alone, and
//! nothing is left behind.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use drivetrain_tests::{Random, Server, Stream, copy_model, edit_json, write};
use serde_json::{Value, json};

const N_CLIENTS: usize = 200;
const N_VANISHING: usize = 50;
const SEED: u64 = 20_261_126;

const WORDS: [&str; 8] =
    ["The engine", " turns", " slowly", ", and", " then", " a wheel", " of iron", " 42"];

/// What a client asks for.
#[derive(Clone, Debug)]
struct Ask {
    path: &'static str,
    body: Value,
}

impl Ask {
    /// LMI's schema and OpenAI's in turn, each greedy and sampled.
    fn random(idx: usize, random: &mut Random) -> Self {
        let n_words = 1 + random.below(12);
        let prompt: String = (0..n_words).map(|_| *random.choose(&WORDS)).collect();
        let n_tokens = 4 + random.below(40);
        let is_sampled = idx % 4 >= 2;
        if idx.is_multiple_of(2) {
            let mut parameters = json!({"max_new_tokens": n_tokens, "do_sample": is_sampled});
            if is_sampled {
                parameters["seed"] = idx.into();
                parameters["temperature"] = 1.5.into();
                parameters["top_p"] = 0.9.into();
            }
            let body = json!({"inputs": prompt, "parameters": parameters});
            return Self { path: "/invocations", body };
        }
        let temperature = if is_sampled { 1.5 } else { 0.0 };
        let body = json!({
            "prompt": prompt, "max_tokens": n_tokens, "temperature": temperature, "seed": idx,
        });
        Self { path: "/v1/completions", body }
    }

    fn streamed(&self) -> String {
        let mut body = self.body.clone();
        body["stream"] = true.into();
        body.to_string()
    }

    /// The text of the answer that comes as one document.
    fn alone(&self, server: &Server) -> String {
        let body = self.body.to_string();
        let reply = server.post(self.path, "application/json", body).unwrap();
        let answer = reply.json().unwrap();
        assert_eq!(reply.status, 200, "{self:?}: {answer}");
        let text = match self.path {
            "/invocations" => &answer["generated_text"],
            _ => &answer["choices"][0]["text"],
        };
        text.as_str().unwrap().to_owned()
    }

    /// The text of a whole streamed answer, whose frames are checked.
    fn text(&self, answer: &str) -> String {
        match self.path {
            "/invocations" => lines_text(answer),
            _ => events_text(answer),
        }
    }
}

/// The text of LMI's lines: the tokens' together, which the last line says again.
fn lines_text(answer: &str) -> String {
    let mut text = String::new();
    let mut whole = None;
    for line in answer.lines() {
        assert_eq!(whole, None, "the line with the whole text is the last: {answer}");
        let line: Value = serde_json::from_str(line).unwrap();
        text.push_str(line["token"]["text"].as_str().unwrap());
        whole = line["generated_text"].as_str().map(str::to_owned);
    }
    assert_eq!(whole.as_ref(), Some(&text), "{answer}");
    text
}

/// The text of OpenAI's events.
fn events_text(answer: &str) -> String {
    let mut text = String::new();
    let mut finish = None;
    let events = answer.strip_suffix("data: [DONE]\n\n").unwrap();
    for event in events.split_terminator("\n\n") {
        let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        let Some(choice) = event["choices"].get(0) else { continue };
        text.push_str(choice["text"].as_str().unwrap());
        assert_eq!(finish, None, "nothing follows the finish reason: {answer}");
        finish = choice["finish_reason"].as_str().map(str::to_owned);
    }
    assert!(finish.is_some(), "{answer}");
    text
}

fn model(dir: &Path, properties: &str) -> PathBuf {
    let model = copy_model("llama_gqa", &dir.join("model"));
    edit_json(&model.join("config.json"), &json!({"max_position_embeddings": 512}));
    write(&model, "serving.properties", properties);
    model
}

/// Nothing runs, waits or takes cache, the engine holds no sequence that nobody knows of, and no
/// connection is left of those that came after `n_sockets` were counted.
fn assert_at_rest(server: &Server, n_sockets: usize) {
    for name in [
        "drivetrain_requests_running",
        "drivetrain_requests_waiting",
        "drivetrain_kv_cache_use_ratio",
    ] {
        server
            .until(&format!("{name} is 0"), |server| server.metric(name).unwrap() == Some(0.0))
            .unwrap();
    }
    // The one that asks is not counted among the open ones by then.
    server
        .until("no connection is left", |server| server.n_sockets().unwrap() <= n_sockets)
        .unwrap();
    let log = server.log();
    assert!(!log.contains("holds sequences while idle"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// A client that stays; or one that takes `n_pieces` and is gone.
fn visit(port: u16, ask: &Ask, n_pieces: Option<usize>) -> Option<String> {
    let Some(n_pieces) = n_pieces else {
        let mut stream = Stream::open(port, ask.path, &ask.streamed()).unwrap();
        assert_eq!(stream.status(), 200);
        return Some(ask.text(&stream.rest().unwrap()));
    };
    let socket = Stream::send(port, ask.path, &ask.streamed()).unwrap();
    if n_pieces > 0 {
        let mut stream = Stream::read_head(socket).unwrap();
        for _ in 0..n_pieces {
            if stream.piece().unwrap().is_none() {
                break;
            }
        }
    }
    None
}

fn crowd(properties: &str) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&model(dir.path(), properties)).unwrap();
    let mut random = Random::new(SEED);
    let asks: Vec<Ask> = (0..N_CLIENTS).map(|idx| Ask::random(idx, &mut random)).collect();
    let want: Vec<String> = asks.iter().map(|ask| ask.alone(&server)).collect();
    let n_sockets = server.n_sockets().unwrap();
    let mut leaving: Vec<Option<usize>> = vec![None; N_CLIENTS];
    let mut n_left = N_VANISHING;
    while n_left > 0 {
        let place = &mut leaving[random.below(N_CLIENTS)];
        if place.is_none() {
            *place = Some(random.below(20));
            n_left -= 1;
        }
    }
    let port = server.port();
    let got: Vec<Option<String>> = thread::scope(|scope| {
        let visit = |(ask, leaving)| scope.spawn(move || visit(port, ask, leaving));
        let visits: Vec<_> = asks.iter().zip(leaving).map(visit).collect();
        visits.into_iter().map(|visit| visit.join().unwrap()).collect()
    });
    for (idx, text) in got.into_iter().enumerate() {
        if let Some(text) = text {
            assert_eq!(text, want[idx], "client {idx} of seed {SEED}: {:?}", asks[idx]);
        }
    }
    assert_at_rest(&server, n_sockets);
    server.terminate().unwrap();
    let exit = server.exit(Duration::from_secs(10)).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

#[test]
fn a_crowd_gets_what_each_would_get_alone() {
    crowd("option.rolling_batch=auto\noption.max_rolling_batch_size=16\n");
}

#[test]
fn a_crowd_whose_texts_are_looked_up_and_not_kept_does_too() {
    crowd(
        "option.rolling_batch=auto\noption.max_rolling_batch_size=5\n\
         option.enable_prefix_caching=false\noption.prompt_lookup_num_tokens=4\n",
    );
}
