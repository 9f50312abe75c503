//! A sitting: entrants that are in memory together, asked in turn, round by round.

use std::time::Duration;

use anyhow::{Context, Result};
use drivetrain_benches::protocol::{Command as Ask, Done};
use drivetrain_benches::{Task, Work};

use crate::entrants::{Format, YARDSTICK};
use crate::runner::{Answer, Runner};
use crate::statistics::{cosine, equal_share};
use crate::workload::{Model, check_of};

/// Threads of a library that wait for more work spin for up to a fifth of a second; they are asleep
/// when the next entrant's time starts.
const PAUSE: Duration = Duration::from_millis(300);

/// `</s>` of every model here, and what their decoders start with.
const EOS: u32 = 2;

/// Of a work that was checked, the share of tokens up to the first difference that f32 has to reach: two
/// logits that are nearly equal may change places.
const LEAST_SHARE: f64 = 0.9;

/// One that takes part, in one format.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    pub(crate) is_engine: bool,
    /// How its process starts, and the name of its log.
    pub(crate) command: std::process::Command,
}

/// What became of an entrant with one model.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    pub(crate) is_engine: bool,
    pub(crate) sitting: usize,
    pub(crate) version: String,
    pub(crate) load_seconds: f64,
    /// What it warned of while it loaded.
    pub(crate) warnings: Vec<String>,
    pub(crate) peak_bytes: Option<u64>,
    /// The cosine of its values with the yardstick's, where it has some.
    pub(crate) cosine: Option<f64>,
    /// Why its times are worth nothing.
    pub(crate) fault: Option<String>,
    /// By work.
    pub(crate) works: Vec<Times>,
}

impl Outcome {
    /// Whether it is what the others are checked against and compared with.
    pub(crate) fn is_yardstick(&self) -> bool {
        self.name == YARDSTICK && self.format == Format::F32
    }
}

/// What became of one work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    /// Seconds of each round.
    pub(crate) seconds: Vec<f64>,
    /// How much of the output is the yardstick's: a cosine, or the share of equal tokens.
    pub(crate) agreement: Option<f64>,
    /// Why there are no times.
    pub(crate) reason: Option<String>,
}

struct Entrant {
    runner: Runner,
    result: Outcome,
}

/// Loads the models of `seats`, of which the first is the yardstick, asks them, and says what became of
/// each; `missing` gets those that can't be loaded.
pub(crate) fn sit(
    model: &Model,
    works: &[(&str, Work)],
    (sitting, n_rounds): (usize, usize),
    seats: Vec<(Seat, std::path::PathBuf)>,
    missing: &mut Vec<(String, String)>,
) -> Result<Vec<Outcome>> {
    let mut entrants = Vec::new();
    for (mut seat, log) in seats {
        let shown = format!("{} {} of {}", seat.name, seat.format.name(), model.name);
        eprintln!("loading {shown}");
        match Runner::start(&mut seat.command, log) {
            Ok(runner) => entrants.push(enter(&seat, sitting, runner)),
            Err(error) if entrants.is_empty() => return Err(error.context(shown)),
            Err(error) => missing.push((shown, format!("{error:#}"))),
        }
    }
    let check: Work = check_of(model.family).parse()?;
    judge(&mut entrants, &ask_of(model, &check))?;
    for (name, work) in works {
        eprintln!("{} {name}: {n_rounds} rounds of {}", model.name, entrants.len());
        time(&mut entrants, &ask_of(model, work), n_rounds)?;
    }
    Ok(entrants
        .into_iter()
        .map(|entrant| Outcome { peak_bytes: entrant.runner.peak_bytes(), ..entrant.result })
        .collect())
}

fn enter(seat: &Seat, sitting: usize, runner: Runner) -> Entrant {
    let result = Outcome {
        name: seat.name,
        format: seat.format,
        is_engine: seat.is_engine,
        sitting,
        version: runner.ready.version.clone(),
        load_seconds: runner.ready.load_seconds,
        warnings: runner.ready.warnings.clone(),
        peak_bytes: None,
        cosine: None,
        fault: None,
        works: Vec::new(),
    };
    Entrant { runner, result }
}

fn ask_of(model: &Model, work: &Work) -> Ask {
    Ask {
        task: work.task,
        ids: work.prompts(model.vocab),
        n_new: work.n_new,
        n_beams: work.n_beams,
        eos: EOS,
        decoder_start: EOS,
        wants_output: true,
    }
}

/// Compares values of all entrants with the first one's.
fn judge(entrants: &mut [Entrant], ask: &Ask) -> Result<()> {
    let mut expected: Option<Done> = None;
    for Entrant { runner, result } in entrants {
        match runner.ask(ask) {
            Err(error) => result.fault = Some(format!("{error:#}")),
            Ok(Answer::Not(_)) => {}
            Ok(Answer::Done(done)) => {
                if result.is_yardstick() {
                    expected = Some(done.clone());
                }
                let Some(expected) = &expected else { continue };
                let found = cosine(&done.values, &expected.values);
                result.cosine = Some(found);
                let least = result.format.least_cosine();
                if found < least {
                    result.fault = Some(format!("cosine {found:.4} with torch, under {least}"));
                }
            }
        }
    }
    expected.map(drop).context("torch does not compute what the others are checked against")
}

/// The first time is not counted, and its output is compared.
fn time(entrants: &mut [Entrant], ask: &Ask, n_rounds: usize) -> Result<()> {
    let mut expected: Option<Done> = None;
    for Entrant { runner, result } in entrants.iter_mut() {
        let mut times = Times::default();
        if result.fault.is_none() {
            match runner.ask(ask) {
                Err(error) => result.fault = Some(format!("{error:#}")),
                Ok(Answer::Not(why)) => times.reason = Some(why),
                Ok(Answer::Done(done)) => {
                    if result.is_yardstick() {
                        expected = Some(done.clone());
                    }
                    if let Some(expected) = &expected {
                        compare(ask.task, result, &mut times, (&done, expected));
                    }
                }
            }
        }
        if let Some(fault) = &result.fault {
            times.reason = Some(fault.clone());
        }
        result.works.push(times);
    }
    let ask = Ask { wants_output: false, ..ask.clone() };
    for _ in 0..n_rounds {
        for Entrant { runner, result } in entrants.iter_mut() {
            let Some(times) = result.works.last_mut().filter(|times| times.reason.is_none()) else {
                continue;
            };
            std::thread::sleep(PAUSE);
            match runner.ask(&ask) {
                Ok(Answer::Done(done)) => times.seconds.push(done.seconds),
                Ok(Answer::Not(why)) => times.reason = Some(why),
                Err(error) => {
                    times.reason = Some(format!("{error:#}"));
                    result.fault = times.reason.clone();
                }
            }
        }
    }
    Ok(())
}

fn compare(task: Task, result: &Outcome, times: &mut Times, (done, expected): (&Done, &Done)) {
    let (found, least) = match task {
        Task::Generate => {
            let least = if result.format == Format::F32 { LEAST_SHARE } else { 0.0 };
            (equal_share(&done.tokens, &expected.tokens), least)
        }
        _ => (cosine(&done.values, &expected.values), result.format.least_cosine()),
    };
    times.agreement = Some(found);
    if found < least {
        times.reason = Some(format!("agrees with torch by {found:.4}, under {least}"));
    }
}
