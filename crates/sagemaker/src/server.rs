//! The port: connections, bodies within bounds, and the end of everything on a signal.

use std::convert::Infallible;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::error::LocalError;
use crate::fault::{Api, Fault, FaultKind};
use crate::options::Options;
use crate::reply::{self, Reply};
use crate::runtime::{Action, Invocation, too_large};
use crate::service::Service;
use crate::{control, runtime, signature};

/// Largest body of a call of the control plane.
const CONTROL_BYTES: usize = 1 << 20;
/// How long a request's head, and its body, may take to come.
const HEAD_TIME: Duration = Duration::from_secs(30);
const BODY_TIME: Duration = Duration::from_secs(300);
/// How long accepting rests after an error such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How long the last answers may take to go out once the containers have ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Serves until `shutdown` completes; then every endpoint ends, after it has answered what it was
/// asked.
///
/// # Errors
/// The address can't be bound, or the work directory can't be made.
pub async fn serve(
    mut options: Options,
    shutdown: impl Future<Output = ()>,
) -> Result<(), LocalError> {
    let dir = &options.work_dir;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.and_then(|()| std::path::absolute(dir))
        .map(|dir| options.work_dir = dir)
        .map_err(|source| LocalError::WorkDir { path: options.work_dir.clone(), source })?;
    let address = format!("{}:{}", options.host, options.port);
    let bind = |source| LocalError::Bind { address: address.clone(), source };
    let listener = TcpListener::bind(&address).await.map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    let signed = if options.credentials.is_some() { "checked" } else { "not checked" };
    tracing::info!(
        region = options.region,
        work_dir = %options.work_dir.display(),
        signatures = signed,
        "SageMaker API bind to: http://{bound}"
    );
    let service = Service::new(options);
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let service = Arc::clone(&service);
                    let answer = service_fn(move |request| answer(Arc::clone(&service), request));
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIME)
                        .serve_connection(TokioIo::new(stream), answer);
                    let connection = graceful.watch(connection);
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "connection");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
            () = &mut shutdown => break,
        }
    }
    drop(listener);
    end(&service).await;
    let _ = timeout(LAST_ANSWERS, graceful.shutdown()).await;
    Ok(())
}

/// Ends every endpoint.
async fn end(service: &Arc<Service>) {
    let endpoints = std::mem::take(&mut service.state().endpoints);
    tracing::info!(endpoints = endpoints.len(), "shutting down");
    let mut ending = JoinSet::new();
    for endpoint in endpoints.into_values() {
        ending.spawn(async move { endpoint.end().await });
    }
    while ending.join_next().await.is_some() {}
}

async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let id = Uuid::new_v4().to_string();
    let api = match Action::of_path(request.uri().path()) {
        Some(_) => Api::Runtime,
        None => Api::Control,
    };
    let reply = match route(&service, request).await {
        Ok(reply) => reply,
        Err(fault) => {
            let (code, status) = (fault.code(api), fault.status());
            tracing::debug!(code, status, reason = fault.message, "refused");
            reply::of_fault(api, &fault)
        }
    };
    Ok(reply::with_request_id(reply, &id))
}

async fn route(service: &Arc<Service>, request: Request<Incoming>) -> Result<Reply, Fault> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if parts.method == Method::GET && path == "/ping" {
        return Ok(reply::whole(200, None, Bytes::new()));
    }
    let action = Action::of_path(path);
    let limit = match action {
        Some(_) => service.options.limits.payload_bytes,
        None => CONTROL_BYTES,
    };
    let body = match timeout(BODY_TIME, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large(limit)),
        Ok(Err(error)) => {
            return Err(Fault::new(
                FaultKind::Serialization,
                format!("the body broke off: {error}"),
            ));
        }
        Err(_) => {
            return Err(Fault::new(FaultKind::Serialization, "the body did not come in time"));
        }
    };
    if let Some(credentials) = &service.options.credentials {
        signature::check(credentials, service.region(), &parts, &body, SystemTime::now())?;
    }
    if parts.method != Method::POST {
        return Err(unknown(&parts.method, path));
    }
    if let Some((name, action)) = action {
        let endpoint = name.to_owned();
        let invocation = Invocation { endpoint, headers: parts.headers, body };
        return runtime::answer(service, action, invocation).await;
    }
    match parts.headers.get("x-amz-target").map(|target| target.to_str()) {
        Some(Ok(target)) if path == "/" => control::answer(service, target, &body),
        _ => Err(unknown(&parts.method, path)),
    }
}

fn unknown(method: &Method, path: &str) -> Fault {
    let shown: String = path.chars().take(120).collect();
    Fault::new(
        FaultKind::UnknownOperation,
        format!(
            "{method} {shown}: expected POST / with X-Amz-Target: SageMaker.<call>, or POST \
             /endpoints/<name>/invocations, invocations-response-stream or async-invocations"
        ),
    )
}
