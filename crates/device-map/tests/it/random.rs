//! Random models, limits and options: the same ones each time.

use drivetrain_device_map::{Device, Limits, Model, Placement, Sizing};

use crate::tree::{Element, Leaf, Tree, join};

/// A sequence that its seed decides (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// True in `percent` of a hundred times.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const NAMES: &[&str] = &["0", "1", "2", "10", "a", "b", "aa", "linear1", "layers", "norm"];
const CLASSES: &[&str] = &["Block", "Linear", "Norm", "List"];
/// Bits, and whether they are floating point numbers; a boolean is one bit.
const ELEMENTS: &[(u32, bool)] =
    &[(32, true), (32, true), (32, true), (16, true), (64, true), (8, false), (1, false)];

/// A model and what it is to be placed with.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) tree: Tree,
    pub(crate) ties: Vec<Vec<String>>,
    /// The type that is asked for.
    pub(crate) element: Option<Element>,
    pub(crate) special: Vec<(String, Element)>,
    pub(crate) keep_in_f32: Vec<String>,
    pub(crate) limits: Limits,
    /// Whether the limits are the devices' free memory.
    pub(crate) is_measured: bool,
    pub(crate) placement: Placement,
}

impl Case {
    pub(crate) fn model(&self) -> Model {
        Model::new(self.tree.module(), self.ties.clone()).unwrap()
    }

    pub(crate) fn sizing(&self) -> Sizing {
        let special = self.special.iter();
        Sizing {
            dtype: self.element.map(Element::dtype),
            special_dtypes: special
                .map(|(name, element)| (name.clone(), element.dtype()))
                .collect(),
            keep_in_f32: self.keep_in_f32.clone(),
        }
    }
}

/// Parameters that may be tied, with their numbers of elements.
type Names = Vec<(String, u64)>;

/// A case with at most `depth` modules around a tensor.
pub(crate) fn case(random: &mut Random, depth: usize) -> Case {
    let mut names = Names::new();
    let tree = tree(random, ("", ""), depth, &mut names);
    let special = match names.first() {
        Some((name, _)) if random.chance(10) => vec![(name.clone(), Element::new(8, false))],
        _ => Vec::new(),
    };
    let keep_in_f32 = if random.chance(20) { vec![random.pick(NAMES).to_owned()] } else { vec![] };
    let element = random.pick(&[None, None, Some((16, true)), Some((8, true)), Some((4, false))]);
    let n_classes = random.below(3);
    let placement = Placement {
        no_split_classes: (0..n_classes).map(|_| random.pick(CLASSES).to_owned()).collect(),
        fallback_allocation: random.chance(40),
        offload_buffers: random.chance(30),
    };
    let limits = limits(random, names.len() as u64 * 60);
    let is_measured = random.chance(20);
    Case {
        tree,
        ties: ties(random, names),
        element: element.map(|(bits, is_floating)| Element::new(bits, is_floating)),
        special,
        keep_in_f32,
        limits: if is_measured { Limits::measured(limits) } else { Limits::given(limits) },
        is_measured,
        placement,
    }
}

fn limits(random: &mut Random, about: u64) -> Vec<(Device, u64)> {
    let some = |random: &mut Random| about * random.below(20) as u64 / 10 + random.below(9) as u64;
    let n = random.below(5) as u32;
    let first = if random.chance(90) { 0 } else { random.below(3) as u32 };
    let mut limits = Vec::new();
    for index in first..first + n {
        let bytes = if random.chance(5) { 0 } else { some(random) / u64::from(n) };
        limits.push((Device::Accelerator(index), bytes));
    }
    if random.chance(5) {
        limits.push((Device::Mps, some(random)));
    }
    if random.chance(60) {
        limits.push((Device::Cpu, some(random)));
    }
    limits
}

/// The module `name` in the module `path`. Its first parameter may be tied.
fn tree(random: &mut Random, (path, name): (&str, &str), depth: usize, names: &mut Names) -> Tree {
    let path = join(path, name);
    let n_children = if depth == 0 { 0 } else { random.below(5) };
    let n_parameters = if n_children > 0 { random.below(2) } else { random.below(3) };
    let leaf = |random: &mut Random, name: &str, n: u64| {
        let (bits, is_floating) = random.pick(ELEMENTS);
        Leaf { name: name.to_owned(), n, element: Element::new(bits, is_floating) }
    };
    let mut tree =
        Tree { name: name.to_owned(), class: random.pick(CLASSES).to_owned(), ..Tree::default() };
    for (idx, parameter) in ["weight", "w"].into_iter().take(n_parameters).enumerate() {
        let n = random.pick(&[1, 4, 4, 4, 20, 20, 33]);
        if idx == 0 {
            names.push((join(&path, parameter), n));
        }
        tree.parameters.push(leaf(random, parameter, n));
    }
    for buffer in ["mean", "mask"].into_iter().take(random.pick(&[0, 0, 0, 1, 2])) {
        let n = random.below(30) as u64;
        tree.buffers.push(leaf(random, buffer, n));
    }
    let mut free = NAMES.to_vec();
    for _ in 0..n_children {
        let name = free.swap_remove(random.below(free.len()));
        tree.children.push(self::tree(random, (&path, name), depth - 1, names));
    }
    tree
}

/// Groups of parameters with the same number of elements.
fn ties(random: &mut Random, mut free: Names) -> Vec<Vec<String>> {
    let mut ties = Vec::new();
    for _ in 0..random.pick(&[0, 0, 0, 0, 1, 1, 2, 3]) {
        if free.is_empty() {
            break;
        }
        let (first, n) = free.swap_remove(random.below(free.len()));
        let mut group = vec![first];
        while group.len() < 4 && random.chance(70) {
            let Some(place) = free.iter().position(|(_, other)| *other == n) else { break };
            group.push(free.swap_remove(place).0);
        }
        ties.push(group);
    }
    ties
}
