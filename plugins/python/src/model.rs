//! A loaded handler: requests in, replies out, whichever worker they go through.

use std::sync::Arc;

use drivetrain_engine::{Call, EngineError, Reply, Request, RequestModel, RequestModelInfo};

use crate::error::PythonError;
use crate::everywhere;
use crate::follow::Following;
use crate::pool::Pool;
use crate::wire;

/// Most requests that one call of a handler may answer, as far as `batch_size` allows it.
const MAX_BATCH: u32 = 1024;

/// How often a request that a worker can't have seen goes to another one.
const MAX_TRIES: u32 = 5;

/// The property that names the function which is to answer.
const FUNCTION: &str = "handler";

/// A loaded handler.
pub(crate) struct Handler {
    pool: Arc<Pool>,
    info: RequestModelInfo,
}

impl Handler {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        let max_concurrency = pool.most_calls();
        Self { pool, info: RequestModelInfo { max_concurrency, max_batch: MAX_BATCH } }
    }

    /// Has one call of a function answer the requests, and returns how each ended.
    fn answer(
        &self,
        requests: &[Request<'_>],
        replies: &mut [&mut dyn Reply],
    ) -> Vec<Result<(), PythonError>> {
        match self.give(requests, replies) {
            Ok(ends) => ends,
            Err(error) => {
                let others = replies.iter().skip(1).map(|_| self.again(&error));
                let mut ends: Vec<_> = others.map(Err).collect();
                ends.push(Err(error));
                ends
            }
        }
    }

    fn give(
        &self,
        requests: &[Request<'_>],
        replies: &mut [&mut dyn Reply],
    ) -> Result<Vec<Result<(), PythonError>>, PythonError> {
        let function = requests.first().and_then(function_of).unwrap_or_default();
        let n_bytes = wire::call_bytes(function, requests);
        if n_bytes > wire::MAX_CALL_BYTES {
            return Err(PythonError::TooLarge { n_bytes, most: wire::MAX_CALL_BYTES });
        }
        for _ in 0..MAX_TRIES {
            let lease = self.pool.acquire(self.pool.launch.settings.predict_timeout)?;
            let worker = &lease.worker;
            let Some(given) = worker.give(function, requests) else { continue };
            let ids: Vec<u64> = given.calls.iter().map(|(id, _)| *id).collect();
            let mut ends = Vec::with_capacity(replies.len());
            for ((id, events), reply) in given.calls.into_iter().zip(replies) {
                ends.push(match ends.last() {
                    // A call that was too slow was so for all that it was to answer.
                    Some(Err(PythonError::Hung { worker, limit, was_killed })) => {
                        let (worker, limit, was_killed) = (*worker, *limit, *was_killed);
                        Err(PythonError::Hung { worker, limit, was_killed })
                    }
                    _ => Following { pool: &self.pool, worker, id, events }.run(*reply),
                });
            }
            worker.forget(ids.into_iter());
            if ends.iter().any(Result::is_ok) {
                self.pool.worked();
            }
            return Ok(ends);
        }
        Err(PythonError::NoWorker {
            model: self.pool.model.clone(),
            reason: format!("{MAX_TRIES} workers ended before they read the request"),
        })
    }

    /// The error for a further request of the same batch.
    fn again(&self, error: &PythonError) -> PythonError {
        let model = self.pool.model.clone();
        match error {
            PythonError::NoWorker { reason, .. } => {
                PythonError::NoWorker { model, reason: reason.clone() }
            }
            PythonError::AllBusy { limit, .. } => PythonError::AllBusy { model, limit: *limit },
            PythonError::Cancelled => PythonError::Cancelled,
            other => PythonError::BadAnswer { message: other.to_string() },
        }
    }
}

/// The function that a request asks for.
fn function_of<'a>(request: &Request<'a>) -> Option<&'a str> {
    let mut properties = request.properties.iter();
    properties.find(|(key, _)| key.eq_ignore_ascii_case(FUNCTION)).map(|(_, value)| *value)
}

impl RequestModel for Handler {
    fn info(&self) -> RequestModelInfo {
        self.info
    }

    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        if let Some(function) = function_of(request).filter(|name| everywhere::is_for_all(name)) {
            return everywhere::answer(&self.pool, function, request, reply).map_err(Into::into);
        }
        let end = self.answer(&[*request], &mut [reply]).pop();
        end.unwrap_or(Ok(())).map_err(EngineError::from)
    }

    fn call_batch(&self, calls: &mut [Call<'_>]) -> Vec<Result<(), EngineError>> {
        let requests: Vec<Request<'_>> = calls.iter().map(|call| call.request).collect();
        let first = requests.first().and_then(function_of);
        let is_for_all = first.is_some_and(everywhere::is_for_all);
        if is_for_all || requests.iter().any(|request| function_of(request) != first) {
            return calls.iter_mut().map(|call| self.call(&call.request, call.reply)).collect();
        }
        let mut replies: Vec<&mut dyn Reply> =
            calls.iter_mut().map(|call| &mut *call.reply as &mut dyn Reply).collect();
        let ends = self.answer(&requests, &mut replies);
        ends.into_iter().map(|end| end.map_err(EngineError::from)).collect()
    }

    fn health(&self) -> Result<(), EngineError> {
        self.pool.health()
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.pool.close();
    }
}
