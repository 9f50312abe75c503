//! Cold start of the shipped model: from starting the process to its first correct answer.
//!
//! Target: under 300 ms. `cargo build --release --workspace` first, then `cargo bench -p drivetrain`;
//! the answer is checked in every round.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};

const REQUEST: &str = "POST /invocations HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\n\
                       Content-Length: 7\r\nConnection: close\r\n\r\nserving";
const ANSWER: &str = r#"[{"generated_text":"sˈɝvɪŋ"}]"#;

/// A server that is killed when the round is over.
struct Round(Child);

impl Drop for Round {
    fn drop(&mut self) {
        // The process may have ended by itself, which is what is wanted here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn round() -> Duration {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let binary = Path::new(env!("CARGO_BIN_EXE_drivetrain"));
    let began = Instant::now();
    let child = Command::new(binary)
        .args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--plugins"])
        .arg(binary.parent().expect("the binary lies in a folder"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut round = Round(child);
    while began.elapsed() < Duration::from_secs(30) {
        if let Ok(answer) = ask(port) {
            let took = began.elapsed();
            assert!(answer.ends_with(ANSWER), "wrong answer: {answer}");
            return took;
        }
        if let Ok(Some(status)) = round.0.try_wait() {
            panic!("the server ended with {status}: build the engines in release mode first");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no answer within 30 s");
}

fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(REQUEST.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn cold_start(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cold start");
    group.sample_size(20).measurement_time(Duration::from_secs(10));
    group.bench_function("bart-g2p, first correct answer", |bencher| {
        bencher.iter_custom(|n_rounds| (0..n_rounds).map(|_| round()).sum());
    });
    group.finish();
}

criterion_group!(benches, cold_start);
criterion_main!(benches);
