//! A radix tree over token sequences: which of those it holds begins like a given one.

use std::collections::HashMap;

use drivetrain_engine::TokenId;

/// Names a sequence in the tree.
pub(super) type Key = u64;

/// A radix tree (PATRICIA, Morrison 1968): each node has a run of tokens, and no two children of a
/// node begin with the same one. Every leaf is where a sequence ends.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Node {
    run: Vec<TokenId>,
    parent: usize,
    children: HashMap<TokenId, usize>,
    /// The sequence that ends here.
    key: Option<Key>,
}

/// The root, whose run is empty.
const ROOT: usize = 0;

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new() }
    }
}

impl Tree {
    /// The sequence that has the longest beginning in common with `tokens`, and its length; none if
    /// there is nothing in common.
    pub(super) fn longest(&self, tokens: &[TokenId]) -> Option<(Key, usize)> {
        let (mut node, mut len) = (ROOT, 0);
        while let Some(next) = tokens.get(len).and_then(|t| self.node(node)?.children.get(t)) {
            let run = &self.node(*next)?.run;
            let common = common(run, tokens.get(len..).unwrap_or_default());
            (node, len) = (*next, len + common);
            if common < run.len() {
                break;
            }
        }
        if len == 0 { None } else { Some((self.any_below(node)?, len)) }
    }

    /// A sequence that ends at the node or below it: the nearest on some way down.
    fn any_below(&self, mut node: usize) -> Option<Key> {
        loop {
            let here = self.node(node)?;
            if let Some(key) = here.key {
                return Some(key);
            }
            node = *here.children.values().next()?;
        }
    }

    /// Puts `tokens`, at least one, in under `key`. If they are there already, under another key,
    /// that is given back and stays.
    pub(super) fn insert(&mut self, tokens: &[TokenId], key: Key) -> Option<Key> {
        let (mut node, mut len) = (ROOT, 0);
        while let Some(first) = tokens.get(len) {
            let rest = tokens.get(len..).unwrap_or_default();
            let next = self.node(node).and_then(|n| n.children.get(first)).copied();
            let Some(next) = next else {
                let leaf = self.add(Node { run: rest.to_vec(), parent: node, ..Node::default() });
                self.link(node, *first, leaf);
                node = leaf;
                break;
            };
            let run_len = self.node(next).map_or(0, |n| n.run.len());
            let common = self.node(next).map_or(0, |n| common(&n.run, rest));
            node = if common < run_len { self.split(next, common) } else { next };
            len += common;
        }
        let end = self.nodes.get_mut(node)?;
        if end.key.is_none() {
            end.key = Some(key);
            return None;
        }
        end.key
    }

    /// Takes the sequence out that `tokens` lead to.
    pub(super) fn remove(&mut self, tokens: &[TokenId]) {
        let (mut node, mut len) = (ROOT, 0);
        while let Some(first) = tokens.get(len) {
            let Some(next) = self.node(node).and_then(|n| n.children.get(first)).copied() else {
                return;
            };
            len += self.node(next).map_or(0, |n| n.run.len());
            node = next;
        }
        if let Some(end) = self.nodes.get_mut(node) {
            end.key = None;
        }
        while node != ROOT && self.node(node).is_some_and(|n| n.key.is_none()) {
            let Some(here) = self.nodes.get(node) else { return };
            let (parent, n_children) = (here.parent, here.children.len());
            match n_children {
                0 => {
                    let first = here.run.first().copied();
                    if let (Some(first), Some(above)) = (first, self.nodes.get_mut(parent)) {
                        above.children.remove(&first);
                    }
                    self.drop_node(node);
                }
                1 => {
                    self.join_with_child(node);
                    return;
                }
                _ => return,
            }
            node = parent;
        }
    }

    /// Cuts the node's run after `at` tokens; the new node above it is given back.
    fn split(&mut self, node: usize, at: usize) -> usize {
        let Some(below) = self.nodes.get_mut(node) else { return node };
        let rest = below.run.split_off(at);
        let head = std::mem::replace(&mut below.run, rest);
        let (parent, second) = (below.parent, below.run.first().copied());
        let first = head.first().copied();
        let above = self.add(Node { run: head, parent, ..Node::default() });
        if let Some(first) = first {
            self.link(parent, first, above);
        }
        if let Some(second) = second {
            self.link(above, second, node);
        }
        above
    }

    /// Makes one node of a node without a sequence and its only child.
    fn join_with_child(&mut self, node: usize) {
        let Some(here) = self.nodes.get_mut(node) else { return };
        let Some(child) = here.children.values().next().copied() else { return };
        let (mut run, parent) = (std::mem::take(&mut here.run), here.parent);
        let first = run.first().copied();
        if let Some(below) = self.nodes.get_mut(child) {
            run.append(&mut below.run);
            below.run = run;
        }
        if let Some(first) = first {
            self.link(parent, first, child);
        }
        self.drop_node(node);
    }

    fn link(&mut self, parent: usize, first: TokenId, child: usize) {
        if let Some(above) = self.nodes.get_mut(parent) {
            above.children.insert(first, child);
        }
        if let Some(below) = self.nodes.get_mut(child) {
            below.parent = parent;
        }
    }

    fn add(&mut self, node: Node) -> usize {
        if let Some(idx) = self.free.pop()
            && let Some(place) = self.nodes.get_mut(idx)
        {
            *place = node;
            return idx;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn drop_node(&mut self, node: usize) {
        if let Some(place) = self.nodes.get_mut(node) {
            *place = Node::default();
            self.free.push(node);
        }
    }

    fn node(&self, idx: usize) -> Option<&Node> {
        self.nodes.get(idx)
    }
}

/// Tokens that both begin with.
fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain map, with tokens so few that beginnings are often shared.
        #[test]
        fn it_finds_what_a_search_through_all_finds(
            moves in prop::collection::vec(
                (prop::bool::weighted(0.7), prop::collection::vec(0..3_u32, 1..8)), 1..60),
            asked in prop::collection::vec(prop::collection::vec(0..3_u32, 0..10), 1..20),
        ) {
            let mut tree = Tree::default();
            let mut plain: BTreeMap<Vec<u32>, Key> = BTreeMap::new();
            for (key, (is_insert, tokens)) in moves.into_iter().enumerate() {
                let key = key as Key;
                if is_insert {
                    let old = tree.insert(&tokens, key);
                    prop_assert_eq!(old, plain.get(&tokens).copied());
                    plain.entry(tokens).or_insert(key);
                } else if plain.remove(&tokens).is_some() {
                    tree.remove(&tokens);
                }
            }
            for tokens in asked {
                let best = plain.keys().map(|held| common(held, &tokens)).max().unwrap_or(0);
                match tree.longest(&tokens) {
                    None => prop_assert_eq!(best, 0),
                    Some((key, len)) => {
                        prop_assert_eq!(len, best);
                        let held = plain.iter().find(|(_, k)| **k == key);
                        prop_assert!(held.is_some_and(|(held, _)| common(held, &tokens) == len));
                    }
                }
            }
            let held: Vec<Vec<u32>> = plain.keys().cloned().collect();
            held.iter().for_each(|tokens| tree.remove(tokens));
            prop_assert_eq!(tree.nodes.len() - tree.free.len(), 1, "only the root is left");
        }
    }
}
