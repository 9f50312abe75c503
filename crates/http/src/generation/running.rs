//! A generation under way, with its figures: what the protocols read events from.

use std::time::{Duration, Instant};

use drivetrain_host::metrics as names;
use drivetrain_host::{
    Completion, Event, FinishReason, GenerateRequest, Generation, HostError, ModelHandle,
    PromptInfo, TokenDetail,
};
use metrics::Histogram;
use tokio::time::timeout;

use crate::failure::ApiError;

/// A generation whose first event has come, so that what goes wrong before it has a status.
pub(crate) struct Running {
    generation: Generation,
    first: Option<Event>,
    figures: Figures,
}

/// Everything there is to say of a generation that has ended.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    /// The prompts.
    pub(crate) prompts: Vec<PromptInfo>,
    /// Their tokens one by one, where that was asked for; else empty.
    pub(crate) prompt_tokens: Vec<Vec<TokenDetail>>,
    /// The choices, by prompt and choice.
    pub(crate) completions: Vec<Completion>,
}

impl Whole {
    /// Tokens of all prompts.
    pub(crate) fn n_prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len()).sum()
    }

    /// New tokens of all choices.
    pub(crate) fn n_new_tokens(&self) -> usize {
        self.completions.iter().map(|done| done.ids.len()).sum()
    }
}

impl Running {
    /// Has `model` begin, and waits for the first event.
    ///
    /// # Errors
    /// What the host says; nothing has been sent then.
    pub(crate) async fn start(
        model: &ModelHandle,
        request: GenerateRequest,
    ) -> Result<Self, ApiError> {
        let mut figures = Figures::new(model.name());
        let mut generation = model.generate(request).await.map_err(ApiError::of_task)?;
        let n_prompt = generation.prompts().iter().map(|p| p.ids.len()).sum::<usize>();
        figures.prompts(model.name(), n_prompt);
        let first = match generation.next().await {
            None => None,
            Some(Ok(event)) => Some(event),
            Some(Err(error)) => {
                figures.failed();
                return Err(ApiError::of_task(error));
            }
        };
        if let Some(event) = &first {
            figures.see(event);
        }
        Ok(Self { generation, first, figures })
    }

    /// The prompts as the model reads them.
    pub(crate) fn prompts(&self) -> &[PromptInfo] {
        self.generation.prompts()
    }

    /// What happens next.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, HostError>> {
        if let Some(event) = self.first.take() {
            return Some(Ok(event));
        }
        let next = self.generation.next().await;
        match &next {
            Some(Ok(event)) => self.figures.see(event),
            Some(Err(_)) => self.figures.failed(),
            None => self.figures.end(),
        }
        next
    }

    /// What happens next, if it does within `limit`.
    pub(crate) async fn next_within(
        &mut self,
        limit: Duration,
    ) -> Result<Option<Result<Event, HostError>>, Stalled> {
        timeout(limit, self.next()).await.map_err(|_| Stalled)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) async fn finish(mut self) -> Result<Whole, ApiError> {
        let mut whole = Whole::default();
        let mut prompt_tokens = vec![Vec::new(); self.prompts().len()];
        while let Some(event) = self.next().await {
            match event.map_err(ApiError::of_task)? {
                Event::Prompt { prompt, tokens } => {
                    if let Some(place) = prompt_tokens.get_mut(prompt) {
                        *place = tokens;
                    }
                }
                Event::Done { completion, .. } => whole.completions.push(completion),
                _ => {}
            }
        }
        whole.completions.sort_by_key(|done| (done.prompt, done.choice));
        whole.prompts = self.prompts().to_vec();
        whole.prompt_tokens = prompt_tokens;
        Ok(whole)
    }
}

/// No event came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stalled;

/// What is measured of a request. The handles are made once, so that a token costs no lookup.
struct Figures {
    model: String,
    began: Instant,
    between: Histogram,
    /// When the last token of each choice came, in the order they first spoke.
    spoke: Vec<((usize, usize), Instant)>,
    n_new: u64,
    is_over: bool,
}

impl Figures {
    fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            began: Instant::now(),
            between: metrics::histogram!(names::TOKEN_LATENCY, names::MODEL => model.to_owned()),
            spoke: Vec::new(),
            n_new: 0,
            is_over: false,
        }
    }

    fn prompts(&mut self, model: &str, n_tokens: usize) {
        metrics::counter!(names::PROMPT_TOKENS, names::MODEL => model.to_owned())
            .increment(n_tokens as u64);
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Token { prompt, choice, .. } => self.token((*prompt, *choice)),
            Event::Done { completion, .. } => {
                // Choices whose tokens were not told one by one are counted here.
                let of = (completion.prompt, completion.choice);
                if !self.spoke.iter().any(|(other, _)| *other == of) {
                    self.n_new += completion.ids.len() as u64;
                }
                self.count(completion.finish.name());
            }
            _ => {}
        }
    }

    fn token(&mut self, of: (usize, usize)) {
        let now = Instant::now();
        if self.spoke.is_empty() {
            metrics::histogram!(names::TIME_TO_FIRST_TOKEN, names::MODEL => self.model.clone())
                .record(now.duration_since(self.began).as_secs_f64());
        }
        self.n_new += 1;
        match self.spoke.iter_mut().find(|(other, _)| *other == of) {
            Some((_, last)) => {
                self.between.record(now.duration_since(*last).as_secs_f64() * 1e6);
                *last = now;
            }
            None => self.spoke.push((of, now)),
        }
    }

    fn count(&self, finish: &'static str) {
        metrics::counter!(
            names::REQUESTS, names::MODEL => self.model.clone(), names::FINISH => finish
        )
        .increment(1);
    }

    fn failed(&mut self) {
        self.count("error");
        self.close();
    }

    fn end(&mut self) {
        if !self.is_over {
            let took = self.began.elapsed().as_secs_f64();
            let model = || self.model.clone();
            metrics::histogram!(names::REQUEST_LATENCY, names::MODEL => model()).record(took * 1e6);
            metrics::histogram!(names::OUTPUT_TOKENS, names::MODEL => model())
                .record(self.n_new as f64);
            if took > 0.0 {
                metrics::histogram!(names::TOKEN_THROUGHPUT, names::MODEL => model())
                    .record(self.n_new as f64 / took);
            }
        }
        self.close();
    }

    fn close(&mut self) {
        if !self.is_over {
            self.is_over = true;
            metrics::counter!(names::GENERATED_TOKENS, names::MODEL => self.model.clone())
                .increment(self.n_new);
        }
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        if !self.is_over {
            self.count("cancelled");
            self.close();
        }
    }
}

/// The word of OpenAI's API for why a choice ended. A text that the server's end cut short has
/// come to a limit, too.
pub(crate) fn openai_finish(finish: FinishReason) -> &'static str {
    if finish.is_natural() { "stop" } else { "length" }
}
