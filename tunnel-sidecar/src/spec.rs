//! The desired state as agent-core sends it, read once into what the link can act on.
//!
//! A fault in one forward refuses that forward by name; a fault of the link itself (address, fingerprint, trust)
//! refuses the whole.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use chisel_ssh::Fingerprint;
use proto::v1::TunnelSpec;
use runtime::{
    proxy::Proxy,
    secret::{ExposeSecret as _, SecretString, same},
};

use crate::{
    address::HostPort,
    limits::Limits,
    never::Never,
    remotes::{BadForward, Listen, Shape},
    server::Server,
    socks::rules::Rules,
    spelling::{Dials, Spelling},
    targets::{Permits, Places, Target, resolve},
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
    /// `Host` header, when it is not the server's own.
    pub hostname: Option<String>,
    /// Name in the TLS handshake, when it is neither.
    pub tls_server_name: Option<String>,
    /// Any certificate is taken.
    pub any_certificate: bool,
    /// How the server is reached.
    pub proxy: Via,
    /// Further headers of the upgrade request.
    pub headers: Vec<(String, SecretString)>,
}

/// How the server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// As the variables of this process say.
    Environment,
    /// Directly, whatever they say.
    Direct,
    /// Through this proxy.
    Proxy(Proxy),
}

/// How a spec says [`Via::Direct`].
const NO_PROXY: &str = "none";

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

fn limits(wanted: &proto::v1::Forward) -> Limits {
    let some = |count: u64| (count > 0).then_some(count);
    Limits {
        connections: some(wanted.max_connections.into()).and_then(|count| usize::try_from(count).ok()),
        bytes_in: some(wanted.bytes_per_second_in),
        bytes_out: some(wanted.bytes_per_second_out),
        idle: milliseconds(wanted.idle_timeout_ms),
    }
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

/// How the target of a named forward says that its users choose.
const SOCKS: &str = "socks";

/// What every forward is read with.
struct Reader<'a> {
    places: &'a Places,
    never: &'a Never,
    permits: Permits,
    socks: Rules,
    ours: &'a dyn Fn(IpAddr) -> bool,
}

impl Reader<'_> {
    /// A forward by name, port and target; the server listens.
    fn named(&self, wanted: &proto::v1::Forward) -> Forward {
        let way = || {
            if wanted.name == ECHO {
                return Err(BadForward::NameTaken(ECHO.to_owned()));
            }
            let listen = Listen::new(&wanted.name, &wanted.remote_host, wanted.remote_port)?;
            let listen = match wanted.protocol.as_str() {
                "" | "tcp" if wanted.target.trim() == SOCKS => listen.with(Shape::Socks),
                "" | "tcp" => listen,
                "udp" => listen.with(Shape::Udp),
                other => return Err(BadForward::Protocol(other.to_owned())),
            };
            Ok(listen)
        };
        let way = way()
            .map_err(|bad| bad.to_string())
            .and_then(|listen| self.way(listen, &wanted.target, &self.permits));
        Forward {
            name: wanted.name.clone(),
            port: wanted.remote_port,
            target: wanted.target.clone(),
            way,
            limits: limits(wanted),
        }
    }

    /// A forward in chisel's spelling. The owner wrote it, so its target needs no second permission.
    fn spelled(&self, text: &str) -> Forward {
        let refused = |name: String, why: String| Forward {
            name,
            port: 0,
            target: text.to_owned(),
            way: Err(why),
            limits: Limits::default(),
        };
        let spelling: Spelling = match text.parse() {
            Ok(spelling) => spelling,
            Err(bad) => return refused(text.to_owned(), format!("tunnel.remotes: {text:?} {bad}")),
        };
        let listen = match Listen::spelled(&spelling) {
            Ok(listen) => listen,
            Err(bad) => return refused(spelling.name(), format!("tunnel.remotes: {text:?}: {bad}")),
        };
        let mut permits = self.permits.clone();
        let dials = spelling.dials.to_string();
        if let Dials::Address { host, port } = &spelling.dials {
            permits.allowed.extend(HostPort::new(host, *port));
        }
        let (name, port) = (listen.name.clone(), u32::from(listen.port));
        let way = self.way(listen, &dials, &permits);
        Forward {
            name,
            port,
            target: text.to_owned(),
            way,
            limits: Limits::default(),
        }
    }

    fn way(&self, listen: Listen, target: &str, permits: &Permits) -> Result<Way, String> {
        let goal = match listen.shape {
            Shape::Tcp | Shape::Udp => {
                let found = resolve(target, self.places, permits, self.never, |ip| (self.ours)(ip));
                Goal::Target(found.map_err(|refusal| refusal.to_string())?)
            }
            Shape::Socks if self.socks.is_empty() => {
                return Err(
                    "SOCKS is off: list where its users may go in tunnel.socks_targets, for example *.svc.cluster.local:443"
                        .to_owned(),
                );
            }
            Shape::Socks => Goal::Socks(self.socks.clone()),
            Shape::LocalTcp(_) | Shape::LocalUdp(_) => {
                let Places {
                    kubernetes_api,
                    k8s_proxy,
                    agent_http,
                    ..
                } = self.places;
                let doors = [kubernetes_api, k8s_proxy, agent_http];
                if self.never.is_control(listen.port) || doors.iter().any(|door| door.port() == listen.port) {
                    return Err(BadForward::OwnPort(listen.port).to_string());
                }
                Goal::Server
            }
        };
        Ok(Way { listen, goal })
    }
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
        let proxy = match spec.proxy.trim() {
            "" => Via::Environment,
            NO_PROXY => Via::Direct,
            url => Via::Proxy(Proxy::parse(url).map_err(|bad| refuse(format!("tunnel.proxy: {bad}")))?),
        };
        let text = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
        let link = Self {
            hostname: text(&spec.hostname),
            tls_server_name: text(&spec.tls_server_name),
            any_certificate: spec.tls_skip_verify_i_know_it_is_insecure,
            proxy,
            headers: spec
                .headers
                .iter()
                .map(|header| (header.name.clone(), SecretString::from(header.value.clone())))
                .collect(),
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
        // Through a proxy elsewhere, this machine's address means that one's.
        let elsewhere = matches!(&self.proxy, Via::Proxy(proxy) if !proxy.is_loopback());
        let verified = self.server.tls() && !self.any_certificate;
        if verified || self.server.loopback() && !elsewhere || self.allow_insecure {
            return Ok(());
        }
        let server = &self.server;
        if self.any_certificate && self.server.tls() && self.fingerprint.is_none() {
            return Err(format!(
                "{server} may show any certificate and no fingerprint is pinned, so anybody between could read the \
                 credentials: name its CA in tunnel.ca_file, or set tunnel.fingerprint, or tunnel.allow_insecure: true"
            ));
        }
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

impl Link {
    /// Whether both lead the same way to the same server as the same user, whatever proves it.
    pub fn same_ends(&self, other: &Self) -> bool {
        let password = |link: &Self| link.password.expose_secret().as_bytes().to_vec();
        self.server == other.server
            && self.user == other.user
            && same(&password(self), &password(other))
            && self.hostname == other.hostname
            && self.tls_server_name == other.tls_server_name
            && self.proxy == other.proxy
            && self.headers.len() == other.headers.len()
            && self
                .headers
                .iter()
                .zip(&other.headers)
                .all(|((name, value), (other, theirs))| {
                    name == other
                        && same(
                            value.expose_secret().as_bytes(),
                            theirs.expose_secret().as_bytes(),
                        )
                })
    }

    /// Whether a session with a server of this key may go on under this link.
    pub fn accepts(&self, shown: &str) -> bool {
        match &self.fingerprint {
            None => true,
            Some(pinned @ Fingerprint::Sha256(_)) => pinned.to_string() == shown,
            // What was seen is the other kind of hash, so a new session has to show.
            Some(Fingerprint::Md5Prefix(_)) => false,
        }
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        self.same_ends(other)
            && self.fingerprint == other.fingerprint
            && self.ca_pem == other.ca_pem
            && self.any_certificate == other.any_certificate
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
