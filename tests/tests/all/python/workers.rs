//! Several workers, several requests at a time, batches; and workers that are killed.

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use drivetrain_tests::{Reply, Server};
use serde_json::json;

use super::{ask, model, serve, text};

/// Asks for every text at once.
fn ask_at_once(server: &Server, texts: &[String]) -> Vec<Reply> {
    let barrier = Barrier::new(texts.len());
    std::thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = texts
            .iter()
            .map(|text| {
                scope.spawn(move || {
                    barrier.wait();
                    ask(server, text)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn numbered(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("request {n}")).collect()
}

#[test]
fn no_request_is_lost_or_answered_twice_when_workers_are_killed() {
    const N_REQUESTS: usize = 1000;
    const N_CLIENTS: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let script = format!(
        "
import os
from djl_python import Output
seen = os.open({seen:?}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def handle(inputs):
    if inputs.is_empty(): return None
    text = inputs.get_as_string()
    os.write(seen, (text + '\\n').encode())
    return Output().add(f'{{text}} {{os.getpid()}}')
"
    );
    let properties = "minWorkers=2\nmaxWorkers=2\nretry_threshold=100\n";
    let server = serve(&[model(folder.path(), "m", properties, &script)], &[]);
    let next = AtomicUsize::new(0);
    let replies = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..N_CLIENTS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= N_REQUESTS {
                        return;
                    }
                    let reply = ask(&server, &format!("request-{n}"));
                    if reply.status == 200 && n % 50 == 49 {
                        let body = text(&reply);
                        let pid = body.rsplit(' ').next().unwrap();
                        Command::new("kill").args(["-9", pid]).status().unwrap();
                    }
                    replies.lock().unwrap().push((n, reply));
                }
            });
        }
    });
    let replies = replies.into_inner().unwrap();
    assert_eq!(replies.len(), N_REQUESTS);
    let mut n_good = 0;
    for (n, reply) in &replies {
        let body = text(reply);
        match reply.status {
            200 => {
                n_good += 1;
                assert!(body.starts_with(&format!("request-{n} ")), "{n}: {body}");
            }
            500 => assert!(body.contains("Inference Engine Failure"), "{n}: {body}"),
            other => panic!("{n}: {other} {body}"),
        }
    }
    assert!(n_good > N_REQUESTS * 9 / 10, "{n_good} were answered");
    let seen = std::fs::read_to_string(seen).unwrap();
    let lines: Vec<&str> = seen.lines().collect();
    let distinct: HashSet<&str> = lines.iter().copied().collect();
    assert_eq!(distinct.len(), lines.len(), "a request was handled twice");
    assert!(distinct.len() >= n_good);
    assert_eq!(server.get("/ping").unwrap().status, 200);
}

/// A handler that leaks 20 MB a request, or 400 MB in one.
#[test]
fn a_worker_that_leaks_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import os, time
from djl_python import Output
kept = []
def handle(inputs):
    if inputs.is_empty(): return None
    much = inputs.get_as_string() == 'much'
    kept.append(bytearray(os.urandom(1 << 20)) * (400 if much else 20))
    time.sleep(20 if much else 0.3)
    return Output().add(str(os.getpid()))
";
    let properties = "option.max_worker_memory_mb=150\nminWorkers=1\nmaxWorkers=1\n";
    let server = serve(&[model(folder.path(), "m", properties, script)], &[]);
    let mut pids = HashSet::new();
    for _ in 0..20 {
        let reply = ask(&server, "little");
        assert_eq!(reply.status, 200, "{}\n{}", text(&reply), server.log());
        pids.insert(text(&reply));
    }
    assert!((2..=6).contains(&pids.len()), "{pids:?}\n{}", server.log());
    assert!(server.log().contains("more than max_worker_memory_mb=150, and is replaced"));
    let reply = ask(&server, "much");
    let body = text(&reply);
    assert!(reply.status == 500 && body.contains("more than max_worker_memory_mb"), "{body}");
    assert_eq!(ask(&server, "little").status, 200);
}

#[test]
fn requests_are_answered_together() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
from djl_python import Output
def handle(inputs):
    if inputs.is_empty(): return None
    texts = [one.get_as_string() for one in inputs.get_batches()]
    keys = inputs.get_content().keys()
    output = Output().add_property('X-Size', str(inputs.get_batch_size()))
    if 'short' in texts: return output.add('one', batch_index=0)
    if 'refuse' in texts: return Output().error('no batch', 429)
    if 'raise' in texts: raise ValueError('no batch')
    for idx, text in enumerate(texts):
        index = idx if inputs.is_batch() else None
        output.add(f'{text} as {keys[idx]}', batch_index=index)
    return output
";
    let properties = "batch_size=4\nmax_batch_delay=2000\nmaxWorkers=1\n";
    let server = serve(&[model(folder.path(), "m", properties, script)], &[]);
    let replies = ask_at_once(&server, &numbered(4));
    let mut keys = HashSet::new();
    for (n, reply) in replies.iter().enumerate() {
        let body = text(reply);
        let (name, key) = body.split_once(" as ").unwrap();
        assert_eq!((name, reply.header("x-size")), (format!("request {n}").as_str(), Some("4")));
        keys.insert(key.to_owned());
    }
    let expect: HashSet<_> = (0..4).map(|n| format!("batch_{n:03}.data")).collect();
    assert_eq!(keys, expect);
    let with = |text: &str| [&numbered(3)[..], &[text.to_owned()]].concat();
    for reply in ask_at_once(&server, &with("short")) {
        assert_eq!(reply.status, 400);
        assert!(text(&reply).contains("returned 1 outputs for a batch of 4"), "{}", text(&reply));
    }
    for reply in ask_at_once(&server, &with("refuse")) {
        assert_eq!((reply.status, &reply.json().unwrap()["error"]), (429, &json!("no batch")));
    }
    for reply in ask_at_once(&server, &with("raise")) {
        assert_eq!((reply.status, &reply.json().unwrap()["error"]), (424, &json!("no batch")));
    }
    // One that waited in vain for company comes as it is.
    let alone = ask(&server, "alone");
    assert_eq!((text(&alone).as_str(), alone.header("x-size")), ("alone as data", Some("1")));
}

/// A handler that answers only when eight requests are in hand.
const TOGETHER: &str = "
import asyncio, threading
from djl_python import Output, concurrent
";

#[test]
fn an_async_handler_has_many_requests_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "{TOGETHER}
n_waiting, go = 0, None
async def handle(inputs):
    global n_waiting, go
    if inputs.is_empty():
        go = asyncio.Event()
        return None
    text = inputs.get_as_string()
    if text == 'hang': await asyncio.sleep(600)
    n_waiting += 1
    if n_waiting >= 8: go.set()
    await go.wait()
    return Output().add(text)
"
    );
    let properties = "option.predict_timeout=10\n";
    let server = serve(&[model(folder.path(), "m", properties, &script)], &[]);
    let texts = numbered(8);
    for (reply, wanted) in ask_at_once(&server, &texts).iter().zip(&texts) {
        assert_eq!((reply.status, &text(reply)), (200, wanted));
    }
}

#[test]
fn a_late_task_is_taken_back_and_its_worker_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import asyncio, os
from djl_python import Output
async def handle(inputs):
    if inputs.is_empty(): return None
    if inputs.get_as_string() == 'hang': await asyncio.sleep(600)
    return Output().add(str(os.getpid()))
";
    let properties = "option.predict_timeout=2\nmaxWorkers=1\n";
    let server = serve(&[model(folder.path(), "m", properties, script)], &[]);
    let pid = text(&ask(&server, "x"));
    assert_eq!(ask(&server, "hang").status, 400);
    assert_eq!(text(&ask(&server, "x")), pid);
}

#[test]
fn threads_where_the_handler_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "{TOGETHER}
barrier = threading.Barrier(4)
@concurrent(4)
def handle(inputs):
    if inputs.is_empty(): return None
    barrier.wait(30)
    return Output().add(inputs.get_as_string())
"
    );
    let server = serve(&[model(folder.path(), "m", "maxWorkers=1\n", &script)], &[]);
    let texts = numbered(4);
    for (reply, wanted) in ask_at_once(&server, &texts).iter().zip(&texts) {
        assert_eq!((reply.status, &text(reply)), (200, wanted));
    }
}

#[test]
fn further_workers_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import os, time
from djl_python import Output
def handle(inputs):
    if inputs.is_empty(): return None
    time.sleep(1)
    return Output().add(str(os.getpid()))
";
    let properties = "minWorkers=1\nmaxWorkers=3\nmax_idle_time=1\n";
    let server = serve(&[model(folder.path(), "m", properties, script)], &[]);
    let replies = ask_at_once(&server, &numbered(6));
    let pids: HashSet<String> = replies.iter().map(text).collect();
    assert!(pids.len() > 1, "{pids:?}");
    server
        .until("idle workers go", |server| server.log().contains("was idle and is let go"))
        .unwrap();
}

#[test]
fn a_model_without_workers_answers_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let script = "def handle(inputs): return None";
    let server = serve(&[model(folder.path(), "m", "minWorkers=0\nmaxWorkers=0\n", script)], &[]);
    let reply = ask(&server, "x");
    assert_eq!((reply.status, &reply.json().unwrap()["type"]), (503, &json!("WlmException")));
}

#[test]
fn workers_go_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import os
from djl_python import Output
def handle(inputs):
    if inputs.is_empty(): return None
    return Output().add(str(os.getpid()))
";
    // One that has ended may still wait for its parent to look.
    let lives = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    let dir = model(folder.path(), "m", "", script);
    let server = serve(std::slice::from_ref(&dir), &[]);
    let pid = text(&ask(&server, "x"));
    assert!(lives(&pid));
    server.terminate().unwrap();
    assert_eq!(server.exit(Duration::from_secs(10)).unwrap().code, Some(0));
    let deadline = Instant::now() + Duration::from_secs(10);
    while lives(&pid) {
        assert!(Instant::now() < deadline, "the worker goes with the server");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Even where the server has no time to say so.
    let server = serve(&[dir], &[]);
    let pid = text(&ask(&server, "x"));
    Command::new("kill").args(["-9", &server.pid().to_string()]).status().unwrap();
    server.until("the worker goes with the server", |_| !lives(&pid)).unwrap();
}
