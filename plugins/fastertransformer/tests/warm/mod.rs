//! Warm steps of a model, and how much memory they take. The engine is the one that the test names: other
//! engines compile this file, too.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use alloc_tracker::Session;
use drivetrain_engine::{
    AdapterId, Batch, Engine, LoadRequest, LoadedModel, ModelKind, Options, Outputs, Segment,
    SeqId, Services, TokenModel, Wanted,
};

use crate::ENGINE;

/// Sequences of a batch.
const N_SEQUENCES: usize = 3;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn load(dir: &Path, options: &[(&str, &str)]) -> Box<dyn TokenModel> {
    let request = LoadRequest {
        model_name: "test",
        model_dir: dir,
        adapter_dir: None,
        options: Options::new(options),
        n_threads: NonZeroUsize::new(2).unwrap(),
        services: Services::silent(),
    };
    match ENGINE.load(&request).unwrap() {
        LoadedModel::Token(model) => model,
        LoadedModel::Request(_) => panic!("a request model"),
    }
}

/// The same sequences again and again: a chunk of a prompt, single tokens, then cut.
struct Steps {
    model: Box<dyn TokenModel>,
    segments: Vec<Segment>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
}

impl Steps {
    fn new(mut model: Box<dyn TokenModel>) -> Self {
        let info = model.info();
        let tokens = vec![7; 64];
        let segments: Vec<Segment> = (0..N_SEQUENCES).map(|idx| segment(idx, 8)).collect();
        if info.kind == ModelKind::EncoderDecoder {
            let batch = Batch::new(&segments, &tokens, &[]).unwrap();
            model.encode(&batch, &mut Outputs::new(&mut [], 1, &mut [], 1)).unwrap();
        }
        let (n_logits, dim) = (info.n_logits as usize, info.dim as usize);
        Self {
            model,
            segments,
            tokens,
            logits: vec![0.0; 64 * n_logits],
            hidden: vec![0.0; 64 * dim],
        }
    }

    fn run(&mut self, n: usize) {
        let info = self.model.info();
        let (n_logits, dim) = (info.n_logits as usize, info.dim as usize);
        for step in 0..n {
            let is_encoder = info.kind == ModelKind::Encoder;
            let position = if is_encoder { 0 } else { step % 40 };
            for (idx, slot) in self.segments.iter_mut().enumerate() {
                *slot = segment(idx, if is_encoder { 1 + step % 9 } else { 1 });
                slot.position = position as u32;
                slot.wanted = if is_encoder { Wanted::Hidden } else { Wanted::LastLogits };
            }
            let batch = Batch::new(&self.segments, &self.tokens, &[]).unwrap();
            let logits = &mut self.logits[..batch.n_logits_rows() * n_logits];
            let hidden = &mut self.hidden[..batch.n_hidden_rows() * dim];
            let mut out = Outputs::new(logits, n_logits.max(1), hidden, dim);
            self.model.forward(&batch, &mut out).unwrap();
            if position == 39 {
                let ids = (0..N_SEQUENCES as u64).map(|idx| SeqId(idx + 1));
                ids.for_each(|id| self.model.truncate(id, 0).unwrap());
            }
        }
    }
}

fn segment(idx: usize, n_tokens: usize) -> Segment {
    Segment {
        sequence: SeqId(idx as u64 + 1),
        first_token: (idx * n_tokens) as u32,
        n_tokens: n_tokens as u32,
        position: 0,
        wanted: Wanted::Nothing,
        adapter: AdapterId::NONE,
    }
}

/// Asserts that a fixture, loaded with these options, takes no memory once it is warm.
pub(crate) fn check(name: &str, options: &[(&str, &str)]) {
    let mut steps = Steps::new(load(&fixture(name), options));
    // A whole number of rounds, so that the measured steps begin where these did.
    steps.run(200);
    let session = Session::new().no_stdout().no_file();
    let operation = session.operation("steps");
    {
        let _span = operation.measure_process().iterations(1000);
        steps.run(1000);
    }
    let report = session.to_report();
    let counts = report.operations().map(|(_, counted)| counted.total_allocations_count());
    assert_eq!(counts.sum::<u64>(), 0, "{name}: allocations in 1,000 warm steps");
    println!("{name}: 1,000 warm steps allocate nothing");
}
