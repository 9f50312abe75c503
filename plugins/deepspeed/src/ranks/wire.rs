//! Frames between the process that serves a model and its ranks.
//!
//! A frame is a head of 16 bytes (mark, kind, bytes of the body) and a body. Numbers are little-endian, as
//! the floats of a result are, which are copied as they lie. Either side checks a length before it takes
//! memory, and takes it as bytes arrive; buffers are used again.

use std::io::{self, Read};

use drivetrain_engine::{EngineError, ErrorKind};

const MARK: u32 = u32::from_le_bytes(*b"DTR1");
const HEAD_BYTES: usize = 16;

/// Largest body before a peer has shown the token.
pub(crate) const MAX_GREETING_BYTES: u64 = 1 << 10;
/// Largest body of anything but a call and its result.
const MAX_PLAIN_BYTES: u64 = 1 << 20;
/// Largest body of a call or a result.
const MAX_BODY_BYTES: u64 = 1 << 32;
/// Most texts in a list.
const MAX_TEXTS: u32 = 1 << 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// A rank's first word: token, rank, process, host, version.
    Hello = 1,
    /// What to load.
    Load,
    /// How far a rank's load is.
    Progress,
    /// A line for the log.
    Log,
    /// A rank is loaded: what the model is.
    Ready,
    /// Nothing but a sign of life.
    Beat,
    /// The encoder over a batch.
    Encode,
    /// The model over a batch.
    Forward,
    /// A new sequence from another.
    Fork,
    /// A sequence is cut.
    Truncate,
    /// A sequence goes; there is no answer.
    Release,
    /// How many sequences there are.
    Count,
    /// An adapter is loaded.
    LoadAdapter,
    /// An adapter goes; there is no answer.
    UnloadAdapter,
    /// How a call ended.
    Result,
    /// A rank ends with this error.
    Failed,
    /// The model is not needed any more.
    End,
}

impl Kind {
    const ALL: [Self; 17] = [
        Self::Hello,
        Self::Load,
        Self::Progress,
        Self::Log,
        Self::Ready,
        Self::Beat,
        Self::Encode,
        Self::Forward,
        Self::Fork,
        Self::Truncate,
        Self::Release,
        Self::Count,
        Self::LoadAdapter,
        Self::UnloadAdapter,
        Self::Result,
        Self::Failed,
        Self::End,
    ];

    fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    fn most_bytes(self) -> u64 {
        match self {
            Self::Hello => MAX_GREETING_BYTES,
            Self::Encode | Self::Forward | Self::Result => MAX_BODY_BYTES,
            _ => MAX_PLAIN_BYTES,
        }
    }
}

/// Why what a peer sent can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection")]
    Io(#[from] io::Error),
    #[error("what it sent is no frame: {0}")]
    Garbage(&'static str),
}

/// Reads the next frame's body into `body`; `None` where the peer has closed its end.
pub(crate) fn read(
    from: &mut impl Read,
    body: &mut Vec<u8>,
    most_bytes: u64,
) -> Result<Option<Kind>, WireError> {
    let mut head = [0; HEAD_BYTES];
    let mut n_read = 0;
    while let Some(rest) = head.get_mut(n_read..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if n_read == 0 => return Ok(None),
            Ok(0) => return Err(WireError::Garbage("it ends in its head")),
            Ok(n) => n_read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut fields = Fields(&head);
    if fields.u32()? != MARK {
        return Err(WireError::Garbage("its mark is missing"));
    }
    let kind = Kind::of(fields.u32()?).ok_or(WireError::Garbage("it is of no kind"))?;
    let n_bytes = fields.u64()?;
    if n_bytes > kind.most_bytes().min(most_bytes) {
        return Err(WireError::Garbage("it is longer than it may be"));
    }
    body.clear();
    // Grows with what arrives, whatever was announced.
    from.take(n_bytes).read_to_end(body)?;
    if body.len() as u64 != n_bytes {
        return Err(WireError::Garbage("it ends in its body"));
    }
    Ok(Some(kind))
}

/// [`read`] after the greeting.
pub(crate) fn read_any(
    from: &mut impl Read,
    body: &mut Vec<u8>,
) -> Result<Option<Kind>, WireError> {
    read(from, body, u64::MAX)
}

/// A frame that is being written; its memory is used for the next one.
#[derive(Debug, Default)]
pub(crate) struct Frame(Vec<u8>);

impl Frame {
    /// An empty frame of this kind.
    pub(crate) fn begin(&mut self, kind: Kind) -> &mut Self {
        self.0.clear();
        self.u32(MARK).u32(kind as u32).u64(0)
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes with their length in front.
    pub(crate) fn text(&mut self, text: &[u8]) -> &mut Self {
        // Longer ones have no place in a frame, whose size the reader checks.
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX)).bytes(text)
    }

    /// Texts with their number in front.
    pub(crate) fn texts<T: AsRef<str>>(&mut self, texts: &[T]) -> &mut Self {
        self.u32(u32::try_from(texts.len()).unwrap_or(u32::MAX));
        for text in texts {
            self.text(text.as_ref().as_bytes());
        }
        self
    }

    /// Numbers as they lie.
    pub(crate) fn numbers<T: bytemuck::NoUninit>(&mut self, numbers: &[T]) -> &mut Self {
        self.bytes(bytemuck::cast_slice(numbers))
    }

    /// An error with its kind and causes.
    pub(crate) fn error(&mut self, error: &EngineError) -> &mut Self {
        self.u8(kind_number(error.kind())).text(error.message().as_bytes()).texts(error.causes())
    }

    /// The frame, to be sent.
    pub(crate) fn finished(&mut self) -> &[u8] {
        let n_bytes = (self.0.len().saturating_sub(HEAD_BYTES)) as u64;
        if let Some(place) = self.0.get_mut(8..HEAD_BYTES) {
            place.copy_from_slice(&n_bytes.to_le_bytes());
        }
        &self.0
    }
}

/// What is left to read of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) =
            self.0.split_first_chunk().ok_or(WireError::Garbage("it is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) =
            self.0.split_at_checked(n).ok_or(WireError::Garbage("it is too short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a [u8], WireError> {
        let n = self.u32()? as usize;
        self.bytes(n)
    }

    pub(crate) fn string(&mut self) -> Result<String, WireError> {
        Ok(String::from_utf8_lossy(self.text()?).into_owned())
    }

    pub(crate) fn strings(&mut self) -> Result<Vec<String>, WireError> {
        let n = self.u32()?;
        if n > MAX_TEXTS {
            return Err(WireError::Garbage("it lists more than it may"));
        }
        (0..n).map(|_| self.string()).collect()
    }

    /// The next numbers, as many as `to` has.
    pub(crate) fn numbers<T: bytemuck::Pod>(&mut self, to: &mut [T]) -> Result<(), WireError> {
        let to: &mut [u8] = bytemuck::cast_slice_mut(to);
        to.copy_from_slice(self.bytes(to.len())?);
        Ok(())
    }

    pub(crate) fn error(&mut self) -> Result<EngineError, WireError> {
        let number = self.u8()?;
        let kind = KINDS.iter().find(|(_, n)| *n == number);
        let (kind, _) = kind.ok_or(WireError::Garbage("its error is of no kind"))?;
        let message = self.string()?;
        Ok(EngineError::with_causes(*kind, message, self.strings()?))
    }

    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Garbage("it is too long")) }
    }
}

const KINDS: [(ErrorKind, u8); 6] = [
    (ErrorKind::BadInput, 1),
    (ErrorKind::OutOfMemory, 2),
    (ErrorKind::DeviceLost, 3),
    (ErrorKind::Unsupported, 4),
    (ErrorKind::Cancelled, 5),
    (ErrorKind::Internal, 6),
];

fn kind_number(kind: ErrorKind) -> u8 {
    KINDS.iter().find(|(known, _)| *known == kind).map_or(6, |(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let mut frame = Frame::default();
        let error = EngineError::with_causes(ErrorKind::BadInput, "no", vec!["since".to_owned()]);
        let sent = frame.begin(Kind::Failed).u8(7).u64(1 << 40).numbers(&[1.5_f32]).error(&error);
        let bytes = sent.finished().to_vec();
        let (mut body, mut from) = (Vec::new(), bytes.as_slice());
        assert_eq!(read_any(&mut from, &mut body).unwrap(), Some(Kind::Failed));
        let mut fields = Fields(&body);
        assert_eq!((fields.u8().unwrap(), fields.u64().unwrap()), (7, 1 << 40));
        let mut numbers = [0.0_f32];
        fields.numbers(&mut numbers).unwrap();
        assert_eq!((numbers, fields.error().unwrap()), ([1.5], error));
        fields.end().unwrap();
        assert_eq!(read_any(&mut from, &mut body).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut frame = Frame::default();
        let good = frame.begin(Kind::Hello).u32(1).finished().to_vec();
        let changed = |place: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[place] = byte;
            read_any(&mut bytes.as_slice(), &mut Vec::new()).unwrap_err().to_string()
        };
        assert!(changed(0, 0).contains("mark"));
        assert!(changed(4, 0).contains("kind"));
        assert!(changed(4, 18).contains("kind"));
        assert!(changed(9, 16).contains("longer"));
        assert!(changed(8, 5).contains("body"));
        for n in 1..good.len() {
            assert!(read_any(&mut &good[..n], &mut Vec::new()).is_err(), "{n}");
        }
        assert!(Fields(&[255, 255, 255, 255, 1]).strings().is_err());
        assert!(Fields(&[255, 255, 0, 0, 1]).text().is_err());
        assert!(Fields(&[9, 0, 0, 0, 0, 0, 0, 0, 0]).error().is_err());
    }
}
