//! The desired state as agent-core sends it, read once into what the link can act on.
//!
//! A fault in one forward refuses that forward by name; a fault of the link itself (address, fingerprint, trust)
//! refuses the whole.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use chisel_ssh::Fingerprint;
use proto::v1::TunnelSpec;
use runtime::secret::{ExposeSecret as _, SecretString, same};

use crate::{
    address::HostPort,
    never::Never,
    remotes::Listen,
    server::Server,
    targets::{Permits, Places, Target, resolve},
};

/// Ping interval and deadline when the spec names none: together a black hole is found within ten seconds.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings closer than this would only measure themselves.
const LEAST_PING: Duration = Duration::from_millis(10);

/// Forwards beyond this are refused by name: each is a listener, a row of every report and a label of metrics.
const MAX_FORWARDS: usize = 256;

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
}

/// What a session depends on: if one of these changes, the session is made anew.
#[derive(Clone)]
pub struct Link {
    /// The server.
    pub server: Server,
    /// User name, empty for none.
    pub user: String,
    /// Password, empty for none.
    pub password: SecretString,
    /// The pinned host key.
    pub fingerprint: Option<Fingerprint>,
    /// Extra roots for TLS, PEM.
    pub ca_pem: Vec<u8>,
    /// The owner accepts a link that proves nothing.
    pub allow_insecure: bool,
}

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name.
    pub name: String,
    /// The port on the server as it was written.
    pub port: u32,
    /// The target as it was written.
    pub target: String,
    /// What to ask the server for and what to dial, or why not.
    pub way: Result<Way, String>,
}

/// Both ends of a forward that may be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// At the server.
    pub listen: Listen,
    /// In the cluster.
    pub target: Target,
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
    if spec.forwards.is_empty() {
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
    let mut listens = Vec::new();
    let mut forwards = Vec::new();
    for wanted in &spec.forwards {
        let way = if forwards.len() < MAX_FORWARDS {
            way(wanted, &listens, |target| {
                resolve(target, places, &permits, never, &ours).map_err(|refusal| refusal.to_string())
            })
        } else {
            Err(format!("more than {MAX_FORWARDS} forwards in one spec"))
        };
        if let Ok(way) = &way {
            listens.push(way.listen.clone());
        }
        forwards.push(Forward {
            name: wanted.name.clone(),
            port: wanted.remote_port,
            target: wanted.target.clone(),
            way,
        });
    }
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
    }))
}

fn way(
    wanted: &proto::v1::Forward,
    earlier: &[Listen],
    resolve: impl FnOnce(&str) -> Result<Target, String>,
) -> Result<Way, String> {
    let listen =
        Listen::new(&wanted.name, &wanted.remote_host, wanted.remote_port).map_err(|bad| bad.to_string())?;
    listen.fits(earlier).map_err(|bad| bad.to_string())?;
    Ok(Way {
        listen,
        target: resolve(&wanted.target)?,
    })
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

impl Link {
    fn read(spec: &TunnelSpec) -> Result<Self, (String, String)> {
        let server = Server::parse(&spec.server).map_err(|bad| (String::new(), bad.to_string()))?;
        let refuse = |reason: String| (server.to_string(), reason);
        let fingerprint = match spec.fingerprint.trim() {
            "" => None,
            text => Some(
                text.parse::<Fingerprint>()
                    .map_err(|bad| refuse(format!("tunnel.fingerprint: {bad}")))?,
            ),
        };
        // chisel splits at the first colon, so a password may hold more of them.
        let (user, password) = spec
            .credentials
            .split_once(':')
            .unwrap_or((&spec.credentials, ""));
        let link = Self {
            user: user.to_owned(),
            password: SecretString::from(password),
            fingerprint,
            ca_pem: spec.ca_pem.to_vec(),
            allow_insecure: spec.allow_insecure,
            server: server.clone(),
        };
        link.trusted().map_err(refuse)?;
        Ok(link)
    }

    /// Credentials leave the pod only over verified TLS, or over chisel with a matching fingerprint.
    fn trusted(&self) -> Result<(), String> {
        if self.server.tls() || self.server.loopback() || self.allow_insecure {
            return Ok(());
        }
        let server = &self.server;
        match &self.fingerprint {
            Some(Fingerprint::Sha256(_)) => Ok(()),
            // A short prefix of MD5 can be hit by trying keys, so it proves nothing without TLS.
            Some(Fingerprint::Md5Prefix(_)) => Err(format!(
                "{server} has no TLS and its fingerprint is a prefix of MD5, which proves nothing: set \
                 tunnel.fingerprint to the SHA-256 form the server prints at its start, or tunnel.allow_insecure: true"
            )),
            None => Err(format!(
                "{server} has no TLS and no fingerprint is pinned, so anybody between could read the credentials: use \
                 wss://, or set tunnel.fingerprint, or tunnel.allow_insecure: true"
            )),
        }
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        let password = |link: &Self| link.password.expose_secret().as_bytes().to_vec();
        self.server == other.server
            && self.user == other.user
            && same(&password(self), &password(other))
            && self.fingerprint == other.fingerprint
            && self.ca_pem == other.ca_pem
            && self.allow_insecure == other.allow_insecure
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("server", &self.server.to_string())
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
