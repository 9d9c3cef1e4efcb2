//! The desired state as agent-core sends it, read once into what the link can act on.
//!
//! A fault in one forward refuses that forward by name; a fault of the link itself (address, fingerprint, trust)
//! refuses the whole.

mod forwards;
mod link;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use proto::v1::TunnelSpec;

use self::forwards::Reader;
pub use self::link::{Link, Via};
use crate::{
    address::HostPort,
    limits::Limits,
    never::Never,
    remotes::{Listen, Shape},
    socks::rules::Rules,
    targets::{Permits, Places, Target},
};

/// Ping interval and deadline when the spec names none: together a black hole is found within ten seconds.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings closer than this would only measure themselves.
const LEAST_PING: Duration = Duration::from_millis(10);

/// Forwards beyond this are refused by name: each is a listener, a row of every report and a label of metrics.
const MAX_FORWARDS: usize = 256;

/// Each session is a TCP connection with keys and buffers of its own.
pub const MAX_SESSIONS: usize = 16;

/// Name of the reserved remote that leads to our echo door and to no target.
pub const ECHO: &str = "pipeops-echo";

/// What agent-core wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Desired {
    /// Nothing to do, which is a decision with a reason.
    Idle {
        /// Why.
        reason: String,
    },
    /// The spec cannot be carried out.
    Refused {
        /// What to change.
        reason: String,
        /// The server as far as it could be read.
        server: String,
    },
    /// A tunnel.
    Tunnel(Box<Tunnel>),
}

/// A tunnel as desired.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunnel {
    /// Where to and as whom.
    pub link: Link,
    /// Everything that is kept in order.
    pub forwards: Vec<Forward>,
    /// How a dead link is found.
    pub liveness: Liveness,
    /// Close after so much silence.
    pub inactivity: Option<Duration>,
    /// Sessions over which the forwards are spread.
    pub sessions: usize,
    /// Rises when the control plane asks for the tunnel anew.
    pub demand: u64,
    /// What leads to our echo door.
    pub echo: Option<Listen>,
}

impl Tunnel {
    /// Everything the server shall listen on: the forwards that may be held, and the echo door.
    pub fn listens(&self) -> impl Iterator<Item = &Listen> {
        let ways = self
            .forwards
            .iter()
            .filter_map(|forward| forward.way.as_ref().ok());
        ways.map(|way| &way.listen).chain(&self.echo)
    }
}

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name.
    pub name: String,
    /// The listening port as it was written.
    pub port: u32,
    /// The target as it was written, or the whole remote in chisel's spelling.
    pub target: String,
    /// What to ask the server for and what to dial, or why not.
    pub way: Result<Way, String>,
    /// What it may take.
    pub limits: Limits,
}

/// Both ends of a forward that may be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The listener.
    pub listen: Listen,
    /// The other end.
    pub goal: Goal,
}

/// The end that is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// In the cluster, by us.
    Target(Target),
    /// What users of SOCKS ask for, within the owner's rules.
    Socks(Rules),
    /// What the listener names, by the server.
    Server,
}

impl Way {
    /// The target, if it is one that we dial.
    pub fn target(&self) -> Option<&Target> {
        match &self.goal {
            Goal::Target(target) => Some(target),
            Goal::Socks(_) | Goal::Server => None,
        }
    }

    /// What is dialled, for people.
    pub fn dials(&self) -> String {
        match (&self.goal, &self.listen.shape) {
            (Goal::Target(target), _) => target.dials.to_string(),
            (Goal::Server, Shape::LocalTcp(dials) | Shape::LocalUdp(dials)) => {
                format!("{dials}, by the server")
            }
            (Goal::Socks(_) | Goal::Server, _) => "what users of SOCKS ask for".to_owned(),
        }
    }
}

/// Pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// How often the server is asked.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Reads a spec. `ours` says whether an address belongs to this machine.
pub fn read(spec: &TunnelSpec, places: &Places, never: &Never, ours: impl Fn(IpAddr) -> bool) -> Desired {
    if !spec.enabled {
        let reason = if spec.reason.is_empty() {
            "the tunnel is off".to_owned()
        } else {
            spec.reason.clone()
        };
        return Desired::Idle { reason };
    }
    let link = match Link::read(spec) {
        Ok(link) => link,
        Err((server, reason)) => return Desired::Refused { reason, server },
    };
    if spec.forwards.is_empty() && spec.remotes.is_empty() {
        return Desired::Idle {
            reason: "the spec names no forwards".to_owned(),
        };
    }
    let (allowed, unreadable) = allow_list(&spec.allowed_targets);
    for text in unreadable {
        tracing::warn!(
            entry = text,
            "an entry of tunnel.allowed_targets is no host:port and allows nothing"
        );
    }
    let permits = Permits {
        in_cluster: spec.in_cluster,
        raw_kubernetes_api: spec.raw_kubernetes_api,
        kubelet_metrics: spec.kubelet_metrics,
        allowed,
    };
    let (socks, unreadable) = Rules::read(&spec.socks_targets);
    for (entry, why) in unreadable {
        tracing::warn!(
            entry,
            "an entry of tunnel.socks_targets {why}, so it allows nothing"
        );
    }
    let reader = Reader {
        places,
        never,
        permits,
        socks,
        ours: &ours,
    };
    let mut listens = Vec::new();
    let mut forwards = Vec::new();
    let named = spec.forwards.iter().map(|wanted| reader.named(wanted));
    let spelled = spec.remotes.iter().map(|text| reader.spelled(text));
    for mut forward in named.chain(spelled) {
        if forwards.len() >= MAX_FORWARDS {
            forward.way = Err(format!("more than {MAX_FORWARDS} forwards in one spec"));
        }
        forward.way = forward.way.and_then(|way| {
            way.listen.fits(&listens).map_err(|bad| bad.to_string())?;
            Ok(way)
        });
        if let Ok(way) = &forward.way {
            listens.push(way.listen.clone());
        }
        forwards.push(forward);
    }
    let echo = echo(spec.echo_remote_port, &listens);
    Desired::Tunnel(Box::new(Tunnel {
        link,
        forwards,
        liveness: Liveness {
            interval: milliseconds(spec.ping_interval_ms.into())
                .unwrap_or(PING_INTERVAL)
                .max(LEAST_PING),
            timeout: milliseconds(spec.ping_timeout_ms.into())
                .unwrap_or(PING_TIMEOUT)
                .max(LEAST_PING),
        },
        inactivity: milliseconds(spec.inactivity_timeout_ms),
        sessions: usize::try_from(spec.sessions).map_or(MAX_SESSIONS, |count| count.clamp(1, MAX_SESSIONS)),
        demand: spec.demand,
        echo,
    }))
}

/// The reserved remote, on the server's loopback: it is for who runs the server and not for its users. One that is in
/// the way of a forward is left out, because forwards come first.
fn echo(port: u32, listens: &[Listen]) -> Option<Listen> {
    if port == 0 {
        return None;
    }
    let listen = Listen::new(ECHO, "127.0.0.1", port).and_then(|echo| echo.fits(listens).map(|()| echo));
    listen
        .inspect_err(|bad| tracing::warn!("no echo door: {bad}"))
        .ok()
}

fn allow_list(texts: &[String]) -> (BTreeSet<HostPort>, Vec<&str>) {
    let mut unreadable = Vec::new();
    let allowed = texts
        .iter()
        .filter_map(|text| text.parse().map_err(|_| unreadable.push(text.as_str())).ok())
        .collect();
    (allowed, unreadable)
}

fn milliseconds(count: u64) -> Option<Duration> {
    (count > 0).then(|| Duration::from_millis(count))
}

#[cfg(test)]
mod tests;
