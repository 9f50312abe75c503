//! A reply that is read piece by piece, over a socket of its own that can be let go at any point.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longest silence of a server that is at work.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest line that a server writes: a piece's size, or a header.
const MAX_LINE: u64 = 64 * 1024;

/// A request under way.
#[derive(Debug)]
pub struct Stream {
    socket: BufReader<TcpStream>,
    status: u16,
    headers: Vec<(String, String)>,
    /// Bytes of the body that are still to come, where its length was announced.
    left: Option<usize>,
    is_over: bool,
}

impl Stream {
    /// Posts JSON and returns without waiting for an answer.
    ///
    /// # Errors
    /// If the server can't be reached.
    pub fn send(port: u16, path: &str, body: &str) -> Result<TcpStream> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(SILENCE))?;
        let n_bytes = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {n_bytes}\r\n\r\n"
        );
        socket.write_all(head.as_bytes())?;
        socket.write_all(body.as_bytes())?;
        Ok(socket)
    }

    /// Posts JSON and waits for the answer's head.
    ///
    /// # Errors
    /// If no head comes.
    pub fn open(port: u16, path: &str, body: &str) -> Result<Self> {
        Self::read_head(Self::send(port, path, body)?)
    }

    /// Waits for the head of the answer that comes from `socket`.
    ///
    /// # Errors
    /// If none comes.
    pub fn read_head(socket: TcpStream) -> Result<Self> {
        let mut socket = BufReader::new(socket);
        let first = line(&mut socket)?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status line: {first:?}"))?;
        let mut headers = Vec::new();
        loop {
            let header = line(&mut socket)?;
            match header.split_once(':') {
                Some((name, value)) => {
                    headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                None => break,
            }
        }
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let left = match (find("content-length"), find("transfer-encoding")) {
            (Some(length), _) => Some(length.parse()?),
            (None, Some("chunked")) => None,
            (None, other) => bail!("a body without a length: {other:?}"),
        };
        Ok(Self { socket, status, headers, left, is_over: false })
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of that name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    /// If the body breaks off, or nothing comes.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>> {
        if self.is_over {
            return Ok(None);
        }
        let n_bytes = match self.left.take() {
            Some(n_bytes) => {
                self.is_over = true;
                n_bytes
            }
            None => {
                let size = line(&mut self.socket)?;
                usize::from_str_radix(&size, 16).with_context(|| format!("size {size:?}"))?
            }
        };
        let mut piece = vec![0; n_bytes];
        self.socket.read_exact(&mut piece)?;
        if !self.is_over {
            let end = line(&mut self.socket)?;
            ensure!(end.is_empty(), "a piece ends with {end:?}");
            self.is_over = n_bytes == 0;
        }
        Ok((n_bytes > 0).then_some(piece))
    }

    /// The body from here to its end.
    ///
    /// # Errors
    /// As [`Self::piece`].
    pub fn rest(&mut self) -> Result<String> {
        let mut rest = Vec::new();
        while let Some(piece) = self.piece()? {
            rest.extend_from_slice(&piece);
        }
        Ok(String::from_utf8(rest)?)
    }
}

/// A line without its end.
fn line(socket: &mut BufReader<TcpStream>) -> Result<String> {
    let mut text = String::new();
    socket.take(MAX_LINE).read_line(&mut text)?;
    match text.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => bail!("the connection ended in {text:?}"),
    }
}
