//! The shipped model says what its corpus says.

use std::num::NonZeroUsize;
use std::path::Path;

use drivetrain_engine::{
    AdapterId, Batch, Engine, LoadRequest, LoadedModel, Options, Outputs, Segment, SeqId, Services,
    TokenModel, Wanted,
};
use drivetrain_example::Example;

const VOCAB: usize = 256;

fn load(options: &[(&str, &str)]) -> Result<Box<dyn TokenModel>, String> {
    let request = LoadRequest {
        model_name: "example",
        model_dir: &Path::new(env!("CARGO_MANIFEST_DIR")).join("model"),
        adapter_dir: None,
        options: Options::new(options),
        n_threads: NonZeroUsize::MIN,
        services: Services::silent(),
    };
    match Example.load(&request) {
        Ok(LoadedModel::Token(model)) => Ok(model),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The log-probabilities of the byte after `text`.
fn next(model: &mut dyn TokenModel, text: &str) -> [f32; VOCAB] {
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let segments = [Segment {
        sequence: SeqId(1),
        first_token: 0,
        n_tokens: tokens.len() as u32,
        position: 0,
        wanted: Wanted::LastLogits,
        adapter: AdapterId::NONE,
    }];
    let batch = Batch::new(&segments, &tokens, &[]).expect("the batch is right");
    let mut logits = [0.0; VOCAB];
    let mut out = Outputs::new(&mut logits, VOCAB, &mut [], 0);
    model.forward(&batch, &mut out).expect("it runs");
    model.release(SeqId(1));
    logits
}

#[test]
fn the_next_byte_is_as_likely_as_it_is_frequent() {
    let corpus = include_bytes!("../model/corpus.txt");
    let mut model = load(&[("smoothing", "3")]).unwrap();
    for last in [b'q', b'h', b' '] {
        let log_probs = next(&mut *model, &format!("any text {}", char::from(last)));
        let after = |byte: u8| corpus.windows(2).filter(|pair| *pair == [last, byte]).count();
        let total = corpus[..corpus.len() - 1].iter().filter(|byte| **byte == last).count();
        for byte in 0..=u8::MAX {
            let expect = (after(byte) + 3) as f64 / (total + 3 * VOCAB) as f64;
            let found = f64::from(log_probs[usize::from(byte)]).exp();
            assert!((found - expect).abs() < 1e-6, "{byte} after {last}: {found}, not {expect}");
        }
    }
    let after_q = next(&mut *model, "eq");
    let best = (0..VOCAB).max_by(|a, b| after_q[*a].total_cmp(&after_q[*b]));
    assert_eq!(best, Some(usize::from(b'u')));
}

#[test]
fn an_option_that_is_no_number_is_refused() {
    let error = load(&[("smoothing", "0")]).err();
    assert_eq!(error.as_deref(), Some("option.smoothing=0: expected 1 or more"));
}
