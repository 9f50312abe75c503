//! The hub: what is brought, what goes wrong, what is said.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use drivetrain_sources::{FetchOptions, Hidden, ModelSource, Stop, Unwatched, fetch};
use drivetrain_tests::{
    Answered, Fault, Hub, Reference, Repository, Server, ServerOptions, fixture,
};
use serde_json::json;

use super::{LATE, Recorder, bring, noise, options, refused};

const ID: &str = "org/model";
const BIG: usize = 3_000_000;

/// A repository as they are: weights many times over, and things that no server needs.
fn repository() -> Repository {
    let mut files = BTreeMap::new();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md"] {
        files.insert(name.to_owned(), format!("{{\"of\": \"{name}\"}}").into_bytes());
    }
    files.insert("vocab.txt".to_owned(), noise(5_000));
    files.insert("1_Pooling/config.json".to_owned(), b"{}".to_vec());
    files.insert("model.safetensors".to_owned(), noise(BIG));
    for name in ["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "training_args.bin"] {
        files.insert(name.to_owned(), noise(2_000));
    }
    let mut repository = Repository { files, ..Repository::default() };
    repository.commit();
    repository
}

const WANTED: [&str; 6] = [
    "1_Pooling/config.json",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
];

struct Case {
    hub: Hub,
    repository: Repository,
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let (hub, repository) = (Hub::new(), repository());
        hub.put(ID, repository.clone());
        Self { hub, repository, folder: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> FetchOptions {
        options(self.folder.path(), &self.hub.api.url())
    }

    fn check_brought(&self, dir: &Path) {
        for name in WANTED {
            let found = fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(found == self.repository.files[name], "{name} differs");
        }
    }

    /// Bytes of content that were sent.
    fn n_sent(&self) -> u64 {
        self.hub.content.seen().iter().map(|asked| asked.n_sent()).sum()
    }
}

#[test]
fn what_a_model_needs_is_brought_into_the_hubs_own_layout() {
    let case = Case::new();
    let dir = bring(ID, &case.options()).unwrap();
    case.check_brought(&dir);
    let commit = case.repository.commit.as_str();
    let root = case.folder.path().join("hub/models--org--model");
    assert_eq!(dir, root.join("snapshots").join(commit));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), commit);
    for skipped in ["README.md", "pytorch_model.bin", "tf_model.h5", "onnx"] {
        assert!(!dir.join(skipped).exists(), "{skipped}");
    }
    let link = fs::read_link(dir.join("model.safetensors")).unwrap();
    assert!(link.starts_with("../../blobs"), "{}", link.display());
    let blobs: Vec<String> = fs::read_dir(root.join("blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(blobs.len(), WANTED.len(), "{blobs:?}");
    let n_pieces = case.hub.content.seen().iter().filter(|asked| asked.range().is_some()).count();
    assert!(n_pieces >= BIG / (256 << 10), "{n_pieces} pieces");

    // A second start asks what the branch is at, and nothing else.
    case.hub.api.forget();
    case.hub.content.forget();
    assert_eq!(bring(ID, &case.options()).unwrap(), dir);
    assert_eq!((case.hub.api.seen().len(), case.hub.content.seen().len()), (1, 0));
    // A commit is a commit: nothing is asked.
    assert_eq!(bring(&format!("{ID}@{commit}"), &case.options()).unwrap(), dir);
    assert_eq!(case.hub.api.seen().len(), 1);
}

#[test]
fn a_new_commit_brings_what_changed_and_leaves_the_old_one() {
    let mut case = Case::new();
    let old = bring(ID, &case.options()).unwrap();
    case.repository.files.insert("config.json".to_owned(), b"{\"new\": true}".to_vec());
    case.repository.commit();
    case.hub.put(ID, case.repository.clone());
    case.hub.content.forget();
    let new = bring(ID, &case.options()).unwrap();
    case.check_brought(&new);
    assert_ne!(old, new);
    assert_eq!(case.n_sent(), 0, "the weights did not change");
    assert_eq!(fs::read(old.join("config.json")).unwrap(), b"{\"of\": \"config.json\"}");
}

#[test]
fn throttling_and_broken_connections_are_tried_again() {
    let case = Case::new();
    let later = |status: u16, after: &str| {
        let headers = vec![("retry-after".to_owned(), after.to_owned())];
        Fault::Instead(Answered { status, headers, body: Vec::new() })
    };
    case.hub.api.rule("/revision/", 1, later(429, "0"));
    case.hub.api.rule("/revision/", 1, later(503, "0"));
    case.hub.api.rule_for("HEAD", "vocab.txt", 1, later(500, "0"));
    case.hub.content.rule("", 2, later(429, "1"));
    case.hub.content.rule("", 1, later(502, "0"));
    // An address of content that has run out.
    case.hub.content.rule("", 1, later(403, "0"));
    case.hub.content.rule("", 6, Fault::Cut(100_000));
    let started = std::time::Instant::now();
    case.check_brought(&bring(ID, &case.options()).unwrap());
    assert!(started.elapsed().as_secs_f64() >= 1.0, "Retry-After was not heeded");
}

#[test]
fn a_cut_answer_costs_no_byte_twice() {
    let case = Case::new();
    case.hub.content.rule("", 4, Fault::Cut(77_777));
    case.check_brought(&bring(ID, &case.options()).unwrap());
    let vocab = case.repository.files["vocab.txt"].len();
    assert_eq!(case.n_sent(), (BIG + vocab) as u64);
}

#[test]
fn content_that_changes_between_pieces_is_begun_again() {
    let case = Case::new();
    // The tag of the content changes while the pieces are under way.
    case.hub.content.rule("", 4, Fault::Pace(200_000));
    let content = case.hub.content.clone();
    let hub = std::sync::Arc::new(case.hub);
    let changer = {
        let hub = std::sync::Arc::clone(&hub);
        std::thread::spawn(move || {
            while content.seen().len() < 3 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            hub.retag("-new");
        })
    };
    let options = options(case.folder.path(), &hub.api.url());
    let dir = bring(ID, &options).unwrap();
    changer.join().unwrap();
    let found = fs::read(dir.join("model.safetensors")).unwrap();
    assert!(found == case.repository.files["model.safetensors"]);
}

#[test]
fn wrong_content_is_found_by_its_sum() {
    let case = Case::new();
    let wrong = Answered {
        status: 200,
        headers: vec![("etag".to_owned(), "\"x\"".to_owned())],
        body: vec![0; BIG],
    };
    let mut options = case.options();
    options.limits.piece_bytes = u64::MAX;
    case.hub.content.rule("", usize::MAX, Fault::Instead(wrong.clone()));
    let mut only_weights = case.repository.clone();
    only_weights.files.remove("vocab.txt");
    only_weights.commit();
    case.hub.put(ID, only_weights);
    let text = refused(ID, &options);
    assert!(
        text.contains("model.safetensors: has the SHA-256") && text.contains("the hub says"),
        "{text}"
    );
    // One wrong answer is an accident.
    case.hub.content.heal();
    case.hub.content.rule("", 1, Fault::Instead(wrong));
    let dir = bring(ID, &options).unwrap();
    assert!(
        fs::read(dir.join("model.safetensors")).unwrap()
            == case.repository.files["model.safetensors"]
    );
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let case = Case::new();
    let mut repository = case.repository.clone();
    repository.token = Some("hf_verysecret".to_owned());
    case.hub.put(ID, repository);
    let text = refused(ID, &case.options());
    assert!(text.contains("no public repository org/model") && text.contains("HF_TOKEN"), "{text}");
    let mut options = case.options();
    options.hub.token = Some(Hidden::new("hf_other_verysecret"));
    let text = refused(ID, &options);
    assert!(text.contains("does not accept the token"), "{text}");
    options.hub.token = Some(Hidden::new("hf_verysecret"));
    case.hub.api.forget();
    case.check_brought(&bring(ID, &options).unwrap());
    assert!(case.hub.api.seen().iter().all(|asked| asked.header("authorization").is_some()));
    let content = case.hub.content.seen();
    assert!(!content.is_empty());
    assert!(content.iter().all(|asked| asked.header("authorization").is_none()));
    assert!(!format!("{options:?}").contains("verysecret"));
}

#[test]
fn refusals_say_what_to_do() {
    let case = Case::new();
    let check = |text: &str, wanted: &[&str]| {
        let found = refused(text, &case.options());
        for part in wanted {
            assert!(found.contains(part), "{text}: {found}");
        }
    };
    check("org/none", &["no public repository org/none", "check the id"]);
    check("org/model@v2", &["no revision v2", "option.revision"]);
    let mut gated = case.repository.clone();
    gated.is_gated = true;
    case.hub.put("org/gated", gated);
    check("org/gated", &["is gated", "accept its terms at", "/org/gated", "HF_TOKEN"]);
    let mut empty = Repository::default();
    empty.files.insert("tf_model.h5".to_owned(), noise(10));
    empty.commit();
    case.hub.put("org/empty", empty);
    check("org/empty", &["no weights that are served", "tf_model.h5"]);
    for name in ["adapters/../../evil.json", "adapters//evil.json", "e\u{7}vil.json", "CONFIG.json"]
    {
        let mut hostile = case.repository.clone();
        hostile.files.insert(name.to_owned(), b"{}".to_vec());
        hostile.commit();
        case.hub.put("org/hostile", hostile);
        check("org/hostile", &["the file name", "nothing of it was downloaded"]);
    }
    let mut few = case.options();
    few.limits.max_files = 3;
    assert!(refused(ID, &few).contains("at most 3"));
    few.limits.max_files = 30;
    few.limits.max_bytes = 1000;
    assert!(refused(ID, &few).contains("at most 1000"));
    assert!(!case.folder.path().join("hub/models--org--model/snapshots").exists());
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let case = Case::new();
    let answers = [
        json!("text"),
        json!({"siblings": []}),
        json!({"sha": "../../x", "siblings": []}),
        json!({"sha": "a", "siblings": 3}),
    ];
    for answer in answers {
        let body = answer.to_string().into_bytes();
        let odd = Answered { status: 200, headers: Vec::new(), body };
        case.hub.api.rule("/revision/", 1, Fault::Instead(odd));
        let text = refused(ID, &case.options());
        assert!(text.contains("HF_ENDPOINT"), "{text}");
    }
    for (header, value) in
        [("x-linked-etag", "\"../../../x\""), ("x-linked-size", "-1"), ("x-repo-commit", "other")]
    {
        let mut headers = vec![
            ("x-linked-etag".to_owned(), "\"abc\"".to_owned()),
            ("x-linked-size".to_owned(), "5".to_owned()),
            ("location".to_owned(), "http://127.0.0.1:1/".to_owned()),
        ];
        headers.retain(|(name, _)| name != header);
        headers.push((header.to_owned(), value.to_owned()));
        let odd = Answered { status: 302, headers, body: Vec::new() };
        case.hub.api.rule_for("HEAD", "model.safetensors", 1, Fault::Instead(odd));
        let text = refused(ID, &case.options());
        assert!(text.contains("model.safetensors"), "{header}: {text}");
    }
    let round = Answered {
        status: 302,
        headers: vec![("location".to_owned(), case.hub.api.url() + "/again/revision/")],
        body: Vec::new(),
    };
    case.hub.api.rule("/revision/", usize::MAX, Fault::Instead(round));
    assert!(refused(ID, &case.options()).contains("redirects"));
}

#[test]
fn without_a_network_the_cache_serves() {
    let case = Case::new();
    let mut offline = case.options();
    offline.offline = true;
    let text = refused(ID, &offline);
    assert!(text.contains("is not complete in") && text.contains("HF_HUB_OFFLINE"), "{text}");
    let dir = bring(ID, &case.options()).unwrap();
    case.hub.api.forget();
    assert_eq!(bring(ID, &offline).unwrap(), dir);
    assert_eq!(case.hub.api.seen().len(), 0);
    // The hub is down: what is here is used.
    let down = options(case.folder.path(), "http://127.0.0.1:1");
    assert_eq!(bring(ID, &down).unwrap(), dir);
    // Without its weights a snapshot is none.
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert!(refused(ID, &offline).contains("is not complete"));
    let text = refused(ID, &down);
    assert!(text.contains("does not answer, 5 tries"), "{text}");
}

#[test]
fn a_download_stops_when_told_to_and_shows_how_far_it_is() {
    for (stop, wanted) in [(Stop::Cancelled, "was stopped"), (LATE, "not done within 7 s")] {
        let case = Case::new();
        case.hub.content.rule("", usize::MAX, Fault::Pace(200_000));
        let recorder = Recorder::new(1 << 20, stop);
        let source = ModelSource::parse(ID).unwrap();
        let started = std::time::Instant::now();
        // Four pieces are enough, and the next four take as long again.
        let mut options = case.options();
        options.limits.n_connections = 4;
        let error = fetch(&source, None, &options, &recorder).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(started.elapsed().as_secs() < 20);
        let reports = recorder.reports.lock().unwrap();
        let small: usize = WANTED.iter().map(|name| case.repository.files[*name].len()).sum();
        assert_eq!(
            reports.last().map(|(stage, _, total)| (stage.as_str(), *total)),
            Some(("downloading", small as u64))
        );
        drop(reports);
        // And goes on from there.
        case.hub.content.heal();
        case.hub.content.forget();
        case.check_brought(&fetch(&source, None, &case.options(), &Unwatched).unwrap());
        let n_sent = case.n_sent();
        assert!(n_sent < BIG as u64 - (512 << 10), "{n_sent} bytes came again");
    }
}

#[test]
fn several_at_once_download_it_once() {
    let case = Case::new();
    case.hub.content.rule("", 8, Fault::Pace(2_000_000));
    let options = case.options();
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| bring(ID, &options).unwrap())).collect();
        for start in starts {
            case.check_brought(&start.join().unwrap());
        }
    });
    let vocab = case.repository.files["vocab.txt"].len();
    assert_eq!(case.n_sent(), (BIG + vocab) as u64);
}

#[test]
fn a_hub_id_is_served_and_its_download_shows() {
    let hub = Hub::new();
    let mut gpt2 = Repository::of(&fixture("gpt2"));
    gpt2.files.retain(|name, _| !name.starts_with("reference") && name != "generations.json");
    gpt2.token = Some("hf_verysecret".to_owned());
    gpt2.commit();
    hub.put("tiny/gpt2", gpt2);
    hub.content.rule("", usize::MAX, Fault::Pace(40_000));
    let folder = tempfile::tempdir().unwrap();
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let server = ServerOptions {
        models: vec!["tiny/gpt2".to_owned()],
        env: vec![
            env("HF_ENDPOINT", &hub.api.url()),
            env("HF_HOME", &folder.path().display().to_string()),
            env("HF_TOKEN", "hf_verysecret"),
            env("SERVING_WAIT_MODEL_LOADING", "false"),
            env("RUST_LOG", "debug"),
        ],
        ..ServerOptions::default()
    };
    let server = Server::with(&server).unwrap();
    let mut seen = Vec::new();
    server
        .until("the model is ready", |server| {
            let reply = server.get("/models/tiny_gpt2").unwrap().json().unwrap();
            let model = &reply[0]["models"][0];
            if let Some(total) = model["loading"]["total"].as_u64().filter(|total| *total > 0) {
                seen.push((model["loading"]["stage"].to_string(), total));
            }
            model["status"] == "Healthy"
        })
        .unwrap();
    assert!(seen.iter().any(|(stage, _)| stage.contains("downloading")), "{seen:?}");
    let reference = Reference::read(&fixture("gpt2")).unwrap();
    let body = json!({"inputs": reference.prompt(0).unwrap(), "parameters": {"max_new_tokens": 8}});
    let reply = server.post("/invocations", "application/json", body.to_string()).unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let log = server.log();
    assert!(!log.contains("verysecret"), "{log}");
}

#[test]
fn a_model_that_can_not_be_had_fails_alone() {
    let hub = Hub::new();
    let folder = tempfile::tempdir().unwrap();
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let bart = drivetrain_tests::model("bart-g2p").display().to_string();
    let server = ServerOptions {
        models: vec![format!("good={bart}"), "bad=org/none".to_owned()],
        env: vec![
            env("HF_ENDPOINT", &hub.api.url()),
            env("HF_HOME", &folder.path().display().to_string()),
            env("SERVING_WAIT_MODEL_LOADING", "false"),
        ],
        ..ServerOptions::default()
    };
    let server = Server::with(&server).unwrap();
    let model = |server: &Server, name: &str| {
        server.get(&format!("/models/{name}")).unwrap().json().unwrap()[0]["models"][0].clone()
    };
    server.until("it fails", |server| model(server, "bad")["status"] == "FAILED").unwrap();
    let reason = model(&server, "bad")["statusReason"].to_string();
    assert!(reason.contains("no public repository org/none"), "{reason}");
    server.until("the other loads", |server| model(server, "good")["status"] == "Healthy").unwrap();
}
