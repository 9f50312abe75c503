//! A small HTTP server whose answers can be cut, slowed down or replaced, and which remembers what it
//! was asked: what stands in for a service on the other side of an unreliable network.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Longest head of a request.
const MAX_HEAD: u64 = 64 << 10;
/// Written at once.
const CHUNK: usize = 16 << 10;

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    n_sent: Arc<AtomicU64>,
}

impl Asked {
    /// The first header of that name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// First byte and end of the range that was asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().ok()?, last.parse::<usize>().ok()? + 1))
    }

    /// Bytes of the answer's body that were sent so far.
    pub fn n_sent(&self) -> u64 {
        self.n_sent.load(Ordering::Relaxed)
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// Headers; the length is added.
    pub headers: Vec<(String, String)>,
    /// The body; of an answer to `HEAD` only its length counts.
    pub body: Vec<u8>,
}

/// What is done to an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another answer is given.
    Instead(Answered),
    /// The body ends after so many bytes, and with it the connection.
    Cut(usize),
    /// The body comes at so many bytes a second.
    Pace(usize),
}

/// A fault for requests to some paths.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What the path holds.
    pub path: String,
    /// The method, if it matters.
    pub method: Option<&'static str>,
    /// For how many requests.
    pub n_times: usize,
    /// What is done.
    pub fault: Fault,
}

type Handler = dyn Fn(&Asked) -> Answered + Send + Sync;

struct State {
    handler: Box<Handler>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Asked>>,
}

/// A running server. Its threads end with the process.
#[derive(Clone)]
pub struct Wire {
    port: u16,
    state: Arc<State>,
}

impl Wire {
    /// Serves what `handler` answers on a free port.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start(handler: impl Fn(&Asked) -> Answered + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            handler: Box::new(handler),
            rules: Mutex::default(),
            seen: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away in the middle is no failure of the test.
                std::thread::spawn(move || serve(socket, &state).ok());
            }
        });
        Self { port, state }
    }

    /// A server that passes everything on to another one on this machine.
    pub fn proxy(upstream: u16) -> Self {
        Self::start(move |asked| {
            forward(asked, upstream).unwrap_or_else(|error| Answered {
                status: 502,
                body: format!("{error:#}").into_bytes(),
                ..Answered::default()
            })
        })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Adds a fault; of several that fit a request the first is taken.
    pub fn rule(&self, path: &str, n_times: usize, fault: Fault) {
        lock(&self.state.rules).push(Rule { path: path.to_owned(), method: None, n_times, fault });
    }

    /// Adds a fault for one method.
    pub fn rule_for(&self, method: &'static str, path: &str, n_times: usize, fault: Fault) {
        let rule = Rule { path: path.to_owned(), method: Some(method), n_times, fault };
        lock(&self.state.rules).push(rule);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        lock(&self.state.rules).clear();
    }

    /// What was asked since the last call of [`Self::forget`].
    pub fn seen(&self) -> Vec<Asked> {
        lock(&self.state.seen).clone()
    }

    /// Forgets what was asked.
    pub fn forget(&self) {
        lock(&self.state.seen).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(socket: TcpStream, state: &State) -> Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(socket.try_clone()?);
    while let Some(asked) = read_request(&mut reader)? {
        lock(&state.seen).push(asked.clone());
        let fault = take_fault(state, &asked);
        let answered = match &fault {
            Some(Fault::Instead(other)) => other.clone(),
            _ => (state.handler)(&asked),
        };
        if !write_answer(&socket, &asked, &answered, fault.as_ref())? {
            break;
        }
    }
    Ok(())
}

fn take_fault(state: &State, asked: &Asked) -> Option<Fault> {
    let mut rules = lock(&state.rules);
    let fits = |rule: &&mut Rule| {
        rule.n_times > 0
            && asked.path.contains(&rule.path)
            && rule.method.is_none_or(|method| method == asked.method)
    };
    let rule = rules.iter_mut().find(fits)?;
    rule.n_times -= 1;
    Some(rule.fault.clone())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Result<Option<Asked>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let n_bytes = reader.by_ref().take(MAX_HEAD).read_line(&mut line)?;
        if n_bytes == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines.first().context("an empty head")?.split(' ');
    let (method, path) = (first.next().context("a method")?, first.next().context("a path")?);
    let headers: Vec<(String, String)> = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body: Vec::new(),
        n_sent: Arc::default(),
    };
    let length: usize = asked.header("content-length").map_or(Ok(0), str::parse)?;
    asked.body.resize(length, 0);
    reader.read_exact(&mut asked.body)?;
    Ok(Some(asked))
}

/// Writes an answer; false if the connection ends with it.
fn write_answer(
    mut socket: &TcpStream,
    asked: &Asked,
    answered: &Answered,
    fault: Option<&Fault>,
) -> Result<bool> {
    let mut head = format!("HTTP/1.1 {} X\r\n", answered.status);
    for (name, value) in &answered.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answered.body.len()));
    socket.write_all(head.as_bytes())?;
    if asked.method == "HEAD" || answered.status == 304 {
        return Ok(true);
    }
    let cut = match fault {
        Some(Fault::Cut(n_bytes)) => (*n_bytes).min(answered.body.len()),
        _ => answered.body.len(),
    };
    let started = Instant::now();
    let mut n_sent = 0;
    for chunk in answered.body.get(..cut).unwrap_or_default().chunks(CHUNK) {
        socket.write_all(chunk)?;
        n_sent += chunk.len();
        asked.n_sent.store(n_sent as u64, Ordering::Relaxed);
        if let Some(Fault::Pace(per_second)) = fault {
            let due = Duration::from_secs_f64(n_sent as f64 / *per_second as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    Ok(cut == answered.body.len())
}

/// Passes a request on and reads the whole answer.
fn forward(asked: &Asked, upstream: u16) -> Result<Answered> {
    let mut socket = TcpStream::connect(("127.0.0.1", upstream))?;
    let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", asked.method, asked.path);
    for (name, value) in asked.headers.iter().filter(|(name, _)| name != "connection") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes())?;
    socket.write_all(&asked.body)?;
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("an answer's head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("a status")?;
    let mut headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .filter(|(name, _)| name != "connection")
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, n)| n.clone());
    headers.retain(|(name, _)| name != "content-length");
    let mut body = bytes.split_off(end + 4);
    if let (Some(length), "HEAD") = (length, asked.method.as_str()) {
        // What the length of a body that is not sent is told by.
        body = vec![0; length.parse()?];
    }
    Ok(Answered { status: status.parse()?, headers, body })
}
