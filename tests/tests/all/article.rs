//! The article's job: a BART served for feature extraction from its own `serving.properties`.

use std::path::Path;

use drivetrain_tests::{
    Reference, Server, ServerOptions, archive, copy_model, fixture, largest_difference, write,
};

const TOLERANCE: f32 = 1e-4;

/// The article's properties, with the model's id replaced by a directory.
fn properties(model: &Path) -> String {
    format!("engine=Python\noption.model_id={}\noption.task=feature-extraction\n", model.display())
}

fn check(server: &Server) {
    let reference = Reference::read(&fixture("bart")).unwrap();
    for prompt_idx in 0..2 {
        let text = reference.prompt(prompt_idx).unwrap();
        let want = reference.rows(&format!("feature_extraction.{prompt_idx}")).unwrap();

        let reply = server.post("/invocations", "text/plain", text).unwrap();
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        let plain = reply.json().unwrap();
        assert_eq!(plain.as_array().unwrap().len(), 1, "[1][tokens][hidden]");
        let difference = largest_difference(&plain[0], &want).unwrap();
        assert!(difference <= TOLERANCE, "text/plain differs by {difference}");

        let body = serde_json::json!({ "inputs": text }).to_string();
        let json = server.post("/invocations", "application/json", body).unwrap().json().unwrap();
        assert_eq!(json.as_array().unwrap().len(), 1, "one input");
        assert_eq!(json[0], plain, "JSON has one level more");
    }
    let texts = [reference.prompt(0).unwrap(), reference.prompt(1).unwrap()];
    let body = serde_json::json!({ "inputs": texts }).to_string();
    let both = server.post("/invocations", "application/json", body).unwrap().json().unwrap();
    for (idx, features) in both.as_array().unwrap().iter().enumerate() {
        let want = reference.rows(&format!("feature_extraction.{idx}")).unwrap();
        let difference = largest_difference(&features[0], &want).unwrap();
        assert!(difference <= TOLERANCE, "input {idx} of two differs by {difference}");
    }
}

#[test]
fn a_directory_with_the_articles_properties() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "serving.properties", &properties(&fixture("bart")));
    let server = Server::start(dir.path()).unwrap();
    check(&server);
    let log = server.log();
    assert!(log.contains("model.py"), "the log says that the built-in handler is native:\n{log}");
}

#[test]
fn a_flat_tarball_with_the_model_inside() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model("bart", &dir.path().join("model"));
    let task = "engine=Python\noption.task=feature-extraction\n";
    write(&model, "serving.properties", task);
    let tarball = dir.path().join("model.tar.gz");
    archive(&model, ".", &tarball);
    check(&Server::start(&tarball).unwrap());
}

#[test]
fn a_tarball_with_one_folder_inside() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy_model("bart", &dir.path().join("my-bart"));
    write(&model, "serving.properties", "option.task = feature-extraction\n");
    let tarball = dir.path().join("model.tgz");
    archive(dir.path(), "my-bart", &tarball);
    check(&Server::start(&tarball).unwrap());
}

/// Plain Rust and the vectors of any newer machine give the article's numbers, and what is no instruction
/// set is refused with those that are.
#[test]
fn a_forced_instruction_set() {
    let dir = tempfile::tempdir().unwrap();
    let task = "option.engine=fastertransformer\noption.task=feature-extraction\n";
    let model = copy_model("bart", &dir.path().join("model"));
    write(&model, "serving.properties", task);
    let options = |isa: &str| ServerOptions {
        models: vec![model.display().to_string()],
        env: vec![("DRIVETRAIN_FORCE_ISA".into(), isa.into())],
        ..ServerOptions::default()
    };
    for isa in ["scalar", "avx2"] {
        let server = Server::with(&options(isa)).unwrap();
        check(&server);
        assert!(server.log().contains(&format!("({isa})")), "{}", server.log());
    }
    let refused = Server::spawn(&options("avx9")).unwrap();
    let exit = refused.exit(std::time::Duration::from_secs(30)).unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    let message = "DRIVETRAIN_FORCE_ISA=avx9: no such instruction set; choose one of scalar, avx2";
    assert!(exit.log.contains(message), "{}", exit.log);
}
