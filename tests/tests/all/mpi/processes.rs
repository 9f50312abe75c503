//! Ranks on this machine.

use std::time::{Duration, Instant};

use drivetrain_tests::{Server, ServerOptions};

use super::{PROMPT, can_run, is_healthy, is_running, model, options, rank_pids, signal};

const TWO_RANKS: &str = "engine=MPI\noption.tensor_parallel_degree=2\nretry_threshold=10\n";

/// How soon whoever waits has to know of a rank's end.
const SOON: Duration = Duration::from_secs(2);

/// Waits until the model is ready, on ranks other than `old`.
fn ready(server: &Server, old: &[u32]) -> Vec<u32> {
    let has_new = |server: &Server| {
        let pids = rank_pids(&server.log());
        pids.len() == 2 && pids != old && is_healthy(server)
    };
    let is_ready = |server: &Server| {
        has_new(server)
            && server
                .post("/invocations", "application/json", PROMPT)
                .is_ok_and(|r| r.status == 200)
    };
    server.until("the ranks are there", is_ready).unwrap();
    rank_pids(&server.log())
}

fn none_is_left(pids: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|pid| is_running(*pid)) {
        assert!(Instant::now() < deadline, "of {pids:?} one still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_end_of_a_rank_is_told_and_the_model_comes_back() {
    if !can_run("the_end_of_a_rank_is_told_and_the_model_comes_back") {
        return;
    }
    let dir = model("llama_gqa", TWO_RANKS);
    let server = Server::with(&options(dir.path())).unwrap();
    let mut pids = ready(&server, &[]);
    let text = server.post("/invocations", "application/json", PROMPT).unwrap().body;
    for rank in [1, 0] {
        // The request waits for a rank that does nothing, and then for none.
        signal(pids[rank], "STOP");
        let (reply, waited) = std::thread::scope(|scope| {
            let request = scope.spawn(|| {
                let reply = server.post("/invocations", "application/json", PROMPT).unwrap();
                (reply, Instant::now())
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(!request.is_finished());
            let killed = Instant::now();
            signal(pids[rank], "KILL");
            let ill = scope.spawn(|| {
                server.until("/ping tells", |server| !is_healthy(server)).unwrap();
                Instant::now()
            });
            let told = ill.join().unwrap().duration_since(killed);
            assert!(told < SOON, "/ping after {told:?}");
            let (reply, when) = request.join().unwrap();
            (reply, when.duration_since(killed))
        });
        assert!(waited < SOON, "{waited:?}");
        let error = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(reply.status, 503, "{error}");
        let who = format!("rank {rank} (process {} on host ", pids[rank]);
        assert!(error.contains(&who) && error.contains("has ended"), "{error}");
        let new = ready(&server, &pids);
        none_is_left(&pids);
        pids = new;
        let again = server.post("/invocations", "application/json", PROMPT).unwrap();
        assert_eq!((again.status, &again.body), (200, &text));
    }
    server.terminate().unwrap();
    assert_eq!(server.exit(Duration::from_secs(20)).unwrap().code, Some(0));
    none_is_left(&pids);
}

#[test]
fn a_killed_server_leaves_no_rank() {
    if !can_run("a_killed_server_leaves_no_rank") {
        return;
    }
    let dir =
        model("bart", "option.mpi_mode=true\nengine=DeepSpeed\noption.tensor_parallel_degree=2\n");
    let server = Server::with(&options(dir.path())).unwrap();
    server.until("the model is ready", |server| rank_pids(&server.log()).len() == 2).unwrap();
    let pids = rank_pids(&server.log());
    assert!(pids.iter().all(|pid| is_running(*pid)));
    signal(server.pid(), "KILL");
    none_is_left(&pids);
}

#[test]
fn without_mpirun_the_load_says_what_to_install() {
    if !can_run("without_mpirun_the_load_says_what_to_install") {
        return;
    }
    let dir = model("llama_gqa", TWO_RANKS);
    let env = vec![("PATH".to_owned(), dir.path().display().to_string())];
    let server = Server::spawn(&ServerOptions { env, ..options(dir.path()) }).unwrap();
    let exit = server.exit(Duration::from_secs(20)).unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("there is no mpirun on the PATH; install Open MPI"), "{}", exit.log);
}

/// Unloading a model ends its ranks, and they end in good order.
#[test]
fn an_unloaded_model_leaves_no_rank() {
    if !can_run("an_unloaded_model_leaves_no_rank") {
        return;
    }
    let dir = model("llama_gqa", TWO_RANKS);
    let server = Server::with(&options(dir.path())).unwrap();
    let pids = ready(&server, &[]);
    let reply = server.request("DELETE", "/models/m", &[], b"").unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    none_is_left(&pids);
    let log = server.log();
    assert!(!log.contains("mpirun: "), "{log}");
}
