//! Prefixes that are kept for requests to come: sequences of the engine that nobody runs any more.
//!
//! A prompt's whole blocks are kept as soon as they are computed, and a finished answer's when it
//! ends. A later input that begins alike forks from them and skips what they hold (as RadixAttention
//! does, Zheng et al. 2024, by sequence instead of by block). For encoder-decoder models a prefix
//! is the whole encoder input and the decoder's tokens after it, so that the same input is encoded
//! once.
//!
//! What is kept counts against the KV budget, and gives way to whatever is to run: the least
//! recently used goes first, leaves before what they grew from.

mod tree;

use std::collections::{HashMap, HashSet};

use drivetrain_engine::{AdapterId, SeqId, TokenId, TokenModel};

use super::capacity::Cache;
use tree::Tree;

/// Names a kept prefix.
pub(crate) type PrefixKey = tree::Key;

/// Between the encoder's tokens and the decoder's: no token has this id.
const SEPARATOR: TokenId = TokenId::MAX;
/// Ahead of what went through an adapter, together with its id: no token is as high.
const ADAPTER: TokenId = 1 << 31;

/// The prefixes kept for one model.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    tree: Tree,
    kept: HashMap<PrefixKey, Kept>,
    next_key: PrefixKey,
    clock: u64,
    /// What all of them take.
    used: Cache,
}

/// A prefix, in whole blocks.
#[derive(Debug)]
struct Kept {
    sequence: SeqId,
    /// The adapter if there is one, then encoder tokens, separator and tokens, or tokens alone.
    path: Vec<TokenId>,
    n_tokens: usize,
    /// Tokens in blocks that it shares with what it grew from.
    n_shared: usize,
    /// What it takes beside what it grew from.
    own: Cache,
    grew_from: Option<PrefixKey>,
    /// Running groups, and prefixes that grew from it.
    n_users: usize,
    last_used: u64,
}

/// A prefix that an input begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) key: PrefixKey,
    pub(crate) sequence: SeqId,
    /// Decoder tokens in common, in whole blocks; 0 where only the encoder's input is the same.
    pub(crate) n_tokens: usize,
}

/// What is to be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep<'a> {
    pub(crate) sequence: SeqId,
    pub(crate) adapter: AdapterId,
    pub(crate) encoder: &'a [TokenId],
    /// In whole blocks.
    pub(crate) tokens: &'a [TokenId],
    /// The prefix it grew from, which its owner has pinned.
    pub(crate) grew_from: Option<PrefixKey>,
    /// Tokens in whole blocks that it shares with that.
    pub(crate) n_shared: usize,
}

impl Keep<'_> {
    /// What it takes beside what it grew from.
    pub(crate) fn own(&self) -> Cache {
        let kv = self.tokens.len().saturating_sub(self.n_shared) as u64;
        let cross = if self.grew_from.is_some() { 0 } else { self.encoder.len() as u64 };
        Cache { kv, cross }
    }
}

impl Prefixes {
    /// What all prefixes take.
    pub(crate) fn used(&self) -> Cache {
        self.used
    }

    /// How many there are, each a sequence of the engine's.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// The longest kept beginning of an input, of which at least one token is left to run.
    pub(crate) fn find(
        &self,
        adapter: AdapterId,
        encoder: &[TokenId],
        tokens: &[TokenId],
        block: usize,
    ) -> Option<Hit> {
        let head = head_len(adapter, encoder);
        let (key, len) = if head == 0 {
            self.tree.longest(tokens)?
        } else {
            self.tree.longest(&path(adapter, encoder, tokens))?
        };
        let in_common = len.checked_sub(head)?.min(tokens.len().saturating_sub(1));
        let n_tokens = in_common / block * block;
        if n_tokens == 0 && encoder.is_empty() {
            return None;
        }
        let sequence = self.kept.get(&key)?.sequence;
        Some(Hit { key, sequence, n_tokens })
    }

    /// Whether exactly this is kept.
    pub(crate) fn holds(
        &self,
        adapter: AdapterId,
        encoder: &[TokenId],
        tokens: &[TokenId],
    ) -> bool {
        let path = path(adapter, encoder, tokens);
        let found = self.tree.longest(&path);
        found.is_some_and(|(key, len)| {
            len == path.len() && self.kept.get(&key).is_some_and(|kept| kept.path == path)
        })
    }

    /// Keeps what is in use from going away.
    pub(crate) fn pin(&mut self, key: PrefixKey) {
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.n_users += 1;
            kept.last_used = self.clock;
        }
    }

    /// Undoes one [`Self::pin`].
    pub(crate) fn unpin(&mut self, key: PrefixKey) {
        self.clock += 1;
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.n_users = kept.n_users.saturating_sub(1);
            kept.last_used = self.clock;
        }
    }

    /// Keeps a sequence, which is the tree's from now on; not pinned. `None` if the same is kept
    /// already: then the sequence stays its owner's.
    pub(crate) fn insert(&mut self, keep: Keep<'_>) -> Option<PrefixKey> {
        let key = self.next_key;
        let path = path(keep.adapter, keep.encoder, keep.tokens);
        if path.is_empty() || self.tree.insert(&path, key).is_some() {
            return None;
        }
        self.next_key += 1;
        self.used.add(keep.own());
        if let Some(below) = keep.grew_from {
            self.pin(below);
        }
        self.clock += 1;
        let kept = Kept {
            sequence: keep.sequence,
            path,
            n_tokens: keep.tokens.len(),
            n_shared: keep.n_shared,
            own: keep.own(),
            grew_from: keep.grew_from,
            n_users: 0,
            last_used: self.clock,
        };
        self.kept.insert(key, kept);
        Some(key)
    }

    /// Drops what `key` grew from if nothing else needs it: `key` holds all of it.
    pub(crate) fn absorb(&mut self, key: PrefixKey, model: &mut dyn TokenModel) {
        let Some(below) = self.kept.get(&key).and_then(|kept| kept.grew_from) else { return };
        let is_inside = self.kept.get(&below).is_some_and(|lower| {
            lower.n_users == 1
                && self.kept.get(&key).is_some_and(|upper| upper.path.starts_with(&lower.path))
        });
        if !is_inside {
            return;
        }
        let Some(lower) = self.kept.remove(&below) else { return };
        self.tree.remove(&lower.path);
        model.release(lower.sequence);
        if let Some(upper) = self.kept.get_mut(&key) {
            self.used.subtract(upper.own);
            self.used.subtract(lower.own);
            upper.n_shared = upper.n_shared.min(lower.n_shared);
            upper.own.kv = (upper.n_tokens - upper.n_shared) as u64;
            upper.own.cross += lower.own.cross;
            upper.grew_from = lower.grew_from;
            self.used.add(upper.own);
        }
    }

    /// What could be dropped while `bases` are in use.
    pub(crate) fn reclaimable(&self, bases: impl Iterator<Item = PrefixKey>) -> Cache {
        let mut needed = HashSet::new();
        let mut free = self.used;
        for base in bases {
            let mut next = Some(base);
            while let Some(key) = next.filter(|key| needed.insert(*key)) {
                let Some(kept) = self.kept.get(&key) else { break };
                free.subtract(kept.own);
                next = kept.grew_from;
            }
        }
        free
    }

    /// Drops the least recently used prefix that nobody needs; whether there was one.
    pub(crate) fn evict(&mut self, model: &mut dyn TokenModel) -> bool {
        let idle = self.kept.iter().filter(|(_, kept)| kept.n_users == 0);
        let Some((&key, _)) = idle.min_by_key(|(_, kept)| kept.last_used) else { return false };
        let Some(kept) = self.kept.remove(&key) else { return false };
        self.tree.remove(&kept.path);
        self.used.subtract(kept.own);
        model.release(kept.sequence);
        if let Some(below) = kept.grew_from
            && let Some(below) = self.kept.get_mut(&below)
        {
            below.n_users = below.n_users.saturating_sub(1);
        }
        true
    }
}

/// Tokens of a path before the decoder's.
fn head_len(adapter: AdapterId, encoder: &[TokenId]) -> usize {
    let input = if encoder.is_empty() { 0 } else { encoder.len() + 1 };
    input + usize::from(adapter != AdapterId::NONE)
}

fn path(adapter: AdapterId, encoder: &[TokenId], tokens: &[TokenId]) -> Vec<TokenId> {
    let mut path = Vec::with_capacity(head_len(adapter, encoder) + tokens.len());
    if adapter != AdapterId::NONE {
        path.push(ADAPTER | adapter.0);
    }
    if !encoder.is_empty() {
        path.extend_from_slice(encoder);
        path.push(SEPARATOR);
    }
    path.extend_from_slice(tokens);
    path
}
