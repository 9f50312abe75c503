//! The runtime: invocations of endpoints.

mod asynchronous;
mod headers;
mod invoke;
mod stream;

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;

use crate::endpoint::{Deployment, Variant};
use crate::fault::{Fault, FaultKind};
use crate::reply::Reply;
use crate::service::Service;

/// What is asked of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Invoke,
    Stream,
    Later,
}

impl Action {
    /// The endpoint's name and the action of `/endpoints/{name}/{action}`.
    pub(crate) fn of_path(path: &str) -> Option<(&str, Self)> {
        let (name, action) = path.strip_prefix("/endpoints/")?.split_once('/')?;
        let action = match action {
            "invocations" => Self::Invoke,
            "invocations-response-stream" => Self::Stream,
            "async-invocations" => Self::Later,
            _ => return None,
        };
        Some((name, action))
    }
}

/// An invocation, taken in.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) endpoint: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Answers an invocation.
///
/// # Errors
/// It is refused, or the container gives no answer.
pub(crate) async fn answer(
    service: &Arc<Service>,
    action: Action,
    invocation: Invocation,
) -> Result<Reply, Fault> {
    headers::check(&invocation.headers)?;
    let deployment = find(service, &invocation.endpoint)?;
    if action == Action::Later {
        return asynchronous::accept(service, &deployment, invocation);
    }
    if deployment.config.asynchronous.is_some() {
        return Err(Fault::validation(format!(
            "Endpoint {} answers asynchronously: use InvokeEndpointAsync",
            invocation.endpoint
        )));
    }
    let limit = service.options.limits.payload_bytes;
    if invocation.body.len() > limit {
        return Err(too_large(limit));
    }
    let variant = variant(&deployment, &invocation.headers)?;
    match action {
        Action::Stream => stream::answer(service, variant, &invocation).await,
        Action::Invoke | Action::Later => invoke::answer(service, variant, &invocation).await,
    }
}

/// The body is larger than the service takes.
pub(crate) fn too_large(limit: usize) -> Fault {
    Fault::validation(format!(
        "1 validation error detected: Value at 'body' failed to satisfy constraint: Member must have \
         length less than or equal to {limit}"
    ))
}

fn find(service: &Service, name: &str) -> Result<Arc<Deployment>, Fault> {
    let endpoint = service.state().endpoints.get(name).cloned();
    let Some(endpoint) = endpoint else {
        return Err(Fault::validation(format!(
            "Endpoint {name} of account {} not found.",
            crate::names::ACCOUNT
        )));
    };
    endpoint.deployment()
}

/// The variant that the request names, or whose turn it is.
fn variant(deployment: &Deployment, headers: &HeaderMap) -> Result<Arc<Variant>, Fault> {
    let wanted = headers::text(headers, headers::TARGET_VARIANT);
    deployment.choose(wanted).map(Arc::clone)
}

/// Nothing that an answer can be made of came in time.
fn late(seconds: u64) -> Fault {
    Fault::model(crate::fault::Original {
        status: 0,
        message: format!("the container did not answer within {seconds} s"),
    })
}

/// A fault of ours.
fn internal(what: &str) -> Fault {
    Fault::new(FaultKind::Internal, what)
}
