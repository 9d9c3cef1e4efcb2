//! Sends bytes through each forward and back, as somebody at the chisel server can.
//!
//! The agent listens for us at a remote of its own (`pipeops-echo`, on chisel's loopback). What is said there and on the
//! forward is described in tunnel-sidecar's `echo`.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use runtime::secret::hex;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::state::State;

/// Name of the remote among the forwards that agents are told.
pub(super) const ECHO: &str = "pipeops-echo";
/// One forward, there and back; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Digits of a nonce.
const NONCE: usize = 32;

/// Bytes that went through a forward and came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProofView {
    /// Milliseconds since then.
    pub age_ms: u64,
    /// From the server to the agent and back, microseconds.
    pub round_trip_us: u64,
}

/// What was proven last, by cluster and forward.
#[derive(Debug, Default)]
pub(super) struct Proven {
    last: Mutex<HashMap<(String, String), (Instant, Duration)>>,
}

impl Proven {
    pub(super) fn of(&self, cluster: &str, forward: &str) -> Option<ProofView> {
        let last = self.lock();
        let (at, took) = last.get(&(cluster.to_owned(), forward.to_owned()))?;
        let number = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
        Some(ProofView {
            age_ms: number(at.elapsed().as_millis()),
            round_trip_us: number(took.as_micros()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), (Instant, Duration)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Proves all forwards of all clusters again and again.
pub(super) async fn keep_proving(state: Arc<State>, every: Duration) {
    loop {
        sleep(every).await;
        let wanted: Vec<_> = {
            let book = state.book();
            let known = book.clusters().into_iter().filter(|cluster| cluster.known);
            known
                .filter_map(|cluster| Some((cluster.id.clone(), cluster.echo?, cluster.forwards.clone())))
                .collect()
        };
        for (id, echo, forwards) in wanted {
            for (name, _) in forwards {
                let Some(address) = state.forward_address(&id, &name) else {
                    continue;
                };
                if !super::ports::listening(address.port()) || !super::ports::listening(echo) {
                    continue;
                }
                match timeout(PATIENCE, prove(echo, &name, address, every)).await {
                    Ok(Ok(took)) => {
                        let key = (id.clone(), name);
                        state.proven.lock().insert(key, (Instant::now(), took));
                    }
                    Ok(Err(error)) => {
                        let error = format!("{error:#}");
                        tracing::info!(cluster = id, forward = name, error, "not proven");
                    }
                    Err(_) => tracing::info!(cluster = id, forward = name, "not proven within {PATIENCE:?}"),
                }
            }
        }
    }
}

/// One forward, there and back; returns how long that took.
async fn prove(echo: u16, forward: &str, address: SocketAddr, every: Duration) -> Result<Duration> {
    let nonce = hex(&rand::random::<[u8; NONCE / 2]>());
    let mut door = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, echo)).await?);
    let line = format!("probe {forward} {nonce} {}\n", every.as_millis());
    door.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    door.read_line(&mut answer).await?;
    if answer.trim_end() != "armed" {
        bail!("the agent's echo door says {:?}", answer.trim_end());
    }
    let mut through = TcpStream::connect(address).await?;
    through.set_nodelay(true)?;
    let start = Instant::now();
    through.write_all(nonce.as_bytes()).await?;
    let mut both = [0; NONCE * 2];
    through.read_exact(&mut both).await.context("the forward")?;
    let took = start.elapsed();
    let (ours, theirs) = both.split_at(NONCE);
    if ours != nonce.as_bytes() {
        bail!("other bytes came back");
    }
    through.write_all(theirs).await?;
    // The agent closes when it has seen its own.
    through.read_to_end(&mut Vec::new()).await?;
    Ok(took)
}
