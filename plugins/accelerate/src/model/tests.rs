//! The way of other devices against the kernels, both on the CPU.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::Ordering;

use drivetrain_engine::{
    AdapterId, Batch, Engine, LoadRequest, LoadedModel, ModelKind, Options, Outputs, Segment,
    SeqId, Services, TokenModel, Wanted,
};

use crate::Accelerate;
use crate::rows::WITHOUT_KERNELS;

fn load(fixture: &str) -> Box<dyn TokenModel> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
    let request = LoadRequest {
        model_name: fixture,
        model_dir: &dir,
        adapter_dir: None,
        options: Options::new(&[]),
        n_threads: NonZeroUsize::MIN,
        services: Services::silent(),
    };
    match Accelerate.load(&request).unwrap() {
        LoadedModel::Token(model) => model,
        LoadedModel::Request(_) => panic!("a request model"),
    }
}

/// Hidden states of a prompt of 70 tokens in two pieces beside one of 3 tokens.
fn hidden(model: &mut dyn TokenModel) -> Vec<f32> {
    let dim = model.info().dim as usize;
    let tokens: Vec<u32> = (0..73).map(|i| 5 + i * 17 % 300).collect();
    let segment = |id, first_token, n_tokens, position| Segment {
        sequence: SeqId(id),
        first_token,
        n_tokens,
        position,
        wanted: Wanted::Hidden,
        adapter: AdapterId::NONE,
    };
    let kind = model.info().kind;
    let mut run = |segments: &[Segment], encode: bool| {
        let batch = Batch::new(segments, &tokens, &[]).unwrap();
        let mut hidden = vec![0.0; batch.n_hidden_rows() * dim];
        let mut out = Outputs::new(&mut [], 1, &mut hidden, dim);
        if encode {
            model.encode(&batch, &mut out).unwrap();
        } else {
            model.forward(&batch, &mut out).unwrap();
        }
        hidden
    };
    let (long, short) = (segment(1, 0, 70, 0), segment(2, 70, 3, 0));
    if kind == ModelKind::Encoder {
        return run(&[long, short], false);
    }
    let mut rows = Vec::new();
    if kind == ModelKind::EncoderDecoder {
        rows.extend(run(&[long, short], true));
    }
    rows.extend(run(&[segment(1, 0, 40, 0)], false));
    rows.extend(run(&[segment(1, 40, 30, 40), short], false));
    rows
}

#[test]
fn candles_own_operations_give_the_same() {
    for fixture in [
        "gpt2",
        "llama_gqa",
        "llama3_rope",
        "bart",
        "bert",
        "bloom",
        "deberta_v2",
        "falcon",
        "gemma2",
        "gemma3",
        "gptj",
        "marian",
        "mixtral",
        "mpnet",
        "phi",
        "qwen3",
        "t5",
    ] {
        let expect = hidden(&mut *load(fixture));
        WITHOUT_KERNELS.store(true, Ordering::Relaxed);
        let found = hidden(&mut *load(fixture));
        WITHOUT_KERNELS.store(false, Ordering::Relaxed);
        let worst = found.iter().zip(&expect).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = expect.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
        let close = worst < 1e-4 * largest;
        assert!(found.len() == expect.len() && close, "{fixture}: {worst} of {largest}");
    }
}
