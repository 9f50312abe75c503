//! What a request model has to do.

use drivetrain_engine::{Call, EngineError, ErrorKind, LoadedModel, Reply, Request, RequestModel};

use super::limits::{reload, repeat};
use crate::suite::{Loader, Stop, Verdict, describe, ensure};

/// Growth that is no leak: the allocator's own slack, and what threads keep.
const SLACK_BYTES: u64 = 8 << 20;

/// A reply that keeps what it gets, and stops the engine after some frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Recorder {
    status: Option<u16>,
    body: Vec<u8>,
    n_frames: usize,
    /// Frames after which nobody waits any more.
    patience: Option<usize>,
    problem: Option<&'static str>,
}

impl Reply for Recorder {
    fn head(&mut self, status: u16, _: &str, _: &[(&str, &str)]) {
        if self.n_frames > 0 {
            self.problem = Some("head was called after the first frame");
        } else if self.status.replace(status).is_some() {
            self.problem = Some("head was called twice");
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> bool {
        self.n_frames += 1;
        self.body.extend_from_slice(bytes);
        self.patience.is_none_or(|patience| self.n_frames < patience)
    }
}

/// A request without content.
const CHECK: Request<'_> =
    Request { id: "check", properties: &[("Content-Type", "text/plain")], content: &[] };

fn call(
    model: &dyn RequestModel,
    body: &[u8],
    patience: Option<usize>,
) -> (Recorder, Result<(), EngineError>) {
    let mut reply = Recorder { patience, ..Recorder::default() };
    let content = [("data", body)];
    let result = model.call(&Request { content: &content, ..CHECK }, &mut reply);
    (reply, result)
}

/// An answer, or a refusal of the made-up text, which is fine too.
fn answer(model: &dyn RequestModel, body: &[u8]) -> Result<Option<Recorder>, Stop> {
    let (reply, result) = call(model, body, None);
    if let Some(problem) = reply.problem {
        return Err(Stop::Fail(problem.to_owned()));
    }
    match result {
        Ok(()) => Ok(Some(reply)),
        Err(error) if error.kind() == ErrorKind::BadInput => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn needs_answer(model: &dyn RequestModel, body: &[u8]) -> Result<Recorder, Stop> {
    let refused = || Stop::Skip("the model refuses the made-up text of this case".to_owned());
    answer(model, body)?.ok_or_else(refused)
}

pub(super) fn info_is_sane(_: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    let info = model.info();
    ensure(info.max_concurrency > 0, || "max_concurrency is 0: expected 1 or more".to_owned())?;
    ensure(model.info() == info, || "the info differs from call to call".to_owned())?;
    model.health()?;
    Ok(None)
}

pub(super) fn answers(_: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    Ok(match answer(model, b"a request")? {
        Some(reply) => Some(format!("{} bytes in {} frames", reply.body.len(), reply.n_frames)),
        None => Some("the made-up text was refused as bad input".to_owned()),
    })
}

pub(super) fn concurrency(_: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    let bodies: Vec<Vec<u8>> =
        (0..model.info().max_concurrency.min(8)).map(|n| format!("request {n}").into()).collect();
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(needs_answer(model, body)?);
    }
    for (body, first) in bodies.iter().zip(&alone) {
        if needs_answer(model, body)? != *first {
            return Err(Stop::Skip("the model's answers differ from call to call".to_owned()));
        }
    }
    for round in 0..20 {
        let together: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                bodies.iter().map(|body| scope.spawn(|| needs_answer(model, body))).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        for (idx, (found, expected)) in together.into_iter().zip(&alone).enumerate() {
            let found = found.map_err(|_| Stop::Fail("a call panicked".to_owned()))??;
            ensure(found == *expected, || {
                format!("round {round}: request {idx} got another answer among others than alone")
            })?;
        }
    }
    Ok(Some(format!("{} at once", bodies.len())))
}

/// Requests that are answered together get what each gets alone.
pub(super) fn batching(_: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    let most = model.info().max_batch;
    if most < 2 {
        return Err(Stop::Skip(format!("the model takes {most} request at once")));
    }
    let bodies: Vec<Vec<u8>> =
        (0..most.min(8)).map(|n| format!("request {n} of a batch").into()).collect();
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(needs_answer(model, body)?);
        if needs_answer(model, body)? != *alone.last().unwrap_or(&Recorder::default()) {
            return Err(Stop::Skip("the model's answers differ from call to call".to_owned()));
        }
    }
    let contents: Vec<[(&str, &[u8]); 1]> =
        bodies.iter().map(|body| [("data", body.as_slice())]).collect();
    let mut replies = vec![Recorder::default(); bodies.len()];
    let mut calls: Vec<Call<'_>> = contents
        .iter()
        .zip(&mut replies)
        .map(|(content, reply)| Call { request: Request { content, ..CHECK }, reply })
        .collect();
    let ends = model.call_batch(&mut calls);
    drop(calls);
    ensure(ends.len() == bodies.len(), || {
        format!("a batch of {} has {} ends", bodies.len(), ends.len())
    })?;
    for (idx, (end, (reply, alone))) in ends.into_iter().zip(replies.iter().zip(&alone)).enumerate()
    {
        end.map_err(|error| Stop::Fail(format!("request {idx}: {}", describe(&error))))?;
        ensure(reply == alone, || {
            format!("request {idx} got another answer in a batch than alone")
        })?;
    }
    Ok(Some(format!("{} at once", bodies.len())))
}

pub(super) fn early_stop(_: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    let whole = needs_answer(model, b"a request")?;
    if whole.n_frames < 2 {
        return Err(Stop::Skip(format!("the answer has {} frames", whole.n_frames)));
    }
    let (reply, result) = call(model, b"a request", Some(1));
    ensure(reply.n_frames == 1, || {
        format!("{} frames were sent after nobody waited for any", reply.n_frames - 1)
    })?;
    match result {
        Err(error) if error.kind() != ErrorKind::Cancelled => {
            Err(Stop::Fail(format!("expected cancelled or no error, got {}", describe(&error))))
        }
        _ => Ok(None),
    }
}

pub(super) fn empty(_: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    let mut reply = Recorder::default();
    let request = Request { id: "", properties: &[], content: &[] };
    match model.call(&request, &mut reply) {
        Err(error) if error.message().starts_with("panicked") => Err(error.into()),
        _ => Ok(None),
    }
}

pub(super) fn request_cycles(loader: &Loader<'_>, model: &dyn RequestModel) -> Verdict {
    let (cycles, budget) = (loader.options.cycles, loader.options.load_budget);
    repeat(cycles, budget, SLACK_BYTES, |_| answer(model, b"a request").map(drop))
}

pub(super) fn load_cycles(loader: &Loader<'_>, _: &dyn RequestModel) -> Verdict {
    reload(loader, SLACK_BYTES, |model| match model {
        LoadedModel::Request(model) => answer(&*model, b"a request").map(drop),
        LoadedModel::Token(_) => {
            Err(Stop::Fail("the same model was loaded as another kind".to_owned()))
        }
    })
}
