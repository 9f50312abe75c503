//! A model under test: loaded with some settings, asked one by one or all at once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use drivetrain_config::{Environment, ModelSpec, ServerConfig, ServerOverrides};
use drivetrain_host::{
    Completion, EngineRegistry, Event, GenerateRequest, Host, HostError, ModelHandle, Prompt,
    TokenDetail,
};
use drivetrain_tests::{copy_dir, write};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::watched::{Seen, WatchedEngine};

/// The ways a model may be served that must not change its answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Configuration {
    pub(super) keeps_prefixes: bool,
    /// Most prompt tokens of one step.
    pub(super) chunk: usize,
    /// Most tokens looked up in the text and checked in one step.
    pub(super) n_lookup: usize,
    /// Most sequences that run at once.
    pub(super) n_places: usize,
}

impl Configuration {
    /// The plainest: no sharing, no guessing, whole prompts.
    pub(super) const PLAIN: Self =
        Self { keeps_prefixes: false, chunk: 512, n_lookup: 0, n_places: 32 };

    /// All of them, the plainest last.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for chunk in [1, 7, 512] {
            for (n_lookup, n_places) in [(4, 96), (0, 32)] {
                for keeps_prefixes in [true, false] {
                    all.push(Self { keeps_prefixes, chunk, n_lookup, n_places });
                }
            }
        }
        all
    }

    /// Whether texts are cut into passes as transformers cuts them: the whole prompt, then one token
    /// after another.
    pub(super) fn cuts_as_transformers(self) -> bool {
        self.chunk == Self::PLAIN.chunk && self.n_lookup == 0
    }

    fn properties(self) -> String {
        format!(
            "option.task={{task}}\noption.enable_prefix_caching={}\n\
             option.max_rolling_batch_prefill_tokens={}\noption.prompt_lookup_num_tokens={}\n\
             option.max_rolling_batch_size={}\n",
            self.keeps_prefixes, self.chunk, self.n_lookup, self.n_places
        )
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keeps_prefixes, chunk, n_lookup, n_places } = self;
        write!(
            f,
            "prefixes {keeps_prefixes}, chunks of {chunk}, lookup of {n_lookup}, {n_places} places"
        )
    }
}

/// A model's files, ready to be served.
pub(super) struct Files {
    dir: TempDir,
    is_answering: bool,
}

impl Files {
    /// A copy of a model's directory. A variant, which has no tokenizer and no defaults, is given a
    /// tokenizer of the words `t0`, `t1` and so on and `defaults`.
    pub(super) fn copy(from: &Path, defaults: Option<&Value>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let to = copy_dir(from, dir.path());
        let config = std::fs::read(to.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        if !to.join("tokenizer.json").exists() {
            let n_words = config["vocab_size"].as_u64().unwrap();
            write(&to, "tokenizer.json", &word_tokenizer(n_words).to_string());
            write(&to, "generation_config.json", &defaults.unwrap().to_string());
        }
        Self { dir, is_answering: config["is_encoder_decoder"] == true }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }
}

fn word_tokenizer(n_words: u64) -> Value {
    let vocab: Map<String, Value> = (0..n_words).map(|id| (format!("t{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    })
}

/// What came of one request.
#[derive(Debug)]
pub(super) struct Answer {
    /// By prompt and choice.
    pub(super) completions: Vec<Completion>,
    /// Tokens of the prompt with their log-probabilities, where asked for.
    pub(super) prompt: Vec<TokenDetail>,
}

/// A loaded model.
pub(super) struct Served {
    pub(super) seen: Arc<Seen>,
    host: Host,
    model: ModelHandle,
    runtime: Runtime,
}

impl Served {
    pub(super) fn load(files: &Files, configuration: Configuration) -> Self {
        let task = if files.is_answering { "text2text-generation" } else { "text-generation" };
        let dir = files.path();
        write(&dir, "serving.properties", &configuration.properties().replace("{task}", task));
        let cli = ServerOverrides { sagemaker_root: "/nonexistent".into(), ..Default::default() };
        let env = Environment::default();
        let (server, _) = ServerConfig::resolve(&cli, &env).unwrap();
        let seen = Arc::<Seen>::default();
        let engine = Arc::new(WatchedEngine::open(Arc::clone(&seen)));
        let host = Host::new(Arc::new(server), env, EngineRegistry::with(engine));
        let model = host.load(&ModelSpec::at(dir.to_str().unwrap())).unwrap();
        model.wait_ready_blocking().unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        Self { seen, host, model, runtime }
    }

    /// Asks one thing and waits for its answer.
    pub(super) fn ask(&self, request: GenerateRequest) -> Result<Answer, HostError> {
        self.runtime.block_on(answer(self.model.clone(), request))
    }

    /// Asks all at once; the answers in the requests' order.
    pub(super) fn ask_together(
        &self,
        requests: Vec<GenerateRequest>,
    ) -> Vec<Result<Answer, HostError>> {
        self.runtime.block_on(async {
            let running: Vec<_> = requests
                .into_iter()
                .map(|request| tokio::spawn(answer(self.model.clone(), request)))
                .collect();
            let mut answers = Vec::with_capacity(running.len());
            for task in running {
                answers.push(task.await.unwrap());
            }
            answers
        })
    }

    /// Waits until nothing is in hand, and then for the engine to hold no sequence, as it does soon
    /// unless prefixes are kept or something leaks; how many it holds.
    pub(super) fn n_left(&self) -> usize {
        self.runtime.block_on(self.host.drained());
        let n_held = || self.seen.n_held.load(Ordering::SeqCst);
        // The last answer may be out before its sequence is let go.
        for _ in 0..500 {
            if n_held() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        n_held()
    }
}

async fn answer(model: ModelHandle, request: GenerateRequest) -> Result<Answer, HostError> {
    let mut generation = model.generate(request).await?;
    let mut answer = Answer { completions: Vec::new(), prompt: Vec::new() };
    while let Some(event) = generation.next().await {
        match event? {
            Event::Prompt { tokens, .. } => answer.prompt = tokens,
            Event::Done { completion, .. } => answer.completions.push(completion),
            _ => {}
        }
    }
    answer.completions.sort_by_key(|done| (done.prompt, done.choice));
    Ok(answer)
}

/// A request for what continues `prompt`.
pub(super) fn request(prompt: Prompt, parameters: Value) -> GenerateRequest {
    GenerateRequest {
        id: "r".to_owned(),
        prompts: vec![prompt],
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        ..GenerateRequest::default()
    }
}
