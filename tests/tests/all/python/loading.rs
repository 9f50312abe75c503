//! What a handler is loaded with, and what keeps it from being loaded.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drivetrain_tests::{CREDENTIALS, Reply, S3, Server, ServerOptions, skip, write};
use serde_json::{Value, json};

use super::{ask, model, serve, text};

/// Answers with what it was told.
const ECHO: &str = r#"
import json, os, sys
from djl_python import Input, Output
told = {}
def handle(inputs):
    if inputs.is_empty():
        told.update(inputs.get_properties())
        return Output().add("ready")
    return Output().add({
        "told": told,
        "properties": inputs.get_properties(),
        "content": [[k, bytes(v).decode()] for k, v in inputs.get_content().items()],
        "function": inputs.get_function_name(),
        "cwd": os.getcwd(),
        "env": os.environ.get("GREETING"),
        "path": os.environ["PYTHONPATH"].split(os.pathsep)[0],
    })
def other(inputs):
    return Output().add("other")
"#;

#[test]
fn settings_and_requests_reach_the_handler() {
    let folder = tempfile::tempdir().unwrap();
    let properties = "option.task=mine\nbatch_size=1\nmine=1\noption.env=GREETING=a,b\n";
    let dir = model(folder.path(), "m", properties, ECHO).canonicalize().unwrap();
    let server = serve(std::slice::from_ref(&dir), &[]);
    let headers = [
        ("Content-Type", "text/plain"),
        ("X-Own", "1"),
        ("X-Amzn-SageMaker-Custom-Attributes", "trace=t; half"),
    ];
    let reply = server.request("POST", "/invocations?q=a%20b", &headers, b"body").unwrap();
    let said = reply.json().unwrap();
    let dir = dir.display().to_string();
    assert_eq!((&said["cwd"], &said["path"]), (&json!(dir), &json!(dir)));
    assert_eq!(said["env"], "a,b");
    assert_eq!(said["content"], json!([["q", "a b"], ["data", "body"]]));
    assert_eq!(said["function"], Value::Null);
    let told = &said["told"];
    for (key, value) in [
        ("task", "mine"),
        ("mine", "1"),
        ("model_dir", dir.as_str()),
        ("engine", "Python"),
        ("tensor_parallel_degree", "1"),
        ("predict_timeout", "120"),
    ] {
        assert_eq!(told[key], value, "{key}: {told}");
    }
    assert_eq!(told["env"], Value::Null);
    let properties = &said["properties"];
    assert_eq!((&properties["task"], &properties["x-own"]), (&json!("mine"), &json!("1")));
    assert_eq!((&properties["trace"], &properties["half"]), (&json!("t"), &Value::Null));
    assert_eq!(properties["batch_size"], Value::Null);
    // A request may not choose the function; the operator may allow it to.
    let other = server.request("POST", "/invocations", &[("handler", "other")], b"").unwrap();
    assert_eq!(other.status, 400);
    drop(server);
    let server = serve(&[folder.path().join("m")], &[("ALLOW_REQUEST_HANDLER_OVERRIDE", "true")]);
    let call =
        |function| server.request("POST", "/invocations", &[("handler", function)], b"").unwrap();
    assert_eq!(text(&call("other")), "other");
    let missing = call("nonesuch");
    assert_eq!(missing.status, 424);
    assert_eq!(missing.json().unwrap()["error"], "model.py has no function `nonesuch`");
}

#[test]
fn the_handler_takes_its_weights_from_where_it_likes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // Nobody fetches what a handler knows how to fetch, and nobody reads what is beside it.
    let hub = model(root, "hub", "option.model_id=nobody/nothing\n", ECHO);
    write(&hub, "config.json", "this is no JSON");
    write(&hub, "adapter_config.json", "nor is this");
    let told = ask(&serve(&[hub], &[]), "x").json().unwrap()["told"].clone();
    assert_eq!(told["model_id"], "nobody/nothing");
    // What is in S3 is brought, and the handler is told where it is.
    let s3 = match S3::start().unwrap() {
        Ok(s3) => s3,
        Err(why) => return skip("the_handler_takes_its_weights_from_where_it_likes", &why),
    };
    let weights = root.join("weights");
    std::fs::create_dir(&weights).unwrap();
    write(&weights, "weights.bin", "some");
    s3.put(&weights, "models", "w").unwrap();
    let script = ECHO.replace("os.getcwd()", "open(told['model_id'] + '/weights.bin').read()");
    let dir = model(root, "s3", "option.model_id=s3://models/w\n", &script);
    let endpoint = format!("http://127.0.0.1:{}", s3.port());
    let mut env = CREDENTIALS.to_vec();
    env.push(("AWS_ENDPOINT_URL_S3", endpoint.as_str()));
    let said = ask(&serve(std::slice::from_ref(&dir), &env), "x").json().unwrap();
    assert_eq!(said["cwd"], "some");
    let dir = std::path::absolute(&dir).unwrap().display().to_string();
    assert_eq!(said["told"]["model_dir"], dir);
}

#[test]
fn a_model_py_without_an_engine_is_pythons() {
    let folder = tempfile::tempdir().unwrap();
    let script = "from djl_python import Output\ndef run(i): return Output().add('ran')";
    let dir = model(folder.path(), "m", "", "raise SystemExit('this is not the entry point')");
    write(&dir, "serve.py", script);
    write(&dir, "serving.properties", "option.entryPoint=serve.py\noption.handler=run\n");
    assert_eq!(text(&ask(&serve(&[dir], &[]), "x")), "ran");
    let dir = model(folder.path(), "n", "", &script.replace("run", "handle"));
    std::fs::remove_file(dir.join("serving.properties")).unwrap();
    let server = serve(&[dir], &[]);
    assert_eq!(text(&ask(&server, "x")), "ran");
    assert!(server.log().contains("it runs with engine=Python"), "{}", server.log());
}

#[test]
fn hooks_and_sagemakers_functions_stand_in_for_a_handler() {
    let folder = tempfile::tempdir().unwrap();
    let hooks = "
from djl_python import init_handler, input_formatter, output_formatter, prediction_handler
@init_handler
def start(properties): return properties['task']
@input_formatter
def read(inputs): return int(inputs.get_as_string())
@prediction_handler
def predict(number, state): return [state] * number
";
    let script = "
def model_fn(model_dir): return 'model'
def predict_fn(data, model): return {'model': model, 'data': data}
";
    let archive = folder.path().join("a");
    std::fs::create_dir_all(archive.join("MAR-INF")).unwrap();
    let manifest = r#"{"model": {"modelName": "a", "handler": "own.py"}}"#;
    write(&archive.join("MAR-INF"), "MANIFEST.json", manifest);
    let class = "
class Own:
    def initialize(self, context): self.dir = context.system_properties['model_dir']
    def handle(self, data, context): return [row['body'].decode() + '!' for row in data]
";
    write(&archive, "own.py", class);
    let models = [
        model(folder.path(), "h", "option.task=t\n", hooks),
        model(folder.path(), "s", "", script),
        archive,
    ];
    let server = serve(&models, &[]);
    let post = |name: &str, kind: &str, body: &str| -> Reply {
        server.post(&format!("/predictions/{name}"), kind, body).unwrap()
    };
    assert_eq!(post("h", "text/plain", "2").json().unwrap(), json!(["t", "t"]));
    assert_eq!(post("h", "text/plain", "x").status, 424);
    let body = post("s", "application/json", r#"{"x": 1}"#).json().unwrap();
    assert_eq!(body, json!({"model": "model", "data": {"x": 1}}));
    assert_eq!(text(&post("a", "text/plain", "hello")), "hello!");
}

/// Serves a model that can't be loaded: the server ends, and its log says why.
fn refused(dir: &Path, env: &[(&str, &str)]) -> String {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let models = vec![dir.display().to_string()];
    let options = ServerOptions { models, env, ..ServerOptions::default() };
    let exit = Server::spawn(&options).unwrap().exit(Duration::from_secs(30)).unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    exit.log
}

#[test]
fn a_handler_that_can_not_be_loaded_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let good = "def handle(inputs): return None";
    let output =
        |text: &str| format!("from djl_python import Output\ndef handle(inputs): return {text}");
    let failing = "def handle(inputs): raise";
    let cases = [
        (
            "missing",
            "",
            "import nonesuch".to_owned(),
            "ModuleNotFoundError: No module named 'nonesuch'",
        ),
        ("syntax", "", "def handle(:".to_owned(), "SyntaxError: "),
        (
            "without",
            "",
            "def other(x): pass".to_owned(),
            "model.py has no function `handle`: define",
        ),
        ("named", "option.handler=run\n", good.to_owned(), "model.py has no function `run`"),
        ("raises", "", format!("{failing} OSError('no weights')"), "OSError: no weights"),
        ("memory", "", format!("{failing} MemoryError('big')"), "out of memory while the handler"),
        ("exits", "", "import os; os._exit(7)".to_owned(), "worker 1 ended with exit code 7"),
        ("error", "", output("Output().error('odd')"), "first call returned 424: odd"),
        ("code", "", output("Output(507, 'full')"), "first call returned 507: full"),
        ("type", "", output("7"), "Invalid output type: <class 'int'>"),
        ("entry", "option.entryPoint=x.py\n", good.to_owned(), "option.entryPoint=x.py: expected"),
        ("python", "option.pythonExecutable=/none\n", good.to_owned(), "/none: can't be started"),
        (
            "sh",
            "option.pythonExecutable=/bin/sh\n",
            good.to_owned(),
            "expected Python 3.9 or later",
        ),
        ("option", "option.max_in_flight=0\n", good.to_owned(), "option.max_in_flight=0: expected"),
        (
            "slow",
            "option.model_loading_timeout=1\n",
            "import time\ndef handle(inputs): time.sleep(600)".to_owned(),
            "did not load within model_loading_timeout=1 s",
        ),
    ];
    for (name, properties, script, cause) in cases {
        let log = refused(&model(root, name, properties, &script), &[]);
        let last = log.lines().rfind(|line| line.contains("the model has failed"));
        assert!(last.is_some_and(|line| line.contains(cause)), "{name}: {log}");
        let is_python = ["missing", "syntax", "raises"].contains(&name);
        assert!(!is_python || log.contains("Traceback (most recent call last)"), "{log}");
    }
}

/// Makes a wheel of one module.
const WHEEL: &str = "
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + '/tinydep-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('tinydep.py', 'VALUE = 42\\n')
    info = 'tinydep-1.0.dist-info/'
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: tinydep\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
";

#[test]
fn requirements_are_installed_from_the_models_own_wheels() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import sys, tinydep
from djl_python import Output
def handle(inputs): return Output().add(f'{tinydep.VALUE} {sys.prefix != sys.base_prefix}')
";
    let dir = model(folder.path(), "m", "option.enable_venv=true\n", script);
    write(&dir, "requirements.txt", "tinydep\n");
    let wheels = dir.join("requirements");
    std::fs::create_dir(&wheels).unwrap();
    let made = Command::new("python3").args(["-c", WHEEL]).arg(&wheels).status().unwrap();
    assert!(made.success());
    let server = serve(std::slice::from_ref(&dir), &[("DJL_OFFLINE", "true")]);
    assert_eq!(text(&ask(&server, "x")), "42 True");
    // What can't be installed is a warning, and the handler's own error says the rest.
    write(&dir, "requirements.txt", "nonesuch-of-nobody\n");
    write(&dir, "model.py", "import nonesuch_of_nobody");
    write(&dir, "serving.properties", "engine=Python\n");
    let log = refused(&dir, &[("DJL_OFFLINE", "true")]);
    assert!(log.contains("No module named 'nonesuch_of_nobody'"), "{log}");
    assert!(log.contains("requirements.txt could not be installed"), "{log}");
}
