//! One connection: HTTP/1 with bounds on everything a client can stretch, and its place in the
//! access log.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Method, Request, Response, StatusCode, Uri, Version};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::io::Watched;
use super::limits::Limits;
use super::listener::{Accepted, Listener};
use crate::failure::own_refusal_reply;

/// Most bytes of a request's head, and of what is read ahead.
const MAX_BUFFER_BYTES: usize = 128 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 128;
/// After the shutdown signal, how long a connection without a request in progress may linger.
const IDLE_GRACE: Duration = Duration::from_secs(1);
/// How long accepting rests after an error such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// The order to shut down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// When whoever is still there is cut off.
    pub(crate) at: Instant,
}

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    router: Router,
    permits: Arc<Semaphore>,
    protocol: http1::Builder,
    write_limit: Duration,
}

impl Connections {
    pub(crate) fn new(router: Router, limits: Limits) -> Arc<Self> {
        let mut protocol = http1::Builder::new();
        protocol
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MAX_BUFFER_BYTES)
            .max_headers(MAX_HEADERS);
        let permits = Arc::new(Semaphore::new(limits.max_connections));
        Arc::new(Self { router, permits, protocol, write_limit: limits.write })
    }

    /// Accepts connections until told to stop. Each runs on a task of its own, holding `alive`.
    pub(crate) async fn accept(
        self: Arc<Self>,
        listener: Listener,
        stop: watch::Receiver<Option<Stop>>,
        alive: mpsc::Sender<()>,
    ) {
        let accepting = async {
            loop {
                let permit = Arc::clone(&self.permits)
                    .acquire_owned()
                    .await
                    .expect("the semaphore lives as long as this loop and is never closed");
                let accepted = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!("can't accept a connection: {error}");
                        sleep(ACCEPT_REST).await;
                        continue;
                    }
                };
                let (connections, stop, alive) = (Arc::clone(&self), stop.clone(), alive.clone());
                tokio::spawn(async move {
                    match accepted {
                        Accepted::Tcp(socket, peer) => {
                            connections.run(TokioIo::new(socket), peer, stop).await;
                        }
                        Accepted::Unix(socket) => {
                            connections.run(TokioIo::new(socket), "unix:".to_owned(), stop).await;
                        }
                    }
                    drop((permit, alive));
                });
            }
        };
        let mut stop = stop.clone();
        tokio::select! {
            () = accepting => {}
            _ = stop.wait_for(Option::is_some) => {}
        }
    }

    async fn run<S>(&self, socket: S, peer: String, mut stop: watch::Receiver<Option<Stop>>)
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let client = Arc::new(Client { peer, n_active: AtomicUsize::new(0) });
        let waiting = Arc::new(AtomicBool::new(false));
        let service = Front { router: self.router.clone(), client: Arc::clone(&client) };
        let socket =
            Watched::new(socket, self.write_limit, Arc::clone(&waiting), own_refusal_reply);
        let mut connection = pin!(self.protocol.serve_connection(socket, service));
        let stop = tokio::select! {
            done = connection.as_mut() => return log_end(&client, done),
            stop = stop.wait_for(Option::is_some) => stop.ok().and_then(|stop| *stop),
        };
        let at = stop.map_or_else(Instant::now, |stop| stop.at);
        connection.as_mut().graceful_shutdown();
        loop {
            let look = at.min(Instant::now() + IDLE_GRACE);
            if let Ok(done) = timeout_at(look, connection.as_mut()).await {
                return log_end(&client, done);
            }
            let busy =
                client.n_active.load(Ordering::Acquire) > 0 || waiting.load(Ordering::Acquire);
            if !busy {
                return;
            }
            if Instant::now() >= at {
                tracing::warn!("{}: cut off by the shutdown", client.peer);
                return;
            }
        }
    }
}

fn log_end(client: &Client, done: hyper::Result<()>) {
    if let Err(error) = done {
        tracing::debug!("{}: {error}", client.peer);
    }
}

#[derive(Debug)]
struct Client {
    peer: String,
    /// Requests whose reply is not written yet.
    n_active: AtomicUsize,
}

/// The router with the access log around it.
struct Front {
    router: Router,
    client: Arc<Client>,
}

impl Service<Request<Incoming>> for Front {
    type Response = Response<TrackedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut exchange = Exchange::begin(Arc::clone(&self.client), &request);
        let reply = tower::Service::call(&mut self.router.clone(), request.map(Body::new));
        Box::pin(async move {
            let response = reply.await?;
            exchange.status = Some(response.status());
            Ok(response.map(|body| TrackedBody { body, _exchange: exchange }))
        })
    }
}

/// A request in progress, from its head to the last byte of its reply; then a line in the log.
struct Exchange {
    client: Arc<Client>,
    method: Method,
    uri: Uri,
    version: Version,
    began: Instant,
    status: Option<StatusCode>,
}

impl Exchange {
    fn begin(client: Arc<Client>, request: &Request<Incoming>) -> Self {
        client.n_active.fetch_add(1, Ordering::AcqRel);
        Self {
            client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            began: Instant::now(),
            status: None,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.client.n_active.fetch_sub(1, Ordering::AcqRel);
        // Without a status the client went away before there was one: 499, as proxies log it.
        tracing::info!(
            target: "access",
            "{} \"{} {} {:?}\" {} {}",
            self.client.peer,
            self.method,
            self.uri,
            self.version,
            self.status.map_or(499, |status| status.as_u16()),
            self.began.elapsed().as_millis()
        );
    }
}

/// A reply's body; the exchange ends with it.
struct TrackedBody {
    body: Body,
    _exchange: Exchange,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
