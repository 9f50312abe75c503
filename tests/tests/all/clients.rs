//! Real clients against the real binary and a real chat model: OpenAI's and SageMaker's for Python.
//!
//! What they need is put into a cache folder once: `DRIVETRAIN_TEST_CACHE`, else
//! `~/.cache/drivetrain-tests`. Where it can't be had the test says so and is skipped, unless
//! `DRIVETRAIN_TEST_ALL` is set, as it is on a machine that has to run everything.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use drivetrain_tests::{Server, cache, copy_model, python, root, scripts, skip, write};

/// What `make_model.py` ends with when the model can't be downloaded.
const NOT_TO_BE_HAD: i32 = 75;

fn chat_model(python: &Path, cache: &Path) -> Result<PathBuf, String> {
    let model = cache.join("smollm2-135m-instruct-q4_1-as-f32");
    let script = scripts().join("make_model.py");
    let status = Command::new(python).arg(script).arg(&model).status().unwrap();
    match status.code() {
        Some(0) => Ok(model),
        Some(NOT_TO_BE_HAD) => Err("the chat model can't be downloaded".to_owned()),
        _ => panic!("make_model.py: {status}"),
    }
}

/// The GGUF file of a model of `fetch_gguf.py`, or why it can't be had.
pub(crate) fn cached_model(name: &str) -> Result<PathBuf, String> {
    let cache = cache()?;
    let folder = cache.join(format!("{name}-gguf"));
    let script = scripts().join("fetch_gguf.py");
    let status = Command::new(python()?).arg(script).arg(name).arg(&folder).status();
    match status.map_err(|error| format!("python: {error}"))?.code() {
        Some(0) => Ok(folder.join("model.gguf")),
        Some(NOT_TO_BE_HAD) => Err(format!("{name} can't be downloaded")),
        code => panic!("fetch_gguf.py: {code:?}"),
    }
}

/// Both, or why not.
fn set_up() -> Result<(PathBuf, PathBuf), String> {
    let python = python()?;
    let cache = cache()?;
    let model = chat_model(&python, &cache)?;
    Ok((python, model))
}

fn address(server: &Server) -> String {
    format!("http://127.0.0.1:{}", server.port())
}

#[test]
fn the_clients_of_openai_and_sagemaker() {
    let (python, model) = match set_up() {
        Ok(found) => found,
        Err(why) => return skip("the_clients_of_openai_and_sagemaker", &why),
    };
    let folder = tempfile::tempdir().unwrap();
    let embedder = copy_model("bert", &folder.path().join("bert"));
    write(&embedder, "serving.properties", "option.task=feature-extraction\n");
    let chat = Server::start(&model).unwrap();
    let embeddings = Server::start(&embedder).unwrap();
    let bart = Server::start(&root().join("config/models/bart-g2p")).unwrap();
    let output = Command::new(python)
        .args(["-m", "unittest", "discover", "--start-directory"])
        .arg(scripts())
        .env("DRIVETRAIN_URL", address(&chat))
        .env("DRIVETRAIN_EMBEDDINGS_URL", address(&embeddings))
        .env("DRIVETRAIN_BART_URL", address(&bart))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{report}\n{}\n{}\n{}",
        chat.log(),
        embeddings.log(),
        bart.log()
    );
}
