//! Reading the pieces of a pickle: numbers, lines, counted strings.

/// Longest string, in bytes. Names of tensors have about 60.
const MAX_STRING_BYTES: usize = 1 << 20;

/// Longest line of a text opcode: a module, a name or a number.
const MAX_LINE_BYTES: usize = 512;

/// A place in a pickle.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n);
        let part = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| {
            format!("{n} bytes are wanted, {} are left", self.bytes.len() - self.at)
        })?;
        self.at += n;
        Ok(part)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as were asked for"))
    }

    pub(super) fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length that was read, as far as memory can hold it.
    pub(super) fn counted(&mut self, n: u64) -> Result<&'a [u8], String> {
        self.take(usize::try_from(n).map_err(|_| format!("{n} bytes are more than any file has"))?)
    }

    /// A string of `n` bytes.
    pub(super) fn string(&mut self, n: u64) -> Result<String, String> {
        let bytes = self.counted(n)?;
        if bytes.len() > MAX_STRING_BYTES {
            return Err(format!("a string has {n} bytes, at most {MAX_STRING_BYTES} are allowed"));
        }
        // Python writes lone surrogates as they are.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The text up to the next line feed.
    pub(super) fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let window = &rest[..rest.len().min(MAX_LINE_BYTES)];
        let n = window.iter().position(|&byte| byte == b'\n').ok_or("a line has no end")?;
        self.at += n + 1;
        std::str::from_utf8(&window[..n]).map_err(|_| "a line is not UTF-8".to_owned())
    }
}
