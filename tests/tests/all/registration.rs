//! Models that come and go while the server runs: SageMaker's multi-model contract, and DJL Serving's
//! words for it.

use drivetrain_tests::{Server, ServerOptions, copy_model, write};
use serde_json::json;

fn server(env: &[(&str, &str)]) -> Server {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let args = vec!["-m".to_owned(), "NONE".to_owned()];
    Server::with(&ServerOptions { args, env, ..ServerOptions::default() }).unwrap()
}

#[test]
fn a_model_comes_answers_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let place = copy_model("bart", &folder.path().join("hash/model"));
    write(&place, "serving.properties", "option.task=feature-extraction\n");
    let server = server(&[("SAGEMAKER_MULTI_MODEL", "true")]);
    assert_eq!(server.get("/models").unwrap().json().unwrap()["models"], json!([]));
    let asked = json!({ "model_name": "hash", "url": place }).to_string();
    let load = || server.post("/models", "application/json", &asked).unwrap();
    let loaded = load();
    assert_eq!(loaded.status, 200, "{}", String::from_utf8_lossy(&loaded.body));
    assert_eq!(loaded.json().unwrap()["status"], "Model \"hash\" registered.");
    let again = load();
    assert_eq!(again.status, 409);
    assert_eq!(again.json().unwrap()["message"], "Workflow hash is already registered.");
    let told = json!({ "modelName": "hash", "modelUrl": format!("file://{}", place.display()) });
    assert_eq!(server.get("/models/hash").unwrap().json().unwrap(), told);
    let listed = server.get("/models").unwrap().json().unwrap();
    assert_eq!(listed["models"][0]["modelName"], "hash");
    let answer = server.post("/models/hash/invoke", "text/plain", "a text").unwrap();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));

    let unload = || server.request("DELETE", "/models/hash", &[], b"").unwrap();
    let gone = unload();
    assert_eq!(gone.status, 200);
    assert_eq!(gone.json().unwrap()["status"], "Model or workflow \"hash\" unregistered");
    // The answer comes when its memory is given back.
    assert!(server.log().contains("the model is unloaded"), "{}", server.log());
    assert_eq!(unload().status, 404);
    assert_eq!(server.get("/models/hash").unwrap().status, 404);
    let answer = server.post("/models/hash/invoke", "text/plain", "a text").unwrap();
    assert_eq!(answer.status, 404);
    assert_eq!(load().status, 200, "it can come again");
}

#[test]
fn what_cannot_be_loaded_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(&[]);
    let load = |query: &str| {
        let reply = server.request("POST", &format!("/models?{query}"), &[], b"").unwrap();
        let message = reply.json().unwrap()["message"].as_str().unwrap_or_default().to_owned();
        (reply.status, message)
    };
    assert_eq!(load("model_name=m"), (400, "Parameter url is required.".to_owned()));
    assert_eq!(load("url=/nowhere/m").0, 404);
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let (status, message) = load(&format!("url={}", empty.display()));
    assert_eq!(status, 400, "{message}");
    assert!(message.contains("config.json"), "{message}");
    let large = copy_model("bart", &folder.path().join("large"));
    let needs = "option.task=feature-extraction\nrequired_memory_mb=1000000000\n";
    write(&large, "serving.properties", needs);
    let (status, message) = load(&format!("url={}", large.display()));
    assert_eq!(status, 507, "{message}");
    assert!(message.contains("required_memory_mb"), "{message}");
    let (status, message) = load(&format!("url={}&model_name=a/b", large.display()));
    assert_eq!(status, 400, "{message}");
    assert!(message.contains("model_name"), "{message}");
    assert_eq!(server.get("/models").unwrap().json().unwrap()["models"], json!([]));
    assert_eq!(server.get("/ping").unwrap().status, 200, "a model that is not there fails nothing");

    // Who does not wait is told that it was begun, and finds it in the list once it is there.
    let small = copy_model("bart", &folder.path().join("small"));
    write(&small, "serving.properties", "option.task=feature-extraction\n");
    let asked = format!("url={}&synchronous=false&batch_size=3", small.display());
    assert_eq!(load(&asked).0, 202);
    server
        .until("the model is ready", |server| {
            let told = server.get("/models/small").unwrap();
            told.status == 200 && told.json().unwrap()[0]["models"][0]["status"] == "Healthy"
        })
        .unwrap();
    let told = server.get("/models/small").unwrap().json().unwrap();
    assert_eq!(told[0]["models"][0]["batchSize"], 3);
    assert_eq!(told[0]["models"][0]["loadedAtStartup"], false);
}
