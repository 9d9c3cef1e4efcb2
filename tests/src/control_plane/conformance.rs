//! Whether a control plane keeps the window contract of HTTP/2 over the WebSocket: streams whose readers are stalled
//! must not hold up anybody else.
//!
//! ```text
//!  this check, as a proxy ══ HTTP/2 over a WebSocket ══ the control plane ◄─ HTTP/1.1 ─ this check, as its callers
//!    endless logs, a small answer                                           100 that never read, one that asks
//! ```
//! A control plane with an HTTP/2 client at its defaults may pass with one stalled reader and hang for ever with three.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use runtime::{
    carrier::{Carrier, MAX_MESSAGE},
    secret::SecretString,
    websocket::{self, Connect},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use url::Url;

use super::link::http2::SUBPROTOCOL;

/// The check's own endless answer, and its small one.
const FLOOD: &str = "/api/v1/namespaces/conformance/pods/flood/log?follow=true";
const SMALL: &str = "/version";
/// Time for one small call; without the contract it takes for ever.
const CALL: Duration = Duration::from_secs(3);
/// Small calls for one percentile.
const CALLS: usize = 200;
/// A flood whose reader is stalled takes nothing for so long.
const STILL: Duration = Duration::from_millis(500);
/// Time for all floods to come to a stop.
const STOP: Duration = Duration::from_secs(60);
/// Pieces of a flood.
const PIECE: usize = 16 * 1024;

/// Where a control plane is, from both of its sides.
#[derive(Debug)]
pub struct Target {
    /// `ws` or `wss` URL that a proxy dials.
    pub dial: Url,
    /// Bearer of the proxy.
    pub dial_token: SecretString,
    /// URL under which callers find the Kubernetes API of that proxy.
    pub front: Url,
    /// Bearer of the callers.
    pub front_token: SecretString,
    /// PEM of an authority for both; the system's when absent.
    pub ca: Option<Vec<u8>>,
    /// Readers that stall.
    pub stalled: usize,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// 99th percentile of a small call without stalled readers.
    pub before: Duration,
    /// The same beside them.
    pub beside: Duration,
    /// Bytes that the stalled readers hold in all.
    pub held: u64,
}

/// Checks the contract.
///
/// # Errors
/// When the control plane breaks it, or cannot be reached.
pub async fn windows(target: &Target) -> Result<Windows> {
    let taken = Arc::new(AtomicU64::new(0));
    let agent = agent(target, Arc::clone(&taken)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(agent);
    let client = client(target)?;
    let ask = |path: &str| {
        let url = format!("{}{path}", target.front.as_str().trim_end_matches('/'));
        use runtime::secret::ExposeSecret as _;
        client.get(url).bearer_auth(target.front_token.expose_secret())
    };
    reachable(&ask).await?;
    let before = percentile(&ask).await.context("without stalled readers")?;
    let mut floods = Vec::new();
    for index in 0..target.stalled {
        // Dropped only at the end, and never read.
        let flood = timeout(CALL, ask(FLOOD).send()).await;
        let flood = flood
            .with_context(|| hung(index))?
            .context("opening an endless log")?;
        ensure!(
            flood.status().is_success(),
            "an endless log was answered {}",
            flood.status()
        );
        floods.push(flood);
    }
    let started = Instant::now();
    loop {
        let seen = taken.load(Relaxed);
        sleep(STILL).await;
        if seen > 0 && taken.load(Relaxed) == seen {
            break;
        }
        ensure!(
            started.elapsed() < STOP,
            "the control plane takes what nobody reads, without a bound"
        );
    }
    let beside = percentile(&ask).await.with_context(|| hung(target.stalled))?;
    drop(floods);
    Ok(Windows {
        before,
        beside,
        held: taken.load(Relaxed),
    })
}

fn hung(stalled: usize) -> String {
    format!(
        "with {stalled} stalled readers a call is not answered within {CALL:?}: the connection window must be at least stream window × streams that may stall + 1 MiB"
    )
}

async fn reachable(ask: &impl Fn(&str) -> reqwest::RequestBuilder) -> Result<()> {
    let mut last = String::new();
    for _ in 0..50 {
        match timeout(CALL, ask(SMALL).send()).await {
            Ok(Ok(answer)) if answer.status().is_success() => return Ok(()),
            Ok(Ok(answer)) => last = answer.status().to_string(),
            Ok(Err(error)) => last = runtime::supervise::chain(&error),
            Err(_) => "no answer".clone_into(&mut last),
        }
        sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("the front does not lead to the proxy of this check: {last}")
}

async fn percentile(ask: &impl Fn(&str) -> reqwest::RequestBuilder) -> Result<Duration> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        let call = async {
            let answer = ask(SMALL).send().await?.error_for_status()?;
            answer.bytes().await
        };
        timeout(CALL, call).await.context("a small call")??;
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times[CALLS * 99 / 100])
}

/// HTTP/1.1, a connection for each call: what stalls is the control plane's business alone.
fn client(target: &Target) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().http1_only();
    if let Some(ca) = &target.ca {
        builder = builder.tls_certs_only([reqwest::Certificate::from_pem(ca)?]);
    }
    Ok(builder.build()?)
}

/// Dials as a proxy does, and serves.
async fn agent(target: &Target, taken: Arc<AtomicU64>) -> Result<impl Future<Output = ()> + use<>> {
    let connecting = websocket::negotiate(
        Connect {
            url: &target.dial,
            bearer: Some(&target.dial_token),
            subprotocol: Some(SUBPROTOCOL),
            tls: runtime::tls::client_config(target.ca.as_deref(), &[b"http/1.1"])?,
            timeout: Duration::from_secs(10),
            max_message: MAX_MESSAGE,
        },
        |stream| stream,
    );
    let (socket, http2) = connecting.await.context("dialling as a proxy")?;
    ensure!(http2, "the control plane does not take {SUBPROTOCOL}");
    let service = service_fn(move |request: Request<Incoming>| {
        let taken = Arc::clone(&taken);
        async move { Ok::<_, Infallible>(answer(&request, taken)) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(10_000)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(Duration::from_secs(10));
    let connection = builder.serve_connection(TokioIo::new(Carrier::new(socket)), service);
    Ok(async move {
        if let Err(error) = pin!(connection).await {
            tracing::debug!(%error, "the check's link ended");
        }
    })
}

fn answer(request: &Request<Incoming>, taken: Arc<AtomicU64>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let (kind, body) = if request.uri().path().ends_with("/log") {
        ("text/plain", Flood(taken).boxed_unsync())
    } else {
        let kilobyte = format!(r#"{{"major":"1","minor":"0","padding":"{}"}}"#, "x".repeat(980));
        (
            "application/json",
            Full::new(Bytes::from(kilobyte)).boxed_unsync(),
        )
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// Never ends, and counts what is taken from it.
struct Flood(Arc<AtomicU64>);

impl http_body::Body for Flood {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static PIECES: [u8; PIECE] = [b'x'; PIECE];
        self.0.fetch_add(PIECE as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECES)))))
    }
}
