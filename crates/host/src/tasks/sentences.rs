//! sentence-transformers' files: which modules make one vector of a text's tokens.
//!
//! Source: sentence-transformers 5.7, `sentence_transformer/modules`.

use drivetrain_artifacts::{JsonFile, ModelDir, UnpackOptions, Weights};
use serde_json::Value;

use super::facts::{MAX_JSON_BYTES, optional};
use crate::HostError;

/// Most modules of a model.
const MAX_MODULES: usize = 64;
/// Largest side of a dense module's matrix.
const MAX_WIDTH: u32 = 1 << 20;

/// What follows the transformer, and what texts are prepared with.
#[derive(Clone, Debug, Default)]
pub(crate) struct SentenceModules {
    /// What is made of the tokens' states, one after the other in one row.
    pub(super) modes: Vec<Pooling>,
    /// Whether the prompt's tokens count.
    pub(super) includes_prompt: bool,
    /// What is done to the row, in order.
    pub(super) steps: Vec<Step>,
    /// Texts that may be put before a text, by name.
    pub(super) prompts: Vec<(String, String)>,
    /// The one that is where nothing else is said.
    pub(super) default_prompt: Option<String>,
    /// Most tokens of a text; longer ones are cut.
    pub(super) max_length: Option<u32>,
    /// Whether texts are read in lower case.
    pub(super) lower_case: bool,
}

/// One row of the states of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    First,
    Max,
    Mean,
    /// The sum over the root of the number of tokens.
    MeanSqrt,
    /// The mean, each token weighed with its place, the first with 1.
    Weighted,
    Last,
}

/// What is done to a row.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// `activation(W x + b)`.
    Dense(Dense),
    /// `x / |x|`.
    Normalize,
}

/// A matrix with a bias and an activation.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    /// `[n_out, n_in]`.
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    n_in: usize,
    n_out: usize,
    activation: Activation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
    Silu,
}

/// The names of modes in new files, in the order that old files' flags have.
const MODES: [(&str, &str, Pooling); 6] = [
    ("cls", "pooling_mode_cls_token", Pooling::First),
    ("max", "pooling_mode_max_tokens", Pooling::Max),
    ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrt),
    ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::Weighted),
    ("lasttoken", "pooling_mode_lasttoken", Pooling::Last),
];

impl SentenceModules {
    /// What a model is that says nothing: the mean of its tokens' states, of length 1.
    pub(super) fn plain() -> Self {
        Self {
            modes: vec![Pooling::Mean],
            includes_prompt: true,
            steps: vec![Step::Normalize],
            ..Self::default()
        }
    }

    /// Reads `modules.json` and the files that it names; `None` where there is none.
    ///
    /// # Errors
    /// A file is missing or broken, or names a module that is not known.
    pub(super) fn read(files: &ModelDir) -> Result<Option<Self>, HostError> {
        let Some(path) = files.file("modules.json")? else { return Ok(None) };
        let json = JsonFile::read_any(&path, MAX_JSON_BYTES)?;
        let wanted = format!("a list of at most {MAX_MODULES} modules with \"type\" and \"path\"");
        let list = json.value().as_array().filter(|list| list.len() <= MAX_MODULES);
        let list = list.ok_or_else(|| json.invalid("modules", &wanted))?;
        let mut modules = Self { includes_prompt: true, ..Self::default() };
        for module in list {
            let text = |key| module.get(key).and_then(Value::as_str);
            let kind = text("type").ok_or_else(|| json.invalid("type", &wanted))?;
            let folder = text("path").unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => modules.read_transformer(files, folder)?,
                "Pooling" => modules.read_pooling(files, folder)?,
                "Dense" => modules.steps.push(Step::Dense(Dense::read(files, folder)?)),
                "Normalize" => modules.steps.push(Step::Normalize),
                "Dropout" => {}
                _ => {
                    let wanted = "Transformer, Pooling, Dense, Normalize or Dropout of \
                                  sentence-transformers";
                    let shown = serde_json::json!({ "type": kind });
                    return Err(JsonFile::from_value(&path, shown).invalid("type", wanted).into());
                }
            }
        }
        if modules.modes.is_empty() {
            modules.modes.push(Pooling::Mean);
        }
        modules.read_prompts(files)?;
        Ok(Some(modules))
    }

    fn read_transformer(&mut self, files: &ModelDir, folder: &str) -> Result<(), HostError> {
        const NAMES: [&str; 4] = [
            "sentence_bert_config.json",
            "sentence_roberta_config.json",
            "sentence_distilbert_config.json",
            "sentence_xlm-roberta_config.json",
        ];
        if !folder.is_empty() && folder != "." {
            let shown = serde_json::json!({ "path": folder });
            let wanted = "\"\": the transformer's files beside modules.json";
            let json = JsonFile::from_value(files.path().join("modules.json"), shown);
            return Err(json.invalid("path", wanted).into());
        }
        for name in NAMES {
            if let Some(json) = optional(files, name)? {
                self.max_length = json.opt_u32("max_seq_length")?.filter(|n| *n > 0);
                self.lower_case = json.opt_bool("do_lower_case")?.unwrap_or(false);
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_pooling(&mut self, files: &ModelDir, folder: &str) -> Result<(), HostError> {
        let json = module_config(files, folder)?;
        self.includes_prompt = json.opt_bool("include_prompt")?.unwrap_or(true);
        if json.contains("pooling_mode") {
            for name in json.opt_strings("pooling_mode")?.unwrap_or_default() {
                let known = MODES.iter().find(|(known, _, _)| *known == name);
                let mode = known.ok_or_else(|| {
                    let names: Vec<&str> = MODES.iter().map(|(name, _, _)| *name).collect();
                    json.invalid("pooling_mode", names.join(", "))
                })?;
                self.modes.push(mode.2);
            }
            return Ok(());
        }
        for (_, flag, mode) in MODES {
            if json.opt_bool(flag)?.unwrap_or(false) {
                self.modes.push(mode);
            }
        }
        Ok(())
    }

    fn read_prompts(&mut self, files: &ModelDir) -> Result<(), HostError> {
        let Some(json) = optional(files, "config_sentence_transformers.json")? else {
            return Ok(());
        };
        let wanted = "an object of texts by name";
        if let Some(prompts) = json.get("prompts")? {
            let object = prompts.as_object().ok_or_else(|| json.invalid("prompts", wanted))?;
            for (name, text) in object {
                let text = text.as_str().ok_or_else(|| json.invalid("prompts", wanted))?;
                self.prompts.push((name.clone(), text.to_owned()));
            }
        }
        self.default_prompt = json.opt_str("default_prompt_name")?.map(str::to_owned);
        Ok(())
    }

    /// The prompt of that name.
    pub(super) fn prompt(&self, name: &str) -> Option<&str> {
        self.prompts.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// Columns of a vector that is made of states of `dim` columns.
    ///
    /// # Errors
    /// A matrix that does not take what is before it.
    pub(super) fn width(&self, dim: usize) -> Result<usize, HostError> {
        let mut width = dim * self.modes.len();
        for step in &self.steps {
            if let Step::Dense(dense) = step {
                if dense.n_in != width {
                    return Err(HostError::bad_request(format!(
                        "modules.json: a Dense module takes {} values and gets {width}",
                        dense.n_in
                    )));
                }
                width = dense.n_out;
            }
        }
        Ok(width)
    }

    /// One vector of the states `rows` `[n, dim]`, of which the first `n_prompt` are a prompt's.
    pub(super) fn embed(&self, rows: &[f32], dim: usize, n_prompt: usize) -> Vec<f32> {
        let n = rows.len() / dim.max(1);
        let skipped = if self.includes_prompt { 0 } else { n_prompt.min(n.saturating_sub(1)) };
        let own = rows.get(skipped * dim..).unwrap_or_default();
        let mut vector = Vec::with_capacity(dim * self.modes.len());
        for mode in &self.modes {
            vector.extend(mode.pool(own, dim, skipped));
        }
        self.after_pooling(vector)
    }

    /// What is done to a row that the tokens' states made.
    pub(super) fn after_pooling(&self, mut vector: Vec<f32>) -> Vec<f32> {
        for step in &self.steps {
            match step {
                Step::Dense(dense) => vector = dense.forward(&vector),
                Step::Normalize => normalise(&mut vector),
            }
        }
        vector
    }
}

impl Pooling {
    /// One row of `rows` `[n, dim]`, the first of which is at place `first`.
    fn pool(self, rows: &[f32], dim: usize, first: usize) -> Vec<f32> {
        let n = rows.len() / dim.max(1);
        let row = |idx: usize| rows.get(idx * dim..(idx + 1) * dim).unwrap_or_default().to_vec();
        let summed = |weight: &dyn Fn(usize) -> f64| {
            let mut sums = vec![0.0_f64; dim];
            for (idx, row) in rows.chunks_exact(dim).enumerate() {
                let weight = weight(idx);
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
            }
            sums
        };
        let over = |sums: Vec<f64>, by: f64| -> Vec<f32> {
            sums.into_iter().map(|sum| (sum / by.max(1e-9)) as f32).collect()
        };
        match self {
            Self::First => row(0),
            Self::Last => row(n.saturating_sub(1)),
            Self::Max => {
                let mut most = row(0);
                for row in rows.chunks_exact(dim).skip(1) {
                    most.iter_mut().zip(row).for_each(|(max, x)| *max = max.max(*x));
                }
                most
            }
            Self::Mean => over(summed(&|_| 1.0), n as f64),
            Self::MeanSqrt => over(summed(&|_| 1.0), (n as f64).sqrt()),
            Self::Weighted => {
                let weight = |idx: usize| (first + idx + 1) as f64;
                over(summed(&weight), (0..n).map(weight).sum())
            }
        }
    }
}

/// Makes a vector's length 1, as torch does: one of nothing stays.
pub(super) fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
}

/// `config.json` of a module's folder.
fn module_config(files: &ModelDir, folder: &str) -> Result<JsonFile, HostError> {
    let name = format!("{folder}/config.json");
    optional(files, &name)?.ok_or_else(|| {
        let shown = serde_json::json!({ "path": folder });
        let json = JsonFile::from_value(files.path().join("modules.json"), shown);
        json.invalid("path", "a folder of the model's with a config.json").into()
    })
}

impl Dense {
    fn read(files: &ModelDir, folder: &str) -> Result<Self, HostError> {
        let json = module_config(files, folder)?;
        let size = |key: &str| match json.u32(key)? {
            n if (1..=MAX_WIDTH).contains(&n) => Ok(n as usize),
            _ => Err(json.invalid(key, format!("a whole number from 1 to {MAX_WIDTH}"))),
        };
        let (n_in, n_out) = (size("in_features")?, size("out_features")?);
        let class = json.opt_str("activation_function")?.unwrap_or("Identity");
        let activation = match class.rsplit('.').next().unwrap_or_default() {
            "Identity" => Activation::Identity,
            "Tanh" => Activation::Tanh,
            "ReLU" => Activation::Relu,
            "GELU" => Activation::Gelu,
            "Sigmoid" => Activation::Sigmoid,
            "SiLU" => Activation::Silu,
            _ => {
                let wanted = "Identity, Tanh, ReLU, GELU, Sigmoid or SiLU of torch.nn";
                return Err(json.invalid("activation_function", wanted).into());
            }
        };
        let folder = json.path().parent().unwrap_or(files.path());
        let weights = Weights::open(&ModelDir::open(folder, &UnpackOptions::default())?)?;
        let tensor = |name: &str, shape: &[usize], key: &str| {
            let found = weights.get(name);
            let found = found.filter(|tensor| tensor.shape() == shape);
            let tensor = found.ok_or_else(|| {
                json.invalid(key, format!("the size of tensor {name} of shape {shape:?} beside it"))
            })?;
            Ok::<_, HostError>(tensor.to_f32_vec()?)
        };
        let weight = tensor("linear.weight", &[n_out, n_in], "in_features")?;
        let has_bias = json.opt_bool("bias")?.unwrap_or(true);
        let bias = has_bias.then(|| tensor("linear.bias", &[n_out], "out_features")).transpose()?;
        Ok(Self { weight, bias, n_in, n_out, activation })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let row = |(idx, row): (usize, &[f32])| {
            let product: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let bias = self.bias.as_ref().and_then(|bias| bias.get(idx)).copied().unwrap_or(0.0);
            self.activation.apply(product + f64::from(bias)) as f32
        };
        self.weight.chunks_exact(self.n_in).enumerate().map(row).collect()
    }
}

impl Activation {
    fn apply(self, x: f64) -> f64 {
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

/// The error function to 1.2e-7: Press et al., Numerical Recipes, `erfcc`.
fn erf(x: f64) -> f64 {
    const C: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let sum = C.iter().rev().fold(0.0, |sum, c| sum * t + c);
    let tail = t * (-x * x + sum).exp();
    if x >= 0.0 { 1.0 - tail } else { tail - 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_tables() {
        // Abramowitz & Stegun, table 7.1.
        for (x, expect) in
            [(0.0, 0.0), (0.5, 0.520_499_88), (1.0, 0.842_700_79), (-2.0, -0.995_322_27)]
        {
            assert!((erf(x) - expect).abs() < 2e-7, "{x}: {}", erf(x));
        }
    }
}
