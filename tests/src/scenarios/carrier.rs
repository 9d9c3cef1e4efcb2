//! Bytes through a forward all the time, on one connection as long as it holds.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use crate::{control_plane::ControlPlane, wait::eventually};

/// Between two requests.
const PACE: Duration = Duration::from_millis(50);
/// A connection that is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Seen {
    /// Connections that carried at least one answer.
    connections: u32,
    answers: u64,
    why: String,
}

/// Requests through one forward, one after the other; ends when it is dropped.
#[derive(Debug)]
pub struct Carrier {
    name: String,
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

impl Carrier {
    /// Starts with the first answer there.
    ///
    /// # Errors
    /// When there is no such forward.
    pub async fn start(control_plane: &ControlPlane, cluster: &str, forward: &str) -> Result<Self> {
        let path = match forward {
            "agent-http" => "/livez",
            "k8s-proxy" => "/version",
            other => anyhow::bail!("no request is known for forward {other}"),
        };
        let view = control_plane.tunnel(cluster).context("no tunnel")?;
        let port = view
            .forwards
            .iter()
            .find(|known| known.name == forward)
            .context("no such forward")?
            .port;
        let (seen, mut task) = (Arc::<Mutex<Seen>>::default(), JoinSet::new());
        let (noted, address) = (Arc::clone(&seen), SocketAddr::from(([127, 0, 0, 1], port)));
        let bearer = format!("Bearer {}", control_plane.token());
        task.spawn(async move {
            loop {
                if let Err(error) = one_connection(address, path, &bearer, &noted).await {
                    lock(&noted).why = format!("{error:#}");
                }
                tokio::time::sleep(PACE).await;
            }
        });
        let carrier = Self {
            name: forward.to_owned(),
            seen,
            _task: task,
        };
        carrier.carries(1).await;
        Ok(carrier)
    }

    /// How many connections it took so far.
    pub fn connections(&self) -> u32 {
        lock(&self.seen).connections
    }

    /// Why the last connection ended; empty when none did.
    pub fn why(&self) -> String {
        lock(&self.seen).why.clone()
    }

    /// Waits for `more` answers.
    pub async fn carries(&self, more: u64) -> Duration {
        let wanted = lock(&self.seen).answers + more;
        let what = format!("{more} answers through forward {}", self.name);
        let there = || {
            let there = lock(&self.seen).answers >= wanted;
            async move { there.then_some(()) }
        };
        eventually(&what, there).await.1
    }
}

async fn one_connection(address: SocketAddr, path: &str, bearer: &str, seen: &Mutex<Seen>) -> Result<()> {
    let stream = timeout(SILENCE, TcpStream::connect(address)).await??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        connection.await.ok();
    });
    for number in 0_u64.. {
        let request = Request::get(path)
            .header(header::HOST, "forward")
            .header(header::AUTHORIZATION, bearer)
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        let (status, body) = timeout(SILENCE, answer).await??;
        ensure!(
            status.is_success() && !body.is_empty(),
            "answer {number}: {status}"
        );
        note(seen, number == 0);
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

fn note(seen: &Mutex<Seen>, first: bool) {
    let mut seen = lock(seen);
    seen.connections += u32::from(first);
    seen.answers += 1;
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
