//! Pieces of replies, counted among those that wait: a worker can't fill the server's memory with them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// A piece of a reply. It counts as waiting until it is dropped.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Vec<u8>,
    waiting: Arc<AtomicU64>,
}

impl Piece {
    /// Counts `bytes` in. None if others wait, and all together would be more than `most`.
    pub(crate) fn new(bytes: Vec<u8>, waiting: &Arc<AtomicU64>, most: u64) -> Option<Self> {
        let n_bytes = bytes.len() as u64;
        let others = waiting.fetch_add(n_bytes, Relaxed);
        let piece = Self { bytes, waiting: Arc::clone(waiting) };
        (others == 0 || others.saturating_add(n_bytes) <= most).then_some(piece)
    }

    /// What it is made of.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes.len() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_count_for_as_long_as_they_wait() {
        let waiting = Arc::default();
        let piece = |n: usize| Piece::new(vec![7; n], &waiting, 10);
        let large = piece(30).unwrap();
        assert!(piece(1).is_none(), "one that is large alone is the only one");
        assert_eq!(large.bytes(), [7; 30]);
        drop(large);
        let two = [piece(4).unwrap(), piece(6).unwrap()];
        assert!(piece(1).is_none());
        drop(two);
        assert_eq!(waiting.load(Relaxed), 0);
    }
}
