//! Which blocks of a cache hold which sequence.
//!
//! A cache is blocks of some tokens each, by number. A sequence owns a list of them; a fork shares them,
//! and whoever writes into a block that is shared takes a copy of its own first. So a fork costs at most
//! one block, when it or its origin goes on; beams are lists. Once all lists have been in use, nothing
//! here allocates.

use std::collections::{HashMap, HashSet};

use drivetrain_engine::{EngineError, SeqId};

use crate::plan::{Planned, Sequences};

/// A block to be copied before the batch writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The shared block.
    pub from: u32,
    /// The sequence's own.
    pub to: u32,
}

/// One sequence.
#[derive(Debug, Default)]
struct Table {
    len: usize,
    /// At least enough for `len` tokens.
    blocks: Vec<u32>,
}

/// The blocks of all sequences.
#[derive(Debug)]
pub struct BlockTables {
    block_tokens: usize,
    max_tokens: u64,
    max_sequences: usize,
    /// Blocks of the longest sequence.
    longest: usize,
    tables: HashMap<SeqId, Table>,
    /// Lists that sequences have left, for those that come.
    spare: Vec<Table>,
    /// How many sequences own each block.
    n_owners: Vec<u32>,
    /// Blocks that nobody owns, the next one last.
    free: Vec<u32>,
    /// Sum of the sequences' lengths.
    total_len: u64,
}

impl BlockTables {
    /// Tables of a cache for `max_tokens` tokens and `max_sequences` sequences of `longest` tokens at
    /// most. It has [`n_blocks`](Self::n_blocks) blocks.
    pub fn new(block_tokens: usize, max_tokens: u64, max_sequences: usize, longest: usize) -> Self {
        let n_blocks = usize::try_from(max_tokens).unwrap_or(0).div_ceil(block_tokens);
        let n_blocks = n_blocks + if n_blocks == 0 { 0 } else { max_sequences };
        let n_blocks = n_blocks.min(u32::MAX as usize);
        Self {
            block_tokens,
            max_tokens,
            max_sequences,
            longest: longest.div_ceil(block_tokens),
            tables: HashMap::with_capacity(max_sequences.min(1 << 12)),
            spare: Vec::new(),
            n_owners: vec![0; n_blocks],
            free: (0..n_blocks as u32).rev().collect(),
            total_len: 0,
        }
    }

    /// Blocks that there are.
    pub fn n_blocks(&self) -> usize {
        self.n_owners.len()
    }

    /// Sequences alive.
    pub fn n_sequences(&self) -> usize {
        self.tables.len()
    }

    /// A sequence's blocks, in order; none for one that is not known.
    pub fn blocks(&self, sequence: SeqId) -> &[u32] {
        self.tables.get(&sequence).map_or(&[], |table| &table.blocks)
    }

    /// Makes room for `planned` tokens: newborn sequences are added, and blocks; blocks that are shared
    /// and will be written are listed in `copied`. Lengths stay until [`Self::commit`].
    ///
    /// # Errors
    /// `OutOfMemory` past the capacity; nothing has changed.
    pub fn reserve(
        &mut self,
        planned: &[Planned],
        copied: &mut Vec<Copied>,
    ) -> Result<(), EngineError> {
        copied.clear();
        self.check_room(planned)?;
        for segment in planned {
            if segment.newborn {
                self.insert(segment.sequence);
            }
            let Some(mut table) = self.tables.remove(&segment.sequence) else { continue };
            let first = table.len / self.block_tokens;
            if let Some(block) = table.blocks.get_mut(first)
                && self.n_owners(*block) > 1
                && let Some(own) = self.take_block()
            {
                copied.push(Copied { from: *block, to: own });
                self.give_up(*block);
                *block = own;
            }
            let n_blocks = (table.len + segment.n).div_ceil(self.block_tokens);
            while table.blocks.len() < n_blocks {
                let Some(block) = self.take_block() else { break };
                table.blocks.push(block);
            }
            self.tables.insert(segment.sequence, table);
        }
        Ok(())
    }

    /// The tokens that [`Self::reserve`] made room for are there.
    pub fn commit(&mut self, planned: &[Planned]) {
        for segment in planned {
            if let Some(table) = self.tables.get_mut(&segment.sequence) {
                table.len += segment.n;
                self.total_len += segment.n as u64;
            }
        }
    }

    /// Undoes [`Self::reserve`].
    pub fn roll_back(&mut self, planned: &[Planned]) {
        for segment in planned {
            if segment.newborn {
                self.release(segment.sequence);
            } else if let Some(len) = self.len_of(segment.sequence) {
                self.cut(segment.sequence, len);
            }
        }
    }

    /// As [`TokenModel::fork`](drivetrain_engine::TokenModel::fork).
    ///
    /// # Errors
    /// As there.
    pub fn fork(&mut self, from: SeqId, to: SeqId, len: usize) -> Result<(), EngineError> {
        if self.tables.contains_key(&to) {
            return Err(EngineError::bad_input(format!(
                "fork to sequence {}: there is one of this name already",
                to.0
            )));
        }
        self.check_known(from, len)?;
        self.check_sequences(1)?;
        self.insert(to);
        let n_blocks = len.div_ceil(self.block_tokens);
        let Some(mut table) = self.tables.remove(&to) else { return Ok(()) };
        let shared = self.blocks(from);
        table.blocks.extend_from_slice(shared.get(..n_blocks).unwrap_or(shared));
        for block in &table.blocks {
            if let Some(n) = self.n_owners.get_mut(*block as usize) {
                *n += 1;
            }
        }
        table.len = len;
        self.total_len += len as u64;
        self.tables.insert(to, table);
        Ok(())
    }

    /// As [`TokenModel::truncate`](drivetrain_engine::TokenModel::truncate).
    ///
    /// # Errors
    /// As there.
    pub fn truncate(&mut self, sequence: SeqId, len: usize) -> Result<(), EngineError> {
        self.check_known(sequence, len)?;
        self.cut(sequence, len);
        Ok(())
    }

    /// Adds a sequence without tokens.
    pub fn begin(&mut self, sequence: SeqId) {
        if !self.tables.contains_key(&sequence) {
            self.insert(sequence);
        }
    }

    /// Frees what a sequence alone owns.
    pub fn release(&mut self, sequence: SeqId) {
        let Some(mut table) = self.tables.remove(&sequence) else { return };
        self.total_len -= table.len as u64;
        table.len = 0;
        while let Some(block) = table.blocks.pop() {
            self.give_up(block);
        }
        self.spare.push(table);
    }

    /// Whether `n` more sequences may live.
    ///
    /// # Errors
    /// `OutOfMemory` with the figures.
    pub fn check_sequences(&self, n: usize) -> Result<(), EngineError> {
        if self.tables.len() + n <= self.max_sequences {
            return Ok(());
        }
        Err(EngineError::out_of_memory(format!(
            "{n} more sequences beside {} alive: at most {} may live at once \
             (option.max_rolling_batch_size)",
            self.tables.len(),
            self.max_sequences
        )))
    }

    fn check_room(&self, planned: &[Planned]) -> Result<(), EngineError> {
        self.check_sequences(planned.iter().filter(|segment| segment.newborn).count())?;
        let added: usize = planned.iter().map(|segment| segment.n).sum();
        if self.total_len + added as u64 <= self.max_tokens {
            return Ok(());
        }
        let used = self.used_tokens();
        if used + added as u64 <= self.max_tokens {
            return Ok(());
        }
        Err(EngineError::out_of_memory(format!(
            "{added} more tokens beside {used} cached: the KV cache holds {}",
            self.max_tokens
        )))
    }

    /// Cached tokens; a whole block that sequences share counts once, and so do sequences with the same
    /// blocks throughout.
    fn used_tokens(&self) -> u64 {
        let (mut seen, mut lasts) = (HashSet::new(), HashSet::new());
        let mut used = 0;
        for table in self.tables.values() {
            let whole = table.len / self.block_tokens;
            let own = table.blocks.iter().take(whole).filter(|block| seen.insert(**block)).count();
            used += own * self.block_tokens;
            let rest = table.len % self.block_tokens;
            if rest > 0 && lasts.insert((table.blocks.get(whole), rest)) {
                used += rest;
            }
        }
        used as u64
    }

    fn insert(&mut self, sequence: SeqId) {
        let mut table = self.spare.pop().unwrap_or_default();
        table.blocks.reserve(self.longest);
        self.tables.insert(sequence, table);
    }

    fn cut(&mut self, sequence: SeqId, len: usize) {
        let Some(mut table) = self.tables.remove(&sequence) else { return };
        self.total_len -= table.len.saturating_sub(len) as u64;
        table.len = len;
        while table.blocks.len() > len.div_ceil(self.block_tokens) {
            let Some(block) = table.blocks.pop() else { break };
            self.give_up(block);
        }
        self.tables.insert(sequence, table);
    }

    fn n_owners(&self, block: u32) -> u32 {
        self.n_owners.get(block as usize).copied().unwrap_or(0)
    }

    fn take_block(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        if let Some(n) = self.n_owners.get_mut(block as usize) {
            *n = 1;
        }
        Some(block)
    }

    fn give_up(&mut self, block: u32) {
        if let Some(n) = self.n_owners.get_mut(block as usize) {
            *n -= 1;
            if *n == 0 {
                self.free.push(block);
            }
        }
    }

    fn check_known(&self, sequence: SeqId, len: usize) -> Result<(), EngineError> {
        match self.len_of(sequence) {
            Some(known) if len <= known => Ok(()),
            Some(known) => Err(EngineError::bad_input(format!(
                "sequence {} has {known} tokens, not {len}",
                sequence.0
            ))),
            None => Err(EngineError::bad_input(format!("there is no sequence {}", sequence.0))),
        }
    }
}

impl Sequences for BlockTables {
    fn len_of(&self, sequence: SeqId) -> Option<usize> {
        self.tables.get(&sequence).map(|table| table.len)
    }
}

#[cfg(test)]
mod tests {
    use drivetrain_engine::{AdapterId, Wanted};

    use super::*;

    fn planned(sequence: u64, n: usize, newborn: bool) -> Planned {
        Planned {
            sequence: SeqId(sequence),
            first_row: 0,
            n,
            position: 0,
            wanted: Wanted::Nothing,
            adapter: AdapterId::NONE,
            newborn,
        }
    }

    fn grow(tables: &mut BlockTables, sequence: u64, n: usize) -> Result<Vec<Copied>, EngineError> {
        let newborn = tables.len_of(SeqId(sequence)).is_none();
        let (segment, mut copied) = ([planned(sequence, n, newborn)], Vec::new());
        tables.reserve(&segment, &mut copied)?;
        tables.commit(&segment);
        Ok(copied)
    }

    #[test]
    fn forks_share_until_one_of_them_writes() {
        let mut tables = BlockTables::new(4, 40, 4, 40);
        assert_eq!(grow(&mut tables, 1, 6).unwrap(), []);
        tables.fork(SeqId(1), SeqId(2), 6).unwrap();
        assert_eq!(tables.blocks(SeqId(1)), tables.blocks(SeqId(2)));
        let copied = grow(&mut tables, 2, 3).unwrap();
        assert_eq!(copied.len(), 1);
        assert_eq!(copied[0].from, tables.blocks(SeqId(1))[1]);
        assert_eq!(copied[0].to, tables.blocks(SeqId(2))[1]);
        assert_eq!(tables.blocks(SeqId(1))[0], tables.blocks(SeqId(2))[0]);
        // Now it's the origin's alone.
        assert_eq!(grow(&mut tables, 1, 1).unwrap(), []);
    }

    #[test]
    fn blocks_come_back() {
        let mut tables = BlockTables::new(4, 16, 2, 16);
        let n_free = tables.free.len();
        grow(&mut tables, 1, 9).unwrap();
        tables.truncate(SeqId(1), 3).unwrap();
        assert_eq!(tables.free.len(), n_free - 1);
        tables.fork(SeqId(1), SeqId(2), 3).unwrap();
        tables.release(SeqId(1));
        assert_eq!(tables.free.len(), n_free - 1);
        tables.release(SeqId(2));
        assert_eq!((tables.free.len(), tables.n_sequences()), (n_free, 0));
        let segment = [planned(3, 5, true)];
        tables.reserve(&segment, &mut Vec::new()).unwrap();
        tables.roll_back(&segment);
        assert_eq!((tables.free.len(), tables.n_sequences()), (n_free, 0));
        assert_eq!(tables.total_len, 0);
    }

    #[test]
    fn what_is_full_says_so() {
        let mut tables = BlockTables::new(4, 16, 2, 16);
        grow(&mut tables, 1, 12).unwrap();
        tables.fork(SeqId(1), SeqId(2), 12).unwrap();
        // The shared blocks count once.
        grow(&mut tables, 2, 4).unwrap();
        let error = grow(&mut tables, 1, 1).unwrap_err();
        let expect = "1 more tokens beside 16 cached: the KV cache holds 16";
        assert_eq!(error.message(), expect);
        assert!(tables.fork(SeqId(1), SeqId(3), 1).unwrap_err().message().contains("at most 2"));
        assert!(tables.truncate(SeqId(1), 13).unwrap_err().message().contains("has 12 tokens"));
    }
}
