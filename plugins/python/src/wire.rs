//! Frames between the engine and a worker. The worker's side is `djl_python/wire.py`.
//!
//! A frame is a head of 20 bytes (mark, kind, request's id, length of the body) and a body. Integers
//! are big-endian; texts and bytes have their length in front. A worker runs a stranger's code, so
//! nothing it says of a length takes memory before the bytes are there.

use std::io::{self, BufWriter, Read, Write};

use drivetrain_engine::Request;

const MARK: [u8; 4] = *b"DTW1";
const HEAD_BYTES: usize = 20;

/// Largest body of a frame from a worker: its largest reply that is no stream.
const MAX_BODY_BYTES: u32 = 1 << 30;
/// Largest body of any frame but a piece of a reply.
const MAX_PLAIN_BYTES: u32 = 1 << 20;
/// Most headers of a reply.
const MAX_HEADERS: u32 = 1000;

const INIT: u8 = 1;
const CALL: u8 = 2;
const CANCEL: u8 = 3;
const CREDIT: u8 = 4;

const READY: u8 = 1;
const REPLY: u8 = 2;
const PIECE: u8 = 3;
const END: u8 = 4;
const FAILED: u8 = 5;

/// What a worker sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The handler is loaded and takes so many requests at a time.
    Ready { max_in_flight: u32 },
    /// Status, reason and headers of a reply.
    Reply { id: u64, status: u16, reason: String, headers: Vec<(String, String)> },
    /// A piece of a reply's body.
    Piece { id: u64, bytes: Vec<u8> },
    /// The reply is complete.
    End { id: u64 },
    /// The request, or the load, has failed.
    Failed { id: u64, kind: Failure, message: String },
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    BadInput,
    OutOfMemory,
    Internal,
}

/// Why what a worker sent can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the socket")]
    Io(#[from] io::Error),
    #[error("wrote what is no frame: {0}")]
    Garbage(&'static str),
}

/// The next frame; `None` where the worker has closed its end.
pub(crate) fn read(from: &mut impl Read) -> Result<Option<Frame>, WireError> {
    let mut head = [0; HEAD_BYTES];
    let mut n_read = 0;
    while let Some(rest) = head.get_mut(n_read..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if n_read == 0 => return Ok(None),
            Ok(0) => return Err(WireError::Garbage("it ends in a frame's head")),
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut fields = Fields(&head);
    if fields.array()? != MARK {
        return Err(WireError::Garbage("its mark is missing"));
    }
    let [kind, ..] = fields.array::<4>()?;
    let id = fields.u64()?;
    let n_bytes = fields.u32()?;
    let most = if kind == PIECE { MAX_BODY_BYTES } else { MAX_PLAIN_BYTES };
    if n_bytes > most {
        return Err(WireError::Garbage("it is longer than a frame may be"));
    }
    // Grows with what arrives, whatever was announced.
    let mut body = Vec::new();
    from.take(u64::from(n_bytes)).read_to_end(&mut body)?;
    if body.len() != n_bytes as usize {
        return Err(WireError::Garbage("it ends in a frame's body"));
    }
    parse(kind, id, body).map(Some)
}

fn parse(kind: u8, id: u64, body: Vec<u8>) -> Result<Frame, WireError> {
    let mut fields = Fields(&body);
    let frame = match kind {
        PIECE => return Ok(Frame::Piece { id, bytes: body }),
        READY => Frame::Ready { max_in_flight: fields.u32()? },
        REPLY => {
            let (status, reason) = (fields.u16()?, fields.text()?);
            let n_headers = fields.u32()?;
            if n_headers > MAX_HEADERS {
                return Err(WireError::Garbage("it has more headers than a reply may have"));
            }
            let headers = (0..n_headers)
                .map(|_| Ok((fields.text()?, fields.text()?)))
                .collect::<Result<_, WireError>>()?;
            Frame::Reply { id, status, reason, headers }
        }
        END => Frame::End { id },
        FAILED => {
            let kind = match fields.array()? {
                [1] => Failure::BadInput,
                [2] => Failure::OutOfMemory,
                [3] => Failure::Internal,
                [_] => return Err(WireError::Garbage("its failure is of no kind")),
            };
            Frame::Failed { id, kind, message: fields.text()? }
        }
        _ => return Err(WireError::Garbage("it is of no kind")),
    };
    if fields.0.is_empty() { Ok(frame) } else { Err(WireError::Garbage("it is too long")) }
}

/// What is left to read of a body.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) =
            self.0.split_first_chunk().ok_or(WireError::Garbage("it is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, WireError> {
        let n_bytes = self.u32()? as usize;
        let (text, rest) =
            self.0.split_at_checked(n_bytes).ok_or(WireError::Garbage("a text is too long"))?;
        self.0 = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// Sends the model's settings, with which the handler is loaded.
pub(crate) fn write_init(to: &mut impl Write, properties: &[(String, String)]) -> io::Result<()> {
    let mut body = Vec::new();
    put_len(&mut body, properties.len());
    for (key, value) in properties {
        put_bytes(&mut body, key.as_bytes());
        put_bytes(&mut body, value.as_bytes());
    }
    write_frame(to, INIT, 0, &body)
}

/// Says that nobody waits for a request's answer.
pub(crate) fn write_cancel(to: &mut impl Write, id: u64) -> io::Result<()> {
    write_frame(to, CANCEL, id, &[])
}

/// Allows `n` more pieces of a reply.
pub(crate) fn write_credit(to: &mut impl Write, id: u64, n: u32) -> io::Result<()> {
    write_frame(to, CREDIT, id, &n.to_be_bytes())
}

fn write_frame(to: &mut impl Write, kind: u8, id: u64, body: &[u8]) -> io::Result<()> {
    let n_bytes = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = head(kind, id, n_bytes).to_vec();
    frame.extend_from_slice(body);
    to.write_all(&frame)
}

fn head(kind: u8, id: u64, n_bytes: u32) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let (mark, rest) = head.split_at_mut(4);
    mark.copy_from_slice(&MARK);
    let (kinds, rest) = rest.split_at_mut(4);
    kinds.copy_from_slice(&[kind, 0, 0, 0]);
    let (ids, lengths) = rest.split_at_mut(8);
    ids.copy_from_slice(&id.to_be_bytes());
    lengths.copy_from_slice(&n_bytes.to_be_bytes());
    head
}

fn put_len(body: &mut Vec<u8>, n: usize) {
    // Longer lists and texts than these have no place in a frame, whose size was checked.
    body.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    put_len(body, bytes.len());
    body.extend_from_slice(bytes);
}

/// How many bytes the body of a call would have.
pub(crate) fn call_bytes(function: &str, requests: &[Request<'_>]) -> u64 {
    let text = |text: &[u8]| text.len() as u64 + 4;
    let one = |request: &Request<'_>| {
        let properties = request.properties.iter();
        let properties: u64 =
            properties.map(|(k, v)| text(k.as_bytes()) + text(v.as_bytes())).sum();
        let content = request.content.iter();
        let content: u64 = content.map(|(k, v)| text(k.as_bytes()) + text(v)).sum();
        16 + properties + content
    };
    text(function.as_bytes()) + 4 + requests.iter().map(one).sum::<u64>()
}

/// Most bytes that the body of a call may have.
pub(crate) const MAX_CALL_BYTES: u64 = u32::MAX as u64;

/// Sends requests that are to be answered by one call of `function`, under the ids from `first_id` on.
/// Large entries go out from where they lie.
pub(crate) fn write_call(
    to: &mut impl Write,
    first_id: u64,
    function: &str,
    requests: &[Request<'_>],
) -> io::Result<()> {
    let n_bytes = u32::try_from(call_bytes(function, requests))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut to = BufWriter::with_capacity(1 << 16, to);
    to.write_all(&head(CALL, first_id, n_bytes))?;
    write_bytes(&mut to, function.as_bytes())?;
    write_len(&mut to, requests.len())?;
    for (request, id) in requests.iter().zip(first_id..) {
        to.write_all(&id.to_be_bytes())?;
        write_len(&mut to, request.properties.len())?;
        for (key, value) in request.properties {
            write_bytes(&mut to, key.as_bytes())?;
            write_bytes(&mut to, value.as_bytes())?;
        }
        write_len(&mut to, request.content.len())?;
        for (key, value) in request.content {
            write_bytes(&mut to, key.as_bytes())?;
            write_bytes(&mut to, value)?;
        }
    }
    to.flush()
}

fn write_len(to: &mut impl Write, n: usize) -> io::Result<()> {
    let n = u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    to.write_all(&n.to_be_bytes())
}

fn write_bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_len(to, bytes.len())?;
    to.write_all(bytes)
}

#[cfg(test)]
mod tests;
