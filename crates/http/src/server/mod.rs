//! The listeners, from bind to the last reply.
//!
//! Shutting down has three steps: listeners close, so that new connections are refused; the host
//! drains, while connections finish what they are answering and then close; whoever is still there
//! at the end is cut off.

mod connection;
mod io;
mod limits;
mod listener;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use drivetrain_config::{Address, ServerConfig};
use drivetrain_host::Host;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::app::AppState;
use crate::error::HttpError;
use crate::routes::{Routes, routes};
use connection::{Connections, Stop};
pub use limits::Limits;
use listener::Listener;

/// How long before the connections are cut off the host's work ends, for the replies to go out.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// A server whose listeners are bound: it accepts connections once it runs.
#[derive(Debug)]
pub struct Server {
    host: Host,
    listeners: Vec<(Listener, Arc<Connections>)>,
    bound: Vec<BoundAddress>,
    drain: Duration,
}

/// Where a listener is bound, and what it serves. `Display` is the line that log scrapers look for:
/// `BOTH API bind to: http://0.0.0.0:8080`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundAddress {
    /// `BOTH`, `INFERENCE` or `MANAGEMENT`.
    pub kind: &'static str,
    /// The address with the port that the system chose, if it was asked to.
    pub address: Address,
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} API bind to: {}", self.kind, self.address)
    }
}

impl Server {
    /// Binds the configured listeners: one with every route where inference and management share an
    /// address, else one for each.
    ///
    /// # Errors
    /// `Bind` for an address that can't be had; `Address` for one that this server can't serve.
    pub async fn bind(
        host: Host,
        config: Arc<ServerConfig>,
        limits: Limits,
    ) -> Result<Self, HttpError> {
        let app = AppState::new(host.clone(), &config, &limits);
        let inference = &config.inference_address.value;
        let management = &config.management_address.value;
        let wanted = if inference == management {
            vec![("inference_address", inference, Routes::Both)]
        } else {
            vec![
                ("inference_address", inference, Routes::Inference),
                ("management_address", management, Routes::Management),
            ]
        };
        // A client that takes no piece of a stream for that long is cut off as an engine is that
        // gives none.
        let frame = config.chunked_read_timeout.value;
        let write = if frame.is_zero() { limits.write } else { limits.write.min(frame) };
        let stalled = Limits { write, ..limits };
        let mut listeners = Vec::with_capacity(wanted.len());
        let mut bound = Vec::with_capacity(wanted.len());
        for (key, address, kind) in wanted {
            let listener = Listener::bind(key, address).await?;
            bound.push(BoundAddress { kind: kind.name(), address: listener.address(address) });
            listeners.push((listener, Connections::new(routes(&app, kind), stalled)));
        }
        Ok(Self { host, listeners, bound, drain: limits.drain })
    }

    /// Where it listens.
    pub fn bound(&self) -> &[BoundAddress] {
        &self.bound
    }

    /// Serves until `shutdown` completes, then drains: returns when the last reply is out, at the
    /// latest when [`Limits::drain`] is over.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, _) = watch::channel(None::<Stop>);
        // Every connection holds a sender; when all are gone, so are the connections.
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let mut accepting = Vec::with_capacity(self.listeners.len());
        for (listener, connections) in self.listeners {
            accepting.push(tokio::spawn(connections.accept(
                listener,
                stop.subscribe(),
                alive.clone(),
            )));
        }
        drop(alive);
        let upkeep = tokio::spawn(crate::metrics::keep_up());
        for bound in &self.bound {
            tracing::info!("{bound}");
        }
        shutdown.await;
        let now = Instant::now();
        tracing::info!("shutting down: no new connections, requests in progress are finished");
        let end = now + self.drain;
        let last_work = end - LAST_REPLIES.min(self.drain / 2);
        stop.send_replace(Some(Stop { at: end }));
        self.host.begin_drain(last_work.into_std());
        for task in accepting {
            if let Err(error) = task.await {
                tracing::error!("a listener failed: {error}");
            }
        }
        let _: Option<()> = all_gone.recv().await;
        let _ = tokio::time::timeout_at(end, self.host.drained()).await;
        upkeep.abort();
        tracing::info!("shut down after {} ms", now.elapsed().as_millis());
    }
}

/// Binds, serves until `shutdown` completes, and drains: [`Server::bind`] and [`Server::run`].
///
/// # Errors
/// As [`Server::bind`].
pub async fn serve(
    host: Host,
    config: Arc<ServerConfig>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), HttpError> {
    Server::bind(host, config, Limits::default()).await?.run(shutdown).await;
    Ok(())
}
