//! Adapters of a handler: its own functions load them, in every worker, and in those that come later.

use std::process::Command;

use drivetrain_tests::{Server, Stream};
use serde_json::json;

use super::{model, serve, text};

const SCRIPT: &str = r#"
import os
from djl_python import Output
known = {}
def handle(inputs):
    if inputs.is_empty(): return None
    return Output().add({"pid": os.getpid(), "known": known})
def register_adapter(inputs):
    name = inputs.get_property("name")
    if name == "odd": return Output().error("an odd adapter")
    if name == "large": return Output(507, "No free lora slots")
    known[name] = [inputs.get_as_string("src")[-4:], inputs.get_property("rank")]
    return Output().add({"status": f"Adapter {name} registered"})
def update_adapter(inputs):
    known[inputs.get_property("name")] = ["updated", None]
def unregister_adapter(inputs):
    del known[inputs.get_property("name")]
    print("[METRICS]Unregistered.Count:1|#Model:m|1700000000|c")
    return Output().add("gone")
"#;

fn known(server: &Server) -> serde_json::Value {
    server.post("/invocations", "text/plain", "x").unwrap().json().unwrap()
}

#[test]
fn every_worker_knows_the_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let properties = "option.enable_lora=true\nmaxWorkers=1\n";
    let dir = model(folder.path(), "m", properties, SCRIPT);
    std::fs::create_dir_all(dir.join("adapters/first")).unwrap();
    std::fs::create_dir(dir.join("more")).unwrap();
    let server = serve(&[dir], &[]);
    assert_eq!(known(&server)["known"], json!({"first": ["irst", null]}));
    let register = |name: &str, src: &str| {
        let path = format!("/models/m/adapters?name={name}&src={src}&rank=8");
        let reply = server.post(&path, "text/plain", "").unwrap();
        (reply.status, text(&reply))
    };
    let (status, body) = register("second", "more");
    assert_eq!((status, body.as_str()), (200, "{\n  \"status\":\"Adapter second registered\"\n}"));
    assert_eq!(register("second", "more").0, 409);
    assert_eq!(register("third", "nonesuch").0, 409);
    let (status, body) = register("odd", "more");
    assert!(status == 424 && body.contains("an odd adapter"), "{status} {body}");
    assert_eq!(register("large", "more").0, 507);
    let all = json!({"first": ["irst", null], "second": ["more", "8"]});
    let before = known(&server);
    assert_eq!(before["known"], all);
    // The next worker is told what the last one knew.
    Command::new("kill").args(["-9", &before["pid"].to_string()]).status().unwrap();
    let tell = |server: &Server| {
        let reply = server.post("/invocations", "text/plain", "x").unwrap();
        reply.status == 200 && reply.json().unwrap()["pid"] != before["pid"]
    };
    server.until("another worker answers", tell).unwrap();
    assert_eq!(known(&server)["known"], all);
    let list = server.get("/models/m/adapters").unwrap().json().unwrap();
    let names: Vec<_> = list["adapters"].as_array().unwrap().iter().map(|a| &a["name"]).collect();
    assert_eq!(names, ["first", "second"]);
    let reply = server.post("/models/m/adapters/first/update", "text/plain", "").unwrap();
    assert_eq!((reply.status, text(&reply).as_str()), (200, "Adapter first updated"));
    let reply = server.request("DELETE", "/models/m/adapters/second", &[], b"").unwrap();
    assert_eq!((reply.status, text(&reply).as_str()), (200, "Adapter second unregistered"));
    assert_eq!(known(&server)["known"], json!({"first": ["updated", null]}));
    let reply = server.request("DELETE", "/models/m/adapters/second", &[], b"").unwrap();
    assert_eq!(reply.status, 404);
    // What a handler prints as a metric is on the page.
    let is_counted = |server: &Server| server.metric("Unregistered").unwrap() == Some(1.0);
    server.until("the metric is there", is_counted).unwrap();
}

/// Two workers, of which one has no room: neither has the adapter afterwards.
#[test]
fn what_one_worker_refuses_no_worker_has() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import os, time
from djl_python import Output
known = []
def handle(inputs):
    if inputs.is_empty(): return None
    time.sleep(0.3)
    return Output().add({"pid": os.getpid(), "known": known})
def register_adapter(inputs):
    name = inputs.get_property("name")
    if name == "rare":
        try: os.mkdir("taken")
        except FileExistsError: return Output(507, "No free lora slots")
    known.append(name)
    return Output().add("registered")
def unregister_adapter(inputs):
    known.remove(inputs.get_property("name"))
    return Output().add("gone")
"#;
    let properties = "option.enable_lora=true\nminWorkers=2\nmaxWorkers=2\n";
    let server = serve(&[model(folder.path(), "m", properties, script)], &[]);
    let register = |name: &str| {
        let path = format!("/models/m/adapters?name={name}&src=.");
        server.post(&path, "text/plain", "").unwrap().status
    };
    assert_eq!(register("common"), 200);
    assert_eq!(register("rare"), 507);
    let mut seen = std::collections::BTreeMap::new();
    let ask = |server: &Server| {
        std::thread::scope(|scope| {
            let both = [0, 1].map(|_| scope.spawn(|| known(server)));
            for reply in both {
                let reply = reply.join().unwrap();
                seen.insert(reply["pid"].to_string(), reply["known"].clone());
            }
        });
        seen.len() == 2
    };
    server.until("both workers answer", ask).unwrap();
    assert!(seen.values().all(|known| *known == json!(["common"])), "{seen:?}");
}

/// A worker that does one thing at a time is not ended for being in the middle of it.
#[test]
fn a_change_waits_for_a_stream_longer_than_the_time_limit() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import time
from djl_python import Output
def handle(inputs):
    if inputs.is_empty(): return None
    def items():
        for n in range(8):
            yield n
            time.sleep(0.4)
    return Output().add_stream_content(items())
def register_adapter(inputs):
    return Output().add("registered")
"#;
    let properties = "option.enable_lora=true\nminWorkers=2\noption.predict_timeout=2\n";
    let dir = model(folder.path(), "m", properties, script);
    let server = serve(&[dir], &[]);
    let mut stream = Stream::open(server.port(), "/invocations", "x").unwrap();
    assert!(stream.piece().unwrap().is_some());
    std::thread::scope(|scope| {
        let change = scope.spawn(|| {
            server.post("/models/m/adapters?name=a&src=.", "text/plain", "").unwrap().status
        });
        let mut n_pieces = 1;
        while stream.piece().unwrap().is_some() {
            n_pieces += 1;
        }
        assert_eq!(n_pieces, 8);
        // Its turn comes, or its own time is over; nobody else's is.
        assert!([200, 400].contains(&change.join().unwrap()));
    });
    assert!(!server.log().contains("was replaced"), "{}", server.log());
}

#[test]
fn without_enable_lora_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&[model(folder.path(), "m", "", SCRIPT)], &[]);
    let reply = server.post("/models/m/adapters?name=a&src=.", "text/plain", "").unwrap();
    assert!(reply.status == 400 && text(&reply).contains("LoRA is not enabled."), "{reply:?}");
}
