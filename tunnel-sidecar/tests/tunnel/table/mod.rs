//! Every fault there is a promise for, against the real server, with a user who never stops. One line for each.
//!
//!     cargo test --release -p tunnel-sidecar --test tunnel table -- --nocapture      (PIPEOPS_FAULT=… for some of them)
//!
//! The fence of each promise is ten times its seconds, because machines are busy; what was measured is printed.

mod network;
mod server;
mod target;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{task::JoinSet, time::Instant};

use crate::world::*;

/// Faults at a time: each has a Go server, a user and sometimes a process of its own.
const SIDE_BY_SIDE: usize = 4;
/// A fence is so many times the promise.
const FENCE: u32 = 10;

/// What a fault did.
pub(crate) struct Row {
    /// What users saw, and what the sidecar said.
    users: String,
    /// Until the sidecar said it.
    detect: Option<Duration>,
    /// From the end of the fault to the next answer for a user.
    recover: Option<Duration>,
    /// Of the user, when there was one all the while.
    seen: Option<Seen>,
}

impl Row {
    pub(crate) fn new(users: impl Into<String>) -> Self {
        Self {
            users: users.into(),
            detect: None,
            recover: None,
            seen: None,
        }
    }

    /// Found after so long; a promise is kept within its fence.
    pub(crate) fn found(mut self, after: Duration, promise: Duration) -> Self {
        assert!(
            after < promise * FENCE,
            "found after {after:?}, promised: {promise:?}"
        );
        self.detect = Some(after);
        self
    }

    /// Good again so long after the fault ended.
    pub(crate) fn back(mut self, after: Duration, promise: Duration) -> Self {
        assert!(
            after < promise * FENCE,
            "back after {after:?}, promised: {promise:?}"
        );
        self.recover = Some(after);
        self
    }

    /// Nothing was lost, changed or doubled without the user being told.
    pub(crate) fn with(mut self, flow: &Flow) -> Self {
        let seen = flow.seen();
        assert_eq!(
            seen.wrong, 0,
            "records lost, changed or doubled before others that came"
        );
        assert!(seen.answered > 0);
        self.seen = Some(seen);
        self
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Option<Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        write!(f, "{:>8} {:>8}", seconds(self.detect), seconds(self.recover))?;
        match &self.seen {
            Some(seen) => write!(
                f,
                "  {:>2} ended, {:>3} refused, {:>4} KiB told, {} silently, gap {:.2} s",
                seen.ended,
                seen.refused,
                seen.unanswered / 1024,
                seen.wrong,
                seen.gap.as_secs_f64()
            )?,
            None => write!(f, "  {:56}", "no connection was open")?,
        }
        write!(f, "  {}", self.users)
    }
}

type Fault = (&'static str, fn() -> BoxFuture<'static, Option<Row>>);

/// Names the faults beside what makes them.
macro_rules! faults {
    ($($name:literal: $fault:path,)*) => { &[$(($name, || $fault().boxed()),)*] };
}

const FAULTS: &[Fault] = faults! {
    "server kill -9, same key": server::killed_with_the_same_key,
    "server kill -9, new key": server::killed_with_a_new_key,
    "password change": server::another_password,
    "rules deny a port": server::other_rules,
    "port conflict": server::a_port_is_taken,
    "our crash, old listener still bound": server::the_old_listener_is_still_bound,
    "agent-core away": server::agent_core_is_away,
    "server moves (DNS)": server::it_moves,
    "accepts TCP, never answers": server::it_never_answers,
    "HTTP 404 instead of 101": server::not_found,
    "HTTP 502 instead of 101": server::bad_gateway,
    "HTTP redirect instead of 101": server::redirect,
    "L7 balancer drops idle sockets": server::behind_a_balancer,
    "black hole both ways": network::black_hole,
    "half open: server not heard": network::deaf,
    "half open: sidecar's packets dropped": network::dropped_by_a_filter,
    "half a proxy: sidecar not heard": network::mute,
    "reset in mid-packet": network::reset_in_mid_packet,
    "reset by a packet filter": network::reset_by_a_filter,
    "1 % loss, 100 ms": network::loss,
    "target down": target::down,
    "target does not answer the dial": target::silent,
    "target slow": target::slow,
    "target resets": target::resets,
    "target moves (DNS)": target::moves,
    "no file descriptor left": target::no_descriptor_left,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_found_survived_and_told() {
    let wanted = std::env::var("PIPEOPS_FAULT").unwrap_or_default();
    let mut waiting = FAULTS.iter().filter(|(name, _)| name.contains(&wanted));
    let mut running = JoinSet::new();
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut failed = Vec::new();
    let begin = Instant::now();
    loop {
        while running.len() < SIDE_BY_SIDE
            && let Some((name, fault)) = waiting.next()
        {
            running.spawn(async move {
                let outcome = std::panic::AssertUnwindSafe(fault()).catch_unwind().await;
                (*name, outcome)
            });
        }
        let Some(done) = running.join_next().await else {
            break;
        };
        let (name, outcome) = done.unwrap();
        let place = FAULTS.iter().position(|(known, _)| *known == name).unwrap();
        match outcome {
            Ok(Some(row)) => lines.push((place, format!("{name:36} {row}"))),
            Ok(None) => println!("SKIPPED: {name}"),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                lines.push((place, format!("{name:36} FAILED: {}", text.unwrap_or_default())));
                failed.push(name);
            }
        }
    }
    lines.sort();
    println!(
        "\n{:36} {:>8} {:>8}  the user all the while: connections ended, tries refused, bytes told and silently lost",
        "fault", "detect", "recover"
    );
    for (_, line) in &lines {
        println!("{line}");
    }
    println!("{} faults in {:.0} s", lines.len(), begin.elapsed().as_secs_f64());
    assert!(!lines.is_empty() && failed.is_empty(), "{failed:?}");
}

/// A sidecar with one forward, listening.
pub(crate) async fn one_forward(server: &str, target: &Target) -> (World, std::net::SocketAddr) {
    one_forward_with(server, target, |_| {}).await
}

/// The same with another spec.
pub(crate) async fn one_forward_with(
    server: &str,
    target: &Target,
    change: impl FnOnce(&mut proto::v1::TunnelSpec),
) -> (World, std::net::SocketAddr) {
    let world = World::start(&[("PIPEOPS_TARGET_K8S_PROXY", target.address())]).await;
    let port = free_port().await;
    let mut wanted = spec(server, &[("a", port, "k8s-proxy")]);
    change(&mut wanted);
    world.core.send(wanted);
    world.until_listening(1).await;
    (world, ([127, 0, 0, 1], port).into())
}

/// How long after `start` the sidecar says what is wanted, and the words of its condition.
pub(crate) async fn said(
    world: &World,
    start: Instant,
    what: &str,
    wanted: impl Fn(&proto::v1::TunnelReport) -> bool,
) -> (Duration, String) {
    let report = world.until(what, wanted).await;
    (start.elapsed(), condition(&report, "Tunnel").1.to_owned())
}

/// How long from now the next try is.
pub(crate) fn next_try(report: &proto::v1::TunnelReport) -> Option<Duration> {
    let at = SystemTime::try_from(report.status.as_ref()?.next_retry?).ok()?;
    at.duration_since(SystemTime::now()).ok()
}

pub(crate) fn not_connected(report: &proto::v1::TunnelReport) -> bool {
    session(report) != proto::v1::SessionState::Connected
}
