//! What a model's settings cost in accuracy: the engine with them against the same engine in f32, on a
//! text of this repository.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, Result, bail};
use drivetrain_artifacts::{ModelDir, SpecialTokens, Tokenizer};
use drivetrain_config::{Environment, ModelConfig, ModelInputs, ServerConfig};
use drivetrain_engine::{
    AdapterId, Batch, Engine, HeadKind, LoadRequest, LoadedModel, ModelKind, Options, Outputs,
    Segment, SeqId, Services, TokenModel, TokenModelInfo, Wanted,
};

use super::sheet::Sheet;
use crate::args::Inspect;
use crate::settings::settings;

/// The text: prose, names and figures, as people write them about a program.
const TEXT: &str = concat!(
    include_str!("../../../../docs/scheduling.md"),
    include_str!("../../../../docs/sources.md"),
    include_str!("../../../../docs/tasks.md"),
);

/// Tokens that are computed at a time, each without what went before.
const WINDOW: usize = 512;

/// Settings that mean f32 throughout.
const EXACT: [(&str, &str); 4] = [
    ("dtype", "fp32"),
    ("quantize", "none"),
    ("load_in_8bit", "false"),
    ("kv_cache_dtype", "fp32"),
];

/// Loads the model twice, runs the text through both, and says how far apart they are.
pub(super) fn measure(
    sheet: &mut Sheet,
    args: &Inspect,
    (dir, tokenizer): (&ModelDir, &Tokenizer),
    (server, env): (&ServerConfig, &Environment),
) -> Result<()> {
    let registration = settings(&args.options)?;
    let inputs =
        ModelInputs { name: "model", dir: dir.path(), server, env, registration: &registration };
    let (config, _) = ModelConfig::resolve(inputs)?;
    let registry = crate::engines::discover(&args.plugins, env);
    let engine = registry.select(&config.engine.value)?;
    let own: Vec<(&str, &str)> =
        config.options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let exact: Vec<(&str, &str)> = own.iter().copied().chain(EXACT).collect();
    let n_threads = env.n_threads();
    let mut exact = load(&*engine, dir.location(), &exact, n_threads).context("in f32")?;
    let mut model = load(&*engine, dir.location(), &own, n_threads).context("with its settings")?;
    let tokens = tokenizer.encode(TEXT, SpecialTokens::None)?.ids.clone();
    let info = exact.info();
    let window = WINDOW.min(info.max_positions as usize).min(info.max_batch_tokens as usize);
    let mut found = Comparison::default();
    for window in tokens.chunks(window).filter(|window| window.len() > 1) {
        let (a, b) = (rows(&mut *exact, window)?, rows(&mut *model, window)?);
        found.add(&info, window, &a, &b);
    }
    found.report(sheet, &engine.info().name, tokens.len());
    Ok(())
}

fn load(
    engine: &dyn Engine,
    dir: &Path,
    options: &[(&str, &str)],
    n_threads: NonZeroUsize,
) -> Result<Box<dyn TokenModel>> {
    let request = LoadRequest {
        model_name: "model",
        model_dir: dir,
        adapter_dir: None,
        options: Options::new(options),
        n_threads,
        services: Services::silent(),
    };
    match engine.load(&request)? {
        LoadedModel::Token(model) => Ok(model),
        LoadedModel::Request(_) => bail!("this engine answers whole requests: it has no logits"),
    }
}

/// Logits for each token, where the model says tokens; else hidden states.
fn rows(model: &mut dyn TokenModel, tokens: &[u32]) -> Result<Vec<f32>> {
    let info = model.info();
    let sequence = SeqId(1);
    let wants_logits = says_tokens(&info);
    let segment = Segment {
        sequence,
        first_token: 0,
        n_tokens: tokens.len() as u32,
        position: 0,
        wanted: Wanted::Nothing,
        adapter: AdapterId::NONE,
    };
    if info.kind == ModelKind::EncoderDecoder {
        let segments = [segment];
        let batch = Batch::new(&segments, tokens, &[])?;
        model.encode(&batch, &mut Outputs::new(&mut [], 1, &mut [], 1))?;
    }
    let wanted = if wants_logits { Wanted::AllLogits } else { Wanted::Hidden };
    let segments = [Segment { wanted, ..segment }];
    let batch = Batch::new(&segments, tokens, &[])?;
    let (n_logits, dim) = (info.n_logits as usize, info.dim as usize);
    let mut logits = vec![0.0; batch.n_logits_rows() * n_logits];
    let mut hidden = vec![0.0; batch.n_hidden_rows() * dim];
    let mut out = Outputs::new(&mut logits, n_logits.max(1), &mut hidden, dim);
    let done = model.forward(&batch, &mut out);
    model.release(sequence);
    done?;
    Ok(if wants_logits { logits } else { hidden })
}

fn says_tokens(info: &TokenModelInfo) -> bool {
    info.head == HeadKind::LanguageModel
}

/// What two models made of the same text.
#[derive(Debug, Default)]
struct Comparison {
    /// Sums of the squares of differences, and of f32's values.
    apart: f64,
    size: f64,
    /// Sums of the surprise at each next token: f32's and the other's.
    surprise: [f64; 2],
    n_next: usize,
    n_rows: usize,
    n_same_best: usize,
}

impl Comparison {
    fn add(&mut self, info: &TokenModelInfo, tokens: &[u32], exact: &[f32], found: &[f32]) {
        for (a, b) in exact.iter().zip(found) {
            self.apart += f64::from(a - b).powi(2);
            self.size += f64::from(*a).powi(2);
        }
        self.n_rows += tokens.len();
        if !says_tokens(info) {
            return;
        }
        let width = info.n_logits as usize;
        let pairs = exact.chunks_exact(width).zip(found.chunks_exact(width));
        for ((exact, found), next) in pairs.zip(&tokens[1..]) {
            self.surprise[0] += surprise(exact, *next);
            self.surprise[1] += surprise(found, *next);
            self.n_next += 1;
            self.n_same_best += usize::from(best(exact) == best(found));
        }
    }

    fn report(&self, sheet: &mut Sheet, engine: &str, n_tokens: usize) {
        let apart = (self.apart / self.size.max(f64::MIN_POSITIVE)).sqrt();
        let mut lines =
            vec![format!("{engine}, {n_tokens} tokens of this program's documentation")];
        let mut json = serde_json::json!({
            "engine": engine, "tokens": n_tokens, "relative_distance": apart,
        });
        if self.n_next > 0 {
            let n = self.n_next as f64;
            let [exact, found] = self.surprise.map(|sum| (sum / n).exp());
            let same = self.n_same_best as f64 / n;
            lines.push(format!(
                "perplexity {found:.4}, in f32 {exact:.4}: {:+.2} %",
                (found / exact - 1.0) * 100.0
            ));
            lines.push(format!("the same best token at {:.2} % of positions", same * 100.0));
            json["perplexity"] = found.into();
            json["perplexity_f32"] = exact.into();
            json["same_best_token"] = same.into();
        }
        let what = if self.n_next > 0 { "logits" } else { "hidden states" };
        lines.push(format!("{what} are {:.4} % of their size from f32's", apart * 100.0));
        sheet.lines("accuracy", lines, json);
    }
}

/// `-ln` of the probability of a token.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let own = logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logit - most);
    total.ln() - f64::from(own)
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_is_that_of_its_definition() {
        // Two tokens, probabilities 1/4 and 3/4.
        let logits = [0.0, 3f32.ln()];
        assert!((surprise(&logits, 0) - 4f64.ln()).abs() < 1e-6);
        assert!((surprise(&logits, 1) - (4.0 / 3.0f64).ln()).abs() < 1e-6);
        assert_eq!(best(&logits), Some(1));
        let info = TokenModelInfo {
            head: HeadKind::LanguageModel,
            n_logits: 2,
            ..TokenModelInfo::default()
        };
        let mut comparison = Comparison::default();
        comparison.add(&info, &[0, 1], &[logits, logits].concat(), &[0.0, 0.0, 0.0, 0.0]);
        assert_eq!((comparison.n_next, comparison.n_rows), (1, 2));
        assert!((comparison.surprise[1] - 2f64.ln()).abs() < 1e-6);
        assert!((comparison.apart / comparison.size - 1.0).abs() < 1e-9);
    }
}
