//! The request model: it sends each content entry back, a few bytes a frame.

use std::sync::Mutex;
use std::time::Duration;

use drivetrain_engine::{Call, EngineError, Reply, Request, RequestModel, RequestModelInfo};

use crate::fault::Fault;

const FRAME_BYTES: usize = 4;

pub(crate) struct Echo {
    fault: Fault,
    /// What the last call read: another one's, if calls are mixed up.
    last: Mutex<Vec<u8>>,
}

impl Echo {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, last: Mutex::new(Vec::new()) }
    }
}

impl RequestModel for Echo {
    fn info(&self) -> RequestModelInfo {
        RequestModelInfo { max_concurrency: 4, max_batch: 3 }
    }

    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        if self.fault == Fault::PanicInCall {
            panic!("call gave up");
        }
        let Some((_, bytes)) = request.content.first() else {
            return Err(EngineError::bad_input("the request has no content: send a body"));
        };
        let mut body = bytes.to_vec();
        if self.fault == Fault::MixesRequests {
            let last = || self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *last() = body;
            std::thread::sleep(Duration::from_millis(1));
            body = last().clone();
        }
        if self.fault != Fault::LateHead {
            reply.head(200, "OK", &[("Content-Type", "text/plain")]);
        }
        for frame in body.chunks(FRAME_BYTES) {
            if !reply.frame(frame) && self.fault != Fault::KeepsSending {
                break;
            }
        }
        if self.fault == Fault::LateHead {
            reply.head(200, "OK", &[]);
        }
        Ok(())
    }

    fn call_batch(&self, calls: &mut [Call<'_>]) -> Vec<Result<(), EngineError>> {
        let Some(first) = calls.first().map(|call| call.request) else { return Vec::new() };
        let mixes = self.fault == Fault::MixesBatches;
        let mut answer =
            |call: &mut Call<'_>| self.call(if mixes { &first } else { &call.request }, call.reply);
        let mut ends: Vec<_> = calls.iter_mut().map(&mut answer).collect();
        if self.fault == Fault::ShortBatch {
            ends.pop();
        }
        ends
    }
}
