//! Metrics for Prometheus: `GET /metrics` over HTTP, where the job says so (`telemetry.prometheus`).
//!
//! It reads the latest snapshot and nothing else. A port that is taken is a warning: an unattended run is worth more
//! than its metrics. Readers are few ([`bounds::SCRAPERS`]) and must be quick; nobody is answered but with the
//! figures, which anyone who reaches the address may read.

mod exposition;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actors::{Snapshot, bounds};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// How long a reader may take to ask.
const ASKING_MAX: Duration = Duration::from_secs(5);
/// How long a reader may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request, headers and all.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Pause after a connection could not be taken, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// The server of a run; gone when dropped.
pub(crate) struct Metrics {
    task: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Serves a run's snapshots, where the job wants that and the address can be had.
    pub(crate) async fn serve(
        address: Option<SocketAddr>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        let Some(address) = address else { return Self { task: None } };
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%address, %error, "metrics cannot be served; the run goes on without");
                return Self { task: None };
            }
        };
        // Port 0 stands for any that is free.
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!(url = %format_args!("http://{address}/metrics"), "metrics are served");
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "anyone who reaches this address can read the metrics");
        }
        Self { task: Some(tokio::spawn(accept(listener, snapshots))) }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, snapshots: watch::Receiver<Arc<Snapshot>>) {
    let readers = Arc::new(Semaphore::new(bounds::SCRAPERS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Too many at once: this one is turned away by the closing of its connection.
        let Ok(place) = readers.clone().try_acquire_owned() else { continue };
        let snapshots = snapshots.clone();
        tokio::spawn(async move {
            // Whoever asks and leaves, or is too slow, has no answer to read.
            let _ = tokio::time::timeout(PATIENCE, converse(stream, snapshots)).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, snapshots: watch::Receiver<Arc<Snapshot>>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &snapshots);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKING_MAX)
        .max_buf_size(REQUEST_BYTES_MAX)
        // A place is held by who reads, not by who may read again.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(method: &Method, path: &str, snapshots: &watch::Receiver<Arc<Snapshot>>) -> Response<Full<Bytes>> {
    let respond = |status: StatusCode, kind: &'static str, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    if path != "/metrics" {
        return respond(StatusCode::NOT_FOUND, PLAIN, "there is only /metrics here\n".to_owned());
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let snapshot = snapshots.borrow().clone();
    respond(StatusCode::OK, exposition::CONTENT_TYPE, exposition::text(&snapshot))
}
