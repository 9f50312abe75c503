//! Streamed replies: piece by piece, with errors where they fall, and an end when nobody reads.

use std::path::Path;

use drivetrain_tests::{Server, Stream};
use serde_json::json;

use super::{ask, model, serve, text};

const SCRIPT: &str = r#"
import os, time
from djl_python import Output

def handle(inputs):
    if inputs.is_empty():
        return None
    name, _, path = inputs.get_as_string().partition(" ")
    output = Output().add_property("Content-Type", "application/jsonlines")
    return globals()["do_" + name](output, path)

def wait_for(path):
    while not os.path.exists(path): time.sleep(0.01)

def do_lines(output, path):
    def items():
        yield ["a", 1]
        wait_for(path)
        yield {"b": None}
    return output.add_stream_content(items())
def do_raw(output, path): return output.add_stream_content(iter([b"\x00\xff", [1]]), None)
def do_own(output, path): return output.add_stream_content(range(3), lambda n: f"<{n}>")
def do_nothing(output, path): return output.add_stream_content([])
def do_at_once(output, path):
    def items():
        raise ValueError("at once")
        yield
    return output.add_stream_content(items())
def do_later(output, path):
    def items():
        yield 1
        raise ValueError("later é")
    return output.add_stream_content(items())
def do_dies(output, path):
    def items():
        yield 1
        time.sleep(0.1)
        os._exit(3)
    return output.add_stream_content(items())
def do_endless(output, path):
    def items():
        try:
            while True: yield "x" * 1000
        finally:
            open(path, "w").close()
    return output.add_stream_content(items())
def do_finalized(output, path):
    return output.add("done").finalize(lambda p: open(p, "w").close(), path)
async def numbers():
    for n in range(2): yield n
def do_async(output, path): return output.add_stream_content(numbers())
"#;

fn body(server: &Server, what: &str) -> (u16, String) {
    let reply = ask(server, what);
    (reply.status, text(&reply))
}

fn check(server: &Server, folder: &Path) {
    let path = |name: &str| folder.join(name).display().to_string();
    // The first piece is there before the second is made.
    let go_on = path("go-on");
    let mut stream =
        Stream::open(server.port(), "/invocations", &format!("lines {go_on}")).unwrap();
    assert_eq!(stream.status(), 200);
    let first = stream.piece().unwrap().unwrap();
    assert_eq!(first, b"{\"outputs\": [\"a\", 1]}\n");
    std::fs::write(&go_on, "").unwrap();
    assert_eq!(stream.piece().unwrap().unwrap(), b"{\"outputs\": {\"b\": null}}\n");
    assert_eq!(stream.piece().unwrap(), None);
    // Forms of items.
    let raw = ask(server, "raw");
    assert_eq!(raw.body, b"\x00\xff[\n  1\n]");
    assert_eq!(raw.header("content-type"), Some("application/jsonlines"));
    assert_eq!(body(server, "own"), (200, "<0><1><2>".to_owned()));
    assert_eq!(body(server, "nothing"), (200, String::new()));
    assert_eq!(body(server, "async"), (200, "{\"outputs\": 0}\n{\"outputs\": 1}\n".to_owned()));
    // Before the first piece an error has its status; after it, it is the last piece.
    let reply = ask(server, "at_once");
    assert_eq!((reply.status, &reply.json().unwrap()["error"]), (424, &json!("at once")));
    assert_eq!(body(server, "later"), (200, "{\"outputs\": 1}\nlater é".to_owned()));
    // A worker that dies in the middle cuts the connection, which is no end.
    let mut stream = Stream::open(server.port(), "/invocations", "dies").unwrap();
    assert!(stream.piece().unwrap().is_some());
    assert!(stream.piece().is_err() || stream.piece().is_err());
    // Nobody reads: the handler's generator is closed, and the worker is free again.
    let closed = path("closed");
    let mut stream =
        Stream::open(server.port(), "/invocations", &format!("endless {closed}")).unwrap();
    assert!(stream.piece().unwrap().is_some());
    drop(stream);
    server.until("the generator is closed", |_| Path::new(&closed).exists()).unwrap();
    let finalized = path("finalized");
    assert_eq!(body(server, &format!("finalized {finalized}")), (200, "done".to_owned()));
    server.until("the finalizer has run", |_| Path::new(&finalized).exists()).unwrap();
}

#[test]
fn pieces_come_as_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&[model(folder.path(), "m", "maxWorkers=1\n", SCRIPT)], &[]);
    check(&server, folder.path());
}

#[test]
fn an_event_loop_streams_alike() {
    let folder = tempfile::tempdir().unwrap();
    let script = SCRIPT.replace("def handle", "async def handle");
    let server = serve(&[model(folder.path(), "m", "option.async_mode=true\n", &script)], &[]);
    check(&server, folder.path());
}
