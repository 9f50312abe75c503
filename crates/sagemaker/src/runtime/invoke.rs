//! `InvokeEndpoint`: one request, one whole answer.

use std::sync::Arc;
use std::time::Duration;

use hyper::{HeaderMap, Method};
use tokio::time::{Instant, timeout_at};

use super::{Invocation, headers, late};
use crate::endpoint::{
    Answer, Call, CallError, Container, Many, NO_MEMORY, Variant, invoke_path, no_answer, original,
};
use crate::fault::Fault;
use crate::options::Limits;
use crate::reply::{self, Reply};
use crate::service::Service;

/// How often a request is sent anew because its model was unloaded meanwhile, or memory ran out.
const MAX_SENT: usize = 8;

pub(super) async fn answer(
    service: &Arc<Service>,
    variant: Arc<Variant>,
    invocation: &Invocation,
) -> Result<Reply, Fault> {
    let limits = &service.options.limits;
    let ask = Ask {
        variant: &variant,
        invocation,
        api: "InvokeEndpoint",
        limits,
        time: limits.invocation,
        answer_bytes: limits.payload_bytes,
    };
    let answer = ask.answer().await?;
    let client = headers::to_client(&invocation.headers, &answer.headers, &variant.name);
    let mut reply = reply::whole(200, None, answer.body);
    *reply.headers_mut() = client;
    Ok(reply)
}

/// What is asked of a variant, and how long and how large the answer may be.
pub(super) struct Ask<'a> {
    pub(super) variant: &'a Arc<Variant>,
    pub(super) invocation: &'a Invocation,
    pub(super) api: &'static str,
    pub(super) limits: &'a Limits,
    pub(super) time: Duration,
    pub(super) answer_bytes: usize,
}

impl Ask<'_> {
    /// The answer, if its status is one of success.
    pub(super) async fn answer(&self) -> Result<Answer, Fault> {
        let deadline = Instant::now() + self.time;
        let container = self.variant.container()?;
        let asked = match (self.variant.many(), target(self.variant, &self.invocation.headers)?) {
            (Some(many), Some(target)) => self.of_many(many, &container, target, deadline).await?,
            _ => self.send(&container, "/invocations".to_owned(), deadline).await?,
        };
        match asked.status {
            200..=299 => Ok(asked),
            _ => Err(original(&asked)),
        }
    }

    async fn of_many(
        &self,
        many: &Many,
        container: &Arc<Container>,
        target: &str,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let mut n_sent = 0;
        loop {
            let name = many.load(container, target, self.limits, deadline).await?;
            let answer = self.send(container, invoke_path(&name), deadline).await?;
            n_sent += 1;
            let again = n_sent < MAX_SENT;
            if again && Many::is_missing(&answer) {
                many.forget(&name);
                continue;
            }
            if again && answer.status == NO_MEMORY && many.make_room(container, &name).await? {
                continue;
            }
            many.answered(container, &name).await;
            return Ok(answer);
        }
    }

    async fn send(
        &self,
        container: &Container,
        path: String,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let call = call(path, &self.invocation.headers, self.api, self.invocation);
        match timeout_at(deadline, container.ask(call, self.answer_bytes)).await {
            Ok(answered) => answered.map_err(|error| failed(&error)),
            Err(_) => Err(late(self.time.as_secs())),
        }
    }
}

/// The model that a request names: there has to be one on a multi-model endpoint, and none elsewhere.
fn target<'a>(variant: &Variant, headers: &'a HeaderMap) -> Result<Option<&'a str>, Fault> {
    match (variant.many(), headers::text(headers, headers::TARGET_MODEL)) {
        (Some(_), None) => Err(Fault::validation(
            "the endpoint serves many models: name one of them with TargetModel",
        )),
        (None, Some(_)) => Err(Fault::validation(
            "TargetModel: the endpoint serves one model; Mode MultiModel makes it serve many",
        )),
        (_, target) => Ok(target),
    }
}

/// A request to the container.
pub(super) fn call(
    path: String,
    headers: &HeaderMap,
    api: &'static str,
    invocation: &Invocation,
) -> Call {
    Call {
        method: Method::POST,
        path,
        headers: headers::to_container(headers, api),
        body: invocation.body.clone(),
    }
}

pub(super) fn failed(error: &CallError) -> Fault {
    no_answer(error)
}
