//! Each way a handler can end, one row a request, all of one server that goes on answering.

use serde_json::json;

use super::{ask, model, serve, text};

const SCRIPT: &str = r#"
import os, stat, sys, time
from djl_python import Input, Output

def handle(inputs: Input):
    if inputs.is_empty():
        return None
    return globals()["do_" + inputs.get_as_string().replace(" ", "_")]()

def do_good():
    output = Output(201, "Made").add_property("X-Mine", "yes").add_property("Content-Type", "text/x")
    return output.add("first", key="other").add("good", key="data")
def do_empty(): return Output()
def do_none(): return None
def do_json(): return Output().add({"a": [1, "é"], "b": None})
def do_nan(): return Output().add({"a": float("nan")})
def do_dict(): return {"a": 1}
def do_string(): return "text"
def do_raise(): raise ValueError("boom é")
def do_raise_nothing(): raise ValueError()
def do_exit_politely(): sys.exit(4)
def do_error(): return Output().add_property("content-type", "text/x").error("no such thing", 418)
def do_bad_code(): return Output(code=99)
def do_bad_header(): return Output().add_property("a\nb", "c").add_property("d", "e\r\nf: g").add("x")
def do_memory(): raise MemoryError("too large")
def do_cuda():
    class OutOfMemoryError(RuntimeError): pass
    raise OutOfMemoryError("CUDA out of memory")
def do_print():
    sys.stdout.write("x" * 6_000_000)
    for _ in range(10_000): print("line", file=sys.stderr)
    return Output().add("printed")
def do_read(): return Output().add(repr(sys.stdin.read()))
def do_recurse(): return do_recurse()
def do_exit(): os._exit(3)
def do_kill(): os.kill(os.getpid(), 9)
def do_fork():
    if os.fork() == 0:
        time.sleep(600)
    os._exit(5)
def do_hang(): time.sleep(600)
def do_garbage():
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b"what is this? " * 10)
        except OSError: pass
    time.sleep(600)
"#;

#[test]
fn every_end_of_a_handler_has_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let properties = "option.predict_timeout=4\nmaxWorkers=1\n";
    let server = serve(&[model(folder.path(), "m", properties, SCRIPT)], &[]);
    let failure = |error: &str| {
        (424, json!({"code": 424, "message": "invoke handler failure", "error": error}))
    };
    // What the handler says, passed on to the letter.
    let good = ask(&server, "good");
    assert_eq!((good.status, text(&good).as_str()), (201, "good"));
    assert_eq!((good.header("x-mine"), good.header("content-type")), (Some("yes"), Some("text/x")));
    let whole = ask(&server, "json");
    assert_eq!(text(&whole), "{\n  \"a\":[\n    1,\n    \"é\"\n  ],\n  \"b\":null\n}");
    assert_eq!(whole.header("content-type"), None);
    for (request, status) in [("empty", 200), ("none", 204), ("memory", 507), ("cuda", 507)] {
        let reply = ask(&server, request);
        assert_eq!((reply.status, text(&reply).as_str()), (status, ""), "{request}");
    }
    for (request, (status, body)) in [
        ("dict", failure("Invalid output type: <class 'dict'>")),
        ("string", failure("Invalid output type: <class 'str'>")),
        ("raise", failure("boom é")),
        ("raise nothing", failure("ValueError")),
        ("exit politely", failure("4")),
        ("bad code", failure("Invalid status code: 99, expected 200 to 999")),
        ("nonesuch", failure("'do_nonesuch'")),
        ("recurse", failure("maximum recursion depth exceeded")),
        (
            "error",
            (
                418,
                json!({"code": 418, "message": "invoke handler failure", "error": "no such thing"}),
            ),
        ),
    ] {
        let reply = ask(&server, request);
        assert_eq!((reply.status, reply.json().unwrap()), (status, body), "{request}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{request}");
    }
    assert_eq!(ask(&server, "nan").status, 424);
    assert_eq!(text(&ask(&server, "bad header")), "x");
    assert_eq!(text(&ask(&server, "read")), "''");
    assert_eq!(text(&ask(&server, "print")), "printed");
    // What the worker does not survive, and the next request does not notice.
    for (request, status, type_name, message) in [
        ("exit", 500, "EngineException", "ended with exit code 3"),
        ("kill", 500, "EngineException", "was ended by signal 9"),
        ("fork", 500, "EngineException", "ended with exit code 5"),
        ("garbage", 500, "EngineException", "wrote what is no frame"),
        ("hang", 400, "TranslateException", "m within 4000 ms"),
    ] {
        let reply = ask(&server, request);
        let body = reply.json().unwrap();
        assert_eq!((reply.status, &body["type"]), (status, &json!(type_name)), "{request}: {body}");
        let said = body["message"].as_str().unwrap();
        assert!(said.contains(message) || said.contains("predict_timeout=4"), "{request}: {said}");
        assert_eq!(said.contains("Inference Engine Failure"), status == 500, "{request}: {said}");
        assert_eq!(text(&ask(&server, "good")), "good", "after {request}");
        assert_eq!(server.get("/ping").unwrap().status, 200, "after {request}");
    }
    let log = server.log();
    assert!(log.contains("ValueError: boom"), "the traceback is in the log");
    assert!(log.contains("bytes of output are left out of the log"), "the flood is not");
}

#[test]
fn a_handler_that_always_fails_its_process_has_failed_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&[model(folder.path(), "m", "maxWorkers=1\n", SCRIPT)], &[]);
    for _ in 0..2 {
        assert_eq!(ask(&server, "exit").status, 500);
    }
    // There is no other worker, and none comes.
    let reply = ask(&server, "good");
    assert_eq!(reply.status, 503, "{}", text(&reply));
    server.until("ping sees it", |server| server.get("/ping").unwrap().status == 500).unwrap();
    let ping = server.get("/ping").unwrap().json().unwrap();
    assert_eq!(ping, json!({"m": {"status": "FAILED"}}));
    let reply = ask(&server, "good");
    assert_eq!(reply.status, 503, "{}", text(&reply));
    let ping = server.get("/ping").unwrap();
    assert_eq!((ping.status, ping.json().unwrap()), (500, json!({"m": {"status": "FAILED"}})));
}
