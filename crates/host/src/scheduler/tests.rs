//! The scheduler against an engine that keeps book: single cases here, random schedules below.

mod groups;
mod heads;
mod simulation;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drivetrain_engine::{AdapterId, ErrorKind, ModelKind, TokenModelInfo, Wanted};

use super::*;
use crate::FinishReason;
use crate::fake::{Failure, Fake, NAN, POISON, VOCAB, context, fill_logits, hidden, info};
use crate::logits::{BeamParams, BeamSearch, Rules, Scratch};

/// What became of a job.
#[derive(Debug, Default)]
struct Seen {
    outcomes: Vec<Option<Outcome>>,
    /// Of each item's first choice.
    tokens: Vec<Vec<u32>>,
    prompts: Vec<Vec<Scored>>,
    errors: Vec<HostError>,
    n_started: usize,
    is_closed: bool,
    has_no_room: bool,
    is_dropped: bool,
}

type Watch = Arc<Mutex<Seen>>;

struct TestSink(Watch);

impl Sink for TestSink {
    fn is_closed(&self) -> bool {
        self.0.lock().unwrap().is_closed
    }
    fn has_room(&self) -> bool {
        !self.0.lock().unwrap().has_no_room
    }
    fn started(&mut self) {
        self.0.lock().unwrap().n_started += 1;
    }
    fn prompt(&mut self, item: usize, tokens: Vec<(Scored, Vec<Scored>)>) {
        let mut seen = self.0.lock().unwrap();
        assert!(seen.tokens[item].is_empty() && seen.prompts[item].is_empty());
        seen.prompts[item].extend(tokens.into_iter().map(|(own, _)| own));
    }
    fn token(&mut self, item: usize, choice: usize, new: &NewToken<'_>) {
        if choice == 0 {
            self.0.lock().unwrap().tokens[item].push(new.token.id);
        }
    }
    fn finished(&mut self, item: usize, outcome: Outcome) {
        let old = self.0.lock().unwrap().outcomes[item].replace(outcome);
        assert!(old.is_none(), "item {item} is finished twice");
    }
    fn failed(&mut self, error: HostError) {
        self.0.lock().unwrap().errors.push(error);
    }
}

impl Drop for TestSink {
    fn drop(&mut self) {
        self.0.lock().unwrap().is_dropped = true;
    }
}

fn generate(encoder: &[u32], tokens: &[u32], max_new: usize) -> Work {
    let rules = Rules {
        n_prompt: tokens.len(),
        max_length: tokens.len() + max_new,
        eos: [0].into(),
        ..Rules::default()
    };
    let goal = Goal::Generate(Box::new(Generate { rules, ..Generate::default() }));
    Work {
        encoder: encoder.to_vec(),
        tokens: tokens.to_vec(),
        token_types: Vec::new(),
        goal,
        adapter: AdapterId::NONE,
    }
}

/// One choice of these tokens.
fn said(ids: Vec<u32>, finish: FinishReason) -> Outcome {
    Outcome::Generated(vec![Choice { ids, finish, stop: None, score: None, logprob: 0.0 }])
}

/// What the engine's next token follows from, beside the tokens.
fn context_of(work: &Work) -> Vec<u32> {
    context(&work.encoder, work.adapter.0)
}

/// What the engine says to `work` if it is alone: no chunks, no forks, no company.
fn expected(work: &Work) -> Outcome {
    match &work.goal {
        Goal::Hidden(_) => {
            let n_tokens = work.tokens.len();
            let rows = (1..=n_tokens).flat_map(|n| hidden(&context_of(work), &work.tokens[..n]));
            Outcome::Hidden { n_rows: n_tokens, values: rows.collect() }
        }
        Goal::Logits { wanted, kept } => {
            let row = |n: usize| {
                let mut row = vec![0.0; VOCAB as usize];
                fill_logits(&context_of(work), &work.tokens[..n], &mut row);
                row
            };
            let n_tokens = work.tokens.len();
            let ends: Vec<usize> = match (wanted, kept) {
                (Wanted::SequenceLogits, _) => vec![n_tokens],
                (_, None) => (1..=n_tokens).collect(),
                (_, Some(kept)) => kept.iter().map(|idx| *idx as usize + 1).collect(),
            };
            Outcome::Logits { n_rows: ends.len(), values: ends.into_iter().flat_map(row).collect() }
        }
        Goal::Generate(generate) => Outcome::Generated(match &generate.search {
            Search::Greedy => vec![expected_choice(work, generate, 0)],
            Search::Sample { n, .. } => {
                (0..*n).map(|choice| expected_choice(work, generate, choice)).collect()
            }
            Search::Beams(params) => expected_beams(work, generate, params),
        }),
    }
}

fn expected_choice(work: &Work, generate: &Generate, choice: usize) -> Choice {
    let mut chooser = Chooser::default();
    let mut row = Row::new(SeqId(0), work.tokens.clone());
    row.choice = choice;
    loop {
        let mut logits = vec![0.0; VOCAB as usize];
        fill_logits(&context_of(work), &row.tokens, &mut logits);
        let scored = chooser.choose(generate, &mut row, &mut logits).unwrap();
        if let Some(chosen) = row.accept(generate, scored).unwrap() {
            return row.end(generate.rules.n_prompt, chosen);
        }
    }
}

/// The search on logits of whole sequences, each computed from its start.
fn expected_beams(work: &Work, generate: &Generate, params: &BeamParams) -> Vec<Choice> {
    let mut scratch = Scratch::default();
    let rules = generate.rules.clone();
    let mut search = BeamSearch::new(params.clone(), rules, &work.tokens, None);
    let mut rows = vec![work.tokens.clone()];
    while !search.is_done() {
        let mut logits = vec![0.0; rows.len() * VOCAB as usize];
        for (row, scores) in rows.iter().zip(logits.chunks_exact_mut(VOCAB as usize)) {
            fill_logits(&context_of(work), row, scores);
        }
        search.step(&mut logits, &mut scratch).unwrap();
        rows = search
            .next_rows()
            .iter()
            .map(|(from, id)| [&rows[*from][..], &[*id]].concat())
            .collect();
    }
    search.choices(false)
}

/// A scheduler with its model and a clock of its own.
struct Bench {
    scheduler: Scheduler,
    model: Fake,
    now: Instant,
    priority: i32,
}

impl Bench {
    fn new(info: TokenModelInfo, step_tokens: u32) -> Self {
        let limits = Limits::new(info, 1000, Some(step_tokens));
        let scheduler = Scheduler::new("bench", limits);
        Self { scheduler, model: Fake::new(info), now: Instant::now(), priority: 0 }
    }

    fn of(kind: ModelKind) -> Self {
        Self::new(info(kind), 64)
    }

    fn push(&mut self, works: Vec<Work>) -> Watch {
        self.push_until(works, Duration::from_secs(3600))
    }

    fn push_until(&mut self, works: Vec<Work>, limit: Duration) -> Watch {
        let watch = Watch::default();
        {
            let mut seen = watch.lock().unwrap();
            seen.outcomes = vec![None; works.len()];
            seen.tokens = vec![Vec::new(); works.len()];
            seen.prompts = vec![Vec::new(); works.len()];
        }
        works.iter().for_each(|work| self.scheduler.limits.check(work).unwrap());
        let sink = Box::new(TestSink(Arc::clone(&watch)));
        let deadline = self.now + limit;
        let priority = self.priority;
        self.scheduler.push(Job {
            works,
            sink,
            leases: Vec::new(),
            priority,
            submitted: self.now,
            deadline,
        });
        watch
    }

    fn step(&mut self) -> Step {
        self.now += Duration::from_millis(1);
        self.scheduler.step(&mut self.model, self.now).unwrap()
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("the scheduler does not come to rest");
    }

    /// Nothing is held and no rule was broken.
    fn check_clean(&mut self) {
        assert!(self.scheduler.is_idle());
        assert_eq!(self.scheduler.used, Cache::default());
        assert_eq!(self.scheduler.n_rows, 0);
        assert_eq!(self.model.n_sequences(), self.scheduler.tally().n_kept);
        self.scheduler.forget(&mut self.model);
        assert_eq!(self.scheduler.prefixes.used(), Cache::default());
        assert_eq!(self.model.n_sequences(), 0);
        assert_eq!(self.model.book.lock().unwrap().sins, Vec::<String>::new());
    }
}

fn check_done(watch: &Watch, works: &[Work]) {
    let seen = watch.lock().unwrap();
    assert!(seen.errors.is_empty() && seen.is_dropped, "{seen:?}");
    for (idx, work) in works.iter().enumerate() {
        let outcome = seen.outcomes[idx].as_ref().unwrap();
        assert_eq!(*outcome, expected(work));
        let is_said = |generate: &Generate| !matches!(generate.search, Search::Beams(_));
        if let (Outcome::Generated(choices), Goal::Generate(generate)) = (outcome, &work.goal)
            && is_said(generate)
        {
            assert_eq!(choices[0].ids, seen.tokens[idx]);
        }
    }
}

fn errors(watch: &Watch) -> Vec<HostError> {
    let seen = watch.lock().unwrap();
    assert!(seen.is_dropped);
    seen.errors.clone()
}

#[test]
fn every_kind_of_model_and_goal_comes_through() {
    let hidden = |encoder: &[u32], tokens: &[u32]| Work {
        encoder: encoder.to_vec(),
        ..Work::hidden(tokens.to_vec(), Vec::new())
    };
    for (kind, works) in [
        (ModelKind::Decoder, vec![generate(&[], &[3, 4, 5], 9), hidden(&[], &[1, 2, 3])]),
        (ModelKind::Encoder, vec![hidden(&[], &[5; 40]), hidden(&[], &[1]), hidden(&[], &[6; 64])]),
        (
            ModelKind::EncoderDecoder,
            vec![
                generate(&[7; 50], &[2], 12),
                generate(&[8; 30], &[2], 1),
                hidden(&[3, 4], &[2, 3]),
            ],
        ),
    ] {
        let mut bench = Bench::new(info(kind), 48);
        let watch = bench.push(works.clone());
        bench.run();
        check_done(&watch, &works);
        bench.check_clean();
        assert_eq!(watch.lock().unwrap().n_started, 1);
    }
}

#[test]
fn prompts_are_cut_and_decodes_go_on() {
    let mut bench = Bench::new(info(ModelKind::Decoder), 8);
    let first = vec![generate(&[], &[9, 9], 30)];
    let first_watch = bench.push(first.clone());
    bench.step();
    let second = vec![generate(&[], &[1; 30], 5)];
    let second_watch = bench.push(second.clone());
    // 8 tokens of the prompt beside each step of the first: four steps for 30.
    for n_steps in 1..=3 {
        bench.step();
        assert_eq!(first_watch.lock().unwrap().tokens[0].len(), 1 + n_steps);
        assert!(second_watch.lock().unwrap().tokens[0].is_empty());
    }
    bench.step();
    assert_eq!(second_watch.lock().unwrap().tokens[0].len(), 1);
    bench.run();
    check_done(&first_watch, &first);
    check_done(&second_watch, &second);
    bench.check_clean();
}

#[test]
fn only_the_guilty_fail() {
    let mut bench = Bench::of(ModelKind::Decoder);
    let innocent = vec![generate(&[], &[3, 4], 8)];
    let guilty = vec![generate(&[], &[3, POISON], 8), generate(&[], &[3], 8)];
    let mad = vec![generate(&[], &[NAN], 8)];
    let watches = [bench.push(innocent.clone()), bench.push(guilty), bench.push(mad)];
    bench.run();
    check_done(&watches[0], &innocent);
    let of_guilty = errors(&watches[1]);
    assert!(matches!(&of_guilty[..], [HostError::Engine(e)] if e.message() == "poison"));
    let of_mad = errors(&watches[2]);
    assert!(matches!(&of_mad[..], [HostError::Engine(e)] if e.kind() == ErrorKind::Internal));
    bench.check_clean();
}

#[test]
fn only_the_guilty_fail_in_the_encoder() {
    let mut bench = Bench::of(ModelKind::EncoderDecoder);
    let innocent = vec![generate(&[3, 4], &[2], 8)];
    let guilty = vec![generate(&[POISON], &[2], 8)];
    let watches = [bench.push(guilty), bench.push(innocent.clone())];
    bench.run();
    assert_eq!(errors(&watches[0]).len(), 1);
    check_done(&watches[1], &innocent);
    bench.check_clean();
}

#[test]
fn an_engine_that_breaks_its_rules_fails_with_its_own_words() {
    let mut bench = Bench::of(ModelKind::Decoder);
    bench.model.book.lock().unwrap().fails_at = Some((0, Failure::RowMissing));
    let watches = [1, 2].map(|t| bench.push(vec![generate(&[], &[t], 4)]));
    bench.run();
    for watch in &watches {
        let [HostError::Engine(error)] = &errors(watch)[..] else { panic!("{watch:?}") };
        assert!(error.message().contains("1 rows of logits and 0"), "{error}");
    }
}

#[test]
fn faults_are_counted_and_a_lost_device_ends_it() {
    let mut bench = Bench::of(ModelKind::Decoder);
    let watch = bench.push(vec![generate(&[], &[1], 4)]);
    bench.model.book.lock().unwrap().fails_at = Some((0, Failure::Internal));
    let forward = Calls { n_made: 1, n_good: 0, n_blamed: 1 };
    assert_eq!(bench.step(), Step { forward, ..Step::default() });
    assert_eq!(errors(&watch).len(), 1);
    let watch = bench.push(vec![generate(&[], &[1], 4)]);
    bench.model.book.lock().unwrap().fails_at = Some((0, Failure::DeviceLost));
    let error = bench.scheduler.step(&mut bench.model, bench.now).unwrap_err();
    let n_released = bench.model.book.lock().unwrap().n_released;
    bench.scheduler.fail_all(&error.into());
    assert_eq!(errors(&watch).len(), 1);
    assert!(bench.scheduler.is_idle());
    assert_eq!(bench.model.book.lock().unwrap().n_released, n_released);
}

#[test]
fn logits_that_are_no_numbers_are_the_engines_fault() {
    let mut bench = Bench::new(info(ModelKind::Decoder), 2);
    bench.push(vec![generate(&[], &[1, 1, NAN], 8)]);
    // The first piece leaves nothing that could be wrong.
    let forward = Calls { n_made: 1, ..Calls::default() };
    assert_eq!(bench.step(), Step { forward, ..Step::default() });
    let forward = Calls { n_made: 1, n_good: 0, n_blamed: 1 };
    assert_eq!(bench.step(), Step { forward, ..Step::default() });
    bench.check_clean();
}

#[test]
fn a_cancelled_job_leaves_at_the_next_step() {
    let mut bench = Bench::of(ModelKind::EncoderDecoder);
    let running = bench.push(vec![generate(&[4], &[2], 50)]);
    bench.step();
    let waiting = bench.push(vec![generate(&[5], &[2], 50)]);
    running.lock().unwrap().is_closed = true;
    waiting.lock().unwrap().is_closed = true;
    bench.step();
    bench.check_clean();
    assert!(errors(&running).is_empty() && errors(&waiting).is_empty());
}

#[test]
fn a_late_job_is_told_so() {
    let mut small = info(ModelKind::Decoder);
    small.max_sequences = 1;
    let mut bench = Bench::new(small, 64);
    let running = bench.push_until(vec![generate(&[], &[1], 60)], Duration::from_millis(3));
    let waiting = bench.push_until(vec![generate(&[], &[1], 60)], Duration::from_millis(2));
    bench.run();
    for watch in [running, waiting] {
        assert!(matches!(&errors(&watch)[..], [HostError::Timeout { .. }]));
    }
    bench.check_clean();
}

#[test]
fn a_drain_cuts_generations_off_with_what_they_have() {
    let mut small = info(ModelKind::Decoder);
    small.max_sequences = 2;
    let mut bench = Bench::new(small, 64);
    // The first of two items runs, the second waits: their job has begun and is answered.
    let begun = bench.push(vec![generate(&[], &[9, 9], 60), generate(&[], &[9, 8], 60)]);
    let features = bench.push(vec![Work::hidden(vec![1; 60], Vec::new())]);
    let queued = bench.push(vec![generate(&[], &[4], 60)]);
    bench.scheduler.limits.max_sequences = 1;
    bench.step();
    bench.step();
    bench.scheduler.drain(bench.now);
    bench.step();
    let seen = begun.lock().unwrap();
    let Some(Outcome::Generated(choices)) = &seen.outcomes[0] else {
        panic!("{seen:?}");
    };
    assert_eq!(choices[0].finish, FinishReason::Shutdown);
    assert_eq!(choices[0].ids.len(), 2);
    let nothing = said(Vec::new(), FinishReason::Shutdown);
    assert_eq!(seen.outcomes[1], Some(nothing));
    for watch in [features, queued] {
        assert!(matches!(&errors(&watch)[..], [HostError::ShuttingDown]));
    }
    bench.check_clean();
}

#[test]
fn a_drain_leaves_no_step_that_would_end_too_late() {
    let mut bench = Bench::of(ModelKind::Decoder);
    let watch = bench.push(vec![generate(&[], &[9, 9], 60)]);
    bench.scheduler.drain(bench.now + Duration::from_secs(1));
    bench.step();
    bench.scheduler.took(Duration::from_secs(2));
    bench.step();
    let seen = watch.lock().unwrap();
    let Some(Outcome::Generated(choices)) = &seen.outcomes[0] else {
        panic!("{seen:?}");
    };
    assert_eq!(choices[0].finish, FinishReason::Shutdown);
    assert_eq!(choices[0].ids.len(), 1);
    bench.check_clean();
}

#[test]
fn a_job_of_many_inputs_takes_turns_with_others() {
    let mut small = info(ModelKind::Decoder);
    small.max_sequences = 1;
    let mut bench = Bench::new(small, 64);
    let works = |n| vec![Work::hidden(vec![1, 2], Vec::new()); n];
    let watches = [bench.push(works(6)), bench.push(works(1)), bench.push(works(2))];
    let n_done =
        || watches.each_ref().map(|watch| watch.lock().unwrap().outcomes.iter().flatten().count());
    let mut turns = Vec::new();
    while !bench.scheduler.is_idle() {
        bench.step();
        turns.push(n_done());
    }
    let first = [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 1, 2], [3, 1, 2]];
    assert_eq!(turns[..6], first);
    bench.check_clean();
}

#[test]
fn a_slow_reader_rests_and_others_go_on() {
    let mut bench = Bench::of(ModelKind::Decoder);
    let works = [vec![generate(&[], &[9, 9], 10)], vec![generate(&[], &[9, 8], 10)]];
    let slow = bench.push(works[0].clone());
    let quick = bench.push(works[1].clone());
    bench.step();
    slow.lock().unwrap().has_no_room = true;
    (0..20).for_each(|_| assert!(bench.step().forward.n_blamed == 0));
    check_done(&quick, &works[1]);
    assert_eq!(slow.lock().unwrap().tokens[0].len(), 1);
    assert_eq!(bench.step(), Step::default());
    slow.lock().unwrap().has_no_room = false;
    bench.run();
    check_done(&slow, &works[0]);
    bench.check_clean();
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut small = info(ModelKind::EncoderDecoder);
    (small.kv_capacity_tokens, small.cross_capacity_tokens) = (10, 20);
    let limits = Limits::new(small, 8, None);
    let check = |work: Work, expect: bool| {
        assert_eq!(limits.check(&work).is_ok(), expect, "{work:?}");
    };
    check(generate(&[1; 20], &[2], 10), true);
    check(generate(&[1; 21], &[2], 10), false);
    check(generate(&[1], &[2], 11), false);
    let mut narrow = info(ModelKind::Encoder);
    narrow.max_batch_tokens = 30;
    let limits = Limits::new(narrow, 8, None);
    assert!(limits.check(&Work::hidden(vec![1; 30], Vec::new())).is_ok());
    assert!(limits.check(&Work::hidden(vec![1; 31], Vec::new())).is_err());
}

#[test]
fn a_warm_step_keeps_its_buffers() {
    let mut bench = Bench::of(ModelKind::Decoder);
    let works = |first| (0..4).map(|n| generate(&[], &[first, n + 1], 60)).collect();
    bench.push(works(9));
    bench.run();
    let warm = bench.scheduler.pass.capacities();
    bench.push(works(8));
    bench.run();
    assert_eq!(bench.scheduler.pass.capacities(), warm);
    bench.check_clean();
}
