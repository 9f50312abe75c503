//! Models with a `model.py` over HTTP: what the contract says of every way a handler can end.

mod adapters;
mod loading;
mod matrix;
mod streams;
mod workers;

use std::path::{Path, PathBuf};

use drivetrain_tests::{Reply, Server, ServerOptions, write};

/// A model's directory with this `model.py` and `serving.properties`.
fn model(folder: &Path, name: &str, properties: &str, script: &str) -> PathBuf {
    let dir = folder.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    write(&dir, "model.py", script);
    write(&dir, "serving.properties", &format!("engine=Python\n{properties}"));
    dir
}

/// A server of these models.
fn serve(models: &[PathBuf], env: &[(&str, &str)]) -> Server {
    let models = models.iter().map(|dir| dir.display().to_string()).collect();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Server::with(&ServerOptions { models, env, ..ServerOptions::default() }).unwrap()
}

/// The only model's answer to a text.
fn ask(server: &Server, text: &str) -> Reply {
    server.post("/invocations", "text/plain", text).unwrap()
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}
