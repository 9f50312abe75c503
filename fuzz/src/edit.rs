//! Changes to a file that is right, so that inputs get past its first bytes.

use bolero::TypeGenerator;

/// One change. Places are in 65536ths of the file's length.
#[derive(Clone, Debug, TypeGenerator)]
pub enum Edit {
    /// Changes bits of a byte.
    Flip {
        /// Where.
        at: u16,
        /// Which bits.
        mask: u8,
    },
    /// Writes a number at the limits of its type over what is there.
    Number {
        /// Where.
        at: u16,
        /// Which number.
        which: u8,
        /// 1, 2, 4 or 8 bytes.
        width: u8,
    },
    /// Writes a sign that means something in a text.
    Sign {
        /// Where.
        at: u16,
        /// Which sign.
        which: u8,
    },
    /// Takes bytes away.
    Remove {
        /// Where.
        at: u16,
        /// How many.
        n_bytes: u8,
    },
    /// Takes everything behind a place away.
    Cut {
        /// Where.
        at: u16,
    },
    /// Puts bytes in.
    Insert {
        /// Where.
        at: u16,
        /// What.
        bytes: [u8; 4],
    },
    /// Puts a piece of a seed in.
    Splice {
        /// Which seed.
        seed: u8,
        /// Where it is taken from.
        from: u16,
        /// Where it is put.
        to: u16,
        /// How many bytes.
        n_bytes: u16,
    },
    /// Repeats a piece of the file.
    Repeat {
        /// Where.
        at: u16,
        /// How many bytes.
        n_bytes: u8,
        /// How often.
        times: u8,
    },
}

const NUMBERS: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff_ffff,
    0x7fff_ffff,
    0x8000_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

const SIGNS: &[u8] = b"\"\\{}[]:,0-9eE.n \n\t=#\xff\xe2\x96\x81<>/";

/// The first seed with its changes.
pub fn apply(seeds: &[Vec<u8>], seed: u8, edits: &[Edit]) -> Vec<u8> {
    let pick = |which: u8| seeds.get(usize::from(which) % seeds.len().max(1));
    let mut bytes = pick(seed).cloned().unwrap_or_default();
    for edit in edits {
        let place = |at: u16| bytes.len() * usize::from(at) / 65536;
        let range = |at: u16, n_bytes: usize| {
            let from = place(at);
            from..(from + n_bytes).min(bytes.len())
        };
        match edit {
            Edit::Flip { at, mask } => {
                let at = place(*at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
            }
            Edit::Number { at, which, width } => {
                let number = NUMBERS[usize::from(*which) % NUMBERS.len()].to_le_bytes();
                let n_bytes = 1 << (width % 4);
                let range = range(*at, n_bytes);
                let n_bytes = range.len();
                bytes.splice(range, number.into_iter().take(n_bytes));
            }
            Edit::Sign { at, which } => {
                let sign = SIGNS[usize::from(*which) % SIGNS.len()];
                let at = place(*at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = sign);
            }
            Edit::Remove { at, n_bytes } => drop(bytes.drain(range(*at, usize::from(*n_bytes)))),
            Edit::Cut { at } => bytes.truncate(place(*at)),
            Edit::Insert { at, bytes: new } => {
                let at = place(*at);
                bytes.splice(at..at, *new);
            }
            Edit::Splice { seed, from, to, n_bytes } => {
                let other = pick(*seed).map_or(&[][..], Vec::as_slice);
                let from = other.len() * usize::from(*from) / 65536;
                let piece = &other[from..(from + usize::from(*n_bytes)).min(other.len())];
                let to = place(*to);
                bytes.splice(to..to, piece.iter().copied());
            }
            Edit::Repeat { at, n_bytes, times } => {
                let range = range(*at, usize::from(*n_bytes));
                let piece = bytes[range.clone()].repeat(usize::from(*times));
                bytes.splice(range, piece);
            }
        }
    }
    bytes
}
