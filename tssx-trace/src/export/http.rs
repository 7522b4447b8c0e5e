//! Serving the metrics: a thread of its own without any privilege, so that no request reaches the thread that reads the kernel's maps.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::Desk;
use super::place::Listener;
use crate::privileges;

/// Connections at the same time; more wait.
const MOST_CONNECTIONS: usize = 16;
/// Longest that a connection may last: whoever sends nothing must not keep others out.
const TIME: Duration = Duration::from_secs(30);
/// Longest that a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Pause where no connection can be accepted, as without free descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Prometheus' text format.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves there until the process ends.
///
/// # Errors
/// Where the thread cannot be started.
pub(crate) fn start(listener: Listener, desk: Desk) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(String::from("metrics"));
    thread.spawn(move || serve(listener, desk)).map(drop).context("cannot start the thread that serves")
}

fn serve(listener: Listener, desk: Desk) {
    let served = privileges::drop_all().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(accept(listener, desk))
    });
    if let Err(error) = served {
        crate::output::note(&format!("error: metrics are not served any more: {error:#}"));
    }
}

async fn accept(listener: Listener, desk: Desk) -> anyhow::Result<()> {
    match listener {
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            talk_to_each(desk, async || listener.accept().await.map(|(stream, _)| stream)).await
        }
        Listener::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            talk_to_each(desk, async || listener.accept().await.map(|(stream, _)| stream)).await
        }
    }
}

async fn talk_to_each<S>(desk: Desk, accept: impl AsyncFn() -> io::Result<S>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let permit = room.clone().acquire_owned().await?;
        match accept().await {
            Ok(stream) => drop(tokio::spawn(talk(stream, desk.clone(), permit))),
            Err(error) => {
                crate::output::note(&format!("warning: a scrape was not accepted: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One connection. Whatever is wrong with it is the other end's affair.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, desk: Desk, permit: tokio::sync::OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(answer(&request, &desk).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).keep_alive(false);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    let _served = tokio::time::timeout(TIME, connection).await;
    drop(permit);
}

async fn answer(request: &Request<Incoming>, desk: &Desk) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()));
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => match desk.ask().await {
            Some(text) => respond(StatusCode::OK, FORMAT, Bytes::from(text)),
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "the tracer ends\n"),
        },
        "/" => plain(StatusCode::OK, "tssx-trace export: /metrics\n"),
        _ => plain(StatusCode::NOT_FOUND, "there is only /metrics\n"),
    }
}

fn respond(status: StatusCode, format: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(format));
    response
}
