//! The blocks about the siblings: what tunnel-sidecar and k8s-proxy are told.

use std::time::Duration;

use proto::v1::ProxyLimits;
use runtime::{
    dial::url_is_loopback,
    secret::{SecretString, TokenFile, hex, sha256},
};
use serde_json::{Map, Value};
use url::Url;

use super::{
    ChiselConfig, TokenSource,
    chisel::chisel,
    forward::{self, ForwardLimits},
    limits::limits,
    read::Reader,
};

/// Between two polls (seed 003: as often as heartbeats).
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A tunnel opened on demand closes after so much silence (seed 003).
const INACTIVITY_TIMEOUT: Duration = Duration::from_secs(300);

/// The tunnel.
#[derive(Debug)]
pub struct TunnelConfig {
    /// Off is a decision that the sidecar is told.
    pub enabled: bool,
    /// Between two polls; the control plane may change it.
    pub poll_interval: Duration,
    /// Silence after which a tunnel on demand closes; zero is never.
    pub inactivity_timeout: Duration,
    /// What may be forwarded, by name.
    pub forwards: Vec<ForwardConfig>,
    /// A server fixed by the owner; the control plane is not asked then.
    pub server: Option<String>,
    /// `user:pass` for the fixed server.
    pub credentials: Option<TokenSource>,
    /// The server's fingerprint as the owner knows it; beats what the control plane says.
    pub fingerprint: Option<String>,
    /// PEM of roots beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Credentials may travel over a link that proves nothing.
    pub allow_insecure: bool,
    /// Targets beside the named ones.
    pub allowed_targets: Vec<String>,
    /// `kubernetes-api` means the apiserver itself.
    pub raw_kubernetes_api: bool,
    /// `kubelet-metrics` may be forwarded.
    pub kubelet_metrics: bool,
    /// Between pings; zero for the sidecar's own.
    pub ping_interval: Duration,
    /// Deadline of a ping; zero for the sidecar's own.
    pub ping_timeout: Duration,
    /// `localhost:6443` and `localhost:10250` mean the cluster's.
    pub in_cluster: bool,
    /// Remotes in chisel's spelling, and how its server is reached.
    pub chisel: ChiselConfig,
    /// Sessions side by side over which the forwards are spread.
    pub sessions: u32,
}

/// One forward the owner offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// Matched with the control plane's list.
    pub name: String,
    /// A target's name or `host:port`.
    pub target: String,
    /// Fixed port on the server; zero lets the control plane choose.
    pub remote_port: u16,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// What it may take.
    pub limits: ForwardLimits,
}

/// What a forward carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As the sidecar is told.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What k8s-proxy is told.
#[derive(Debug)]
pub struct ProxyConfig {
    /// Whether the control plane's token opens the doors, and the proxy dials out.
    pub enabled: bool,
    /// Whose credential goes upstream for the control plane's own requests.
    pub control_plane_mode: Mode,
    /// Tokens of the owner.
    pub door_tokens: Vec<DoorToken>,
    /// A control plane to dial that the owner names.
    pub dial: Option<DialConfig>,
    /// How dialled doors that the control plane handed out go upstream.
    pub dial_mode: Mode,
    /// What is spoken over dialled doors.
    pub dial_protocol: Spoken,
    /// The proxy's token may travel in clear.
    pub allow_insecure: bool,
    /// Name of the Lease.
    pub lease: String,
    /// What each caller may have; the control plane can only lower it.
    pub limits: ProxyLimits,
}

/// A dialled door of the owner's.
#[derive(Debug)]
pub struct DialConfig {
    /// `ws` or `wss`.
    pub url: Url,
    /// Its bearer.
    pub token: TokenSource,
    /// PEM of roots beside the system's.
    pub ca_pem: Option<Vec<u8>>,
}

/// A token that may knock at k8s-proxy's doors; only its digest is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorToken {
    /// Who that is, for policy and audit.
    pub name: String,
    /// SHA-256 of the token.
    pub digest: Digest,
    /// Whose credential goes upstream.
    pub mode: Mode,
    /// Groups for policy.
    pub groups: Vec<String>,
}

/// Where the digest of a door token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Given as such.
    Given(Vec<u8>),
    /// Of the token in this file, read anew when the specification is made.
    OfFile(std::path::PathBuf),
}

/// What is spoken over a dialled WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/2 where the control plane takes it, else frames.
    Best,
    /// Frames only.
    Frames,
}

/// Whose credential goes upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The pod's own.
    Agent,
    /// The caller's.
    Caller,
    /// The pod's own, speaking for the caller.
    Impersonate,
}

/// PEM text of the file a setting names.
pub(super) fn pem(reader: &mut Reader<'_>, path: &'static str) -> Option<Vec<u8>> {
    let file = reader.path(path)?;
    let pem = match std::fs::read(&file) {
        Ok(pem) => pem,
        Err(error) => {
            reader.fault(path, format_args!("cannot be read: {error}"));
            return None;
        }
    };
    if let Err(error) = runtime::tls::client_config(Some(&pem), &[]) {
        reader.fault(path, error);
    }
    Some(pem)
}

pub(super) fn tunnel(reader: &mut Reader<'_>, in_cluster: bool) -> TunnelConfig {
    let chisel = chisel(reader);
    let server = reader.text("tunnel.server");
    let forwards = match reader.list("tunnel.forwards") {
        Some(items) => forwards(reader, items),
        // A server of the owner's gives no ports to the default ones.
        None if server.is_some() && !chisel.remotes.is_empty() => Vec::new(),
        None => default_forwards(),
    };
    let credentials = match reader.path("tunnel.credentials_file") {
        Some(path) => Some(TokenSource::File(TokenFile::new(path))),
        None => reader.secret("tunnel.credentials").map(TokenSource::Value),
    };
    if let Some(Err(reason)) = credentials.as_ref().map(TokenSource::read) {
        reader.fault("tunnel.credentials_file", reason);
    }
    if server.is_some() && forwards.iter().any(|forward| forward.remote_port == 0) {
        reader.fault(
            "tunnel.server",
            "needs a fixed remote_port for every entry of tunnel.forwards",
        );
    }
    TunnelConfig {
        enabled: reader.switch_or("tunnel.enabled", true),
        poll_interval: reader.duration_or("tunnel.poll_interval", POLL_INTERVAL, false),
        inactivity_timeout: reader.duration_or("tunnel.inactivity_timeout", INACTIVITY_TIMEOUT, true),
        forwards,
        server,
        credentials,
        fingerprint: reader.text("tunnel.fingerprint"),
        ca_pem: pem(reader, "tunnel.ca_file"),
        allow_insecure: reader.switch_or("tunnel.allow_insecure", false),
        allowed_targets: reader.texts("tunnel.allowed_targets"),
        raw_kubernetes_api: reader.switch_or("tunnel.raw_kubernetes_api", false),
        kubelet_metrics: reader.switch_or("tunnel.kubelet_metrics", false),
        ping_interval: reader.duration_or("tunnel.ping_interval", Duration::ZERO, true),
        ping_timeout: reader.duration_or("tunnel.ping_timeout", Duration::ZERO, true),
        in_cluster,
        chisel,
        sessions: sessions(reader),
    }
}

/// Sessions side by side; each is a TCP connection with keys and buffers of its own, so there is a bound.
fn sessions(reader: &mut Reader<'_>) -> u32 {
    const PATH: &str = "tunnel.sessions";
    match reader.parsed(PATH, "a number from 1 to 16") {
        None => 1,
        Some(count @ 1..=16) => count,
        Some(_) => {
            reader.fault(PATH, "is not a number from 1 to 16");
            1
        }
    }
}

/// The seeds' three, and k8s-proxy's own door; `kubelet-metrics` is off until the owner turns it on.
fn default_forwards() -> Vec<ForwardConfig> {
    ["kubernetes-api", "k8s-proxy", "kubelet-metrics", "agent-http"]
        .map(|name| ForwardConfig {
            name: name.to_owned(),
            target: name.to_owned(),
            remote_port: 0,
            protocol: Protocol::Tcp,
            limits: ForwardLimits::default(),
        })
        .into()
}

fn forwards(reader: &mut Reader<'_>, items: Vec<Value>) -> Vec<ForwardConfig> {
    const PATH: &str = "tunnel.forwards";
    let mut forwards: Vec<ForwardConfig> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let Some(mut map) = entry(reader, PATH, index, item) else {
            continue;
        };
        let name = text(&mut map, "name");
        let target = text(&mut map, "local_addr").or_else(|| text(&mut map, "target"));
        let port = map.remove("remote_port").unwrap_or_else(|| Value::from(0));
        let port = port
            .as_u64()
            .or_else(|| port.as_str()?.parse().ok())
            .and_then(|p| u16::try_from(p).ok());
        let protocol = match text(&mut map, "protocol").as_deref() {
            None | Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some(_) => {
                reader.fault(
                    PATH,
                    format_args!("entry {index}: protocol is neither tcp nor udp"),
                );
                Protocol::Tcp
            }
        };
        match (name, target, port) {
            (Some(name), Some(target), Some(remote_port)) => {
                if forwards.iter().any(|known| known.name == name) {
                    reader.fault(PATH, format_args!("names {name:?} twice"));
                }
                let limits = ForwardLimits::take(&mut map).unwrap_or_else(|why| {
                    reader.fault(PATH, format_args!("entry {index}: {why}"));
                    ForwardLimits::default()
                });
                forwards.push(ForwardConfig {
                    name,
                    target,
                    remote_port,
                    protocol,
                    limits,
                });
            }
            (None, _, _) => reader.fault(PATH, format_args!("entry {index} has no name")),
            (_, None, _) => reader.fault(PATH, format_args!("entry {index} has no local_addr")),
            (_, _, None) => reader.fault(PATH, format_args!("entry {index}: remote_port is no port")),
        }
        leftovers(
            reader,
            PATH,
            index,
            &map,
            &[
                &["name", "local_addr", "target", "remote_port", "protocol"][..],
                &forward::KEYS[..],
            ]
            .concat(),
        );
    }
    forwards
}

pub(super) fn proxy(reader: &mut Reader<'_>) -> ProxyConfig {
    let allow_insecure = reader.switch_or("proxy.allow_insecure", false);
    let control_plane_mode = mode(reader, "proxy.control_plane_mode");
    let dial_mode = mode(reader, "proxy.dial_mode");
    let dial_protocol = match reader.text_or("proxy.dial_protocol", "best").as_str() {
        "best" => Spoken::Best,
        "frames" => Spoken::Frames,
        _ => {
            reader.fault("proxy.dial_protocol", "is neither best nor frames");
            Spoken::Best
        }
    };
    let items = reader.list("proxy.door_tokens").unwrap_or_default();
    let door_tokens = door_tokens(reader, items);
    let url = reader.url("proxy.dial_url", &["wss", "ws"]);
    if let Some(url) = &url
        && url.scheme() == "ws"
        && !url_is_loopback(url)
        && !allow_insecure
    {
        reader.fault(
            "proxy.dial_url",
            "would send the token in clear: use wss, or set proxy.allow_insecure: true if the network is trusted",
        );
    }
    let token = reader
        .path("proxy.dial_token_file")
        .map(|path| TokenSource::File(TokenFile::new(path)));
    if let Some(Err(reason)) = token.as_ref().map(TokenSource::read) {
        reader.fault("proxy.dial_token_file", reason);
    }
    let ca_pem = pem(reader, "proxy.dial_ca_file");
    let dial = match (url, token) {
        (Some(url), Some(token)) => Some(DialConfig { url, token, ca_pem }),
        (Some(_), None) => {
            reader.fault(
                "proxy.dial_url",
                "needs proxy.dial_token_file: the registration token is never handed over",
            );
            None
        }
        (None, _) => None,
    };
    ProxyConfig {
        enabled: reader.switch_or("proxy.enabled", true),
        control_plane_mode,
        door_tokens,
        dial,
        dial_mode,
        dial_protocol,
        allow_insecure,
        lease: reader.text_or("proxy.lease", "pipeops-agent"),
        limits: limits(reader),
    }
}

fn mode(reader: &mut Reader<'_>, path: &'static str) -> Mode {
    let text = reader.text_or(path, "agent");
    parse_mode(&text).unwrap_or_else(|| {
        reader.fault(path, "is none of agent, caller and impersonate");
        Mode::Agent
    })
}

fn parse_mode(text: &str) -> Option<Mode> {
    match text {
        "agent" => Some(Mode::Agent),
        "caller" => Some(Mode::Caller),
        "impersonate" => Some(Mode::Impersonate),
        _ => None,
    }
}

fn door_tokens(reader: &mut Reader<'_>, items: Vec<Value>) -> Vec<DoorToken> {
    const PATH: &str = "proxy.door_tokens";
    let mut tokens = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let Some(mut map) = entry(reader, PATH, index, item) else {
            continue;
        };
        let name = text(&mut map, "name").filter(|name| !name.starts_with("system:"));
        let mode = text(&mut map, "mode").map_or(Some(Mode::Agent), |text| parse_mode(&text));
        let digest = match (text(&mut map, "sha256"), text(&mut map, "token_file")) {
            (Some(hex), None) => unhex(&hex).map(Digest::Given),
            (None, Some(path)) => Some(Digest::OfFile(path.into())),
            (Some(_), Some(_)) | (None, None) => None,
        };
        let groups = map.remove("groups").unwrap_or_default();
        let groups = groups
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned);
        match (name, digest, mode) {
            (Some(name), Some(digest), Some(mode)) => {
                tokens.push(DoorToken {
                    name,
                    digest,
                    mode,
                    groups: groups.collect(),
                });
            }
            (None, _, _) => reader.fault(PATH, format_args!("entry {index} has no name, or a system: one")),
            (_, None, _) => reader.fault(
                PATH,
                format_args!("entry {index} needs one of token_file and sha256 (64 hexadecimal digits)"),
            ),
            (_, _, None) => {
                reader.fault(
                    PATH,
                    format_args!("entry {index}: mode is none of agent, caller and impersonate"),
                );
            }
        }
        leftovers(
            reader,
            PATH,
            index,
            &map,
            &["name", "sha256", "token_file", "mode", "groups"],
        );
    }
    tokens
}

impl DoorToken {
    /// The digest at this moment; `None` while the token file is absent.
    pub(crate) fn sha256(&self) -> Option<Vec<u8>> {
        match &self.digest {
            Digest::Given(digest) => Some(digest.clone()),
            Digest::OfFile(path) => {
                let token: SecretString = TokenFile::new(path).read().ok().flatten()?;
                Some(sha256(runtime::secret::ExposeSecret::expose_secret(&token).as_bytes()).to_vec())
            }
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| {
            text.get(at..at + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect();
    bytes.filter(|bytes| bytes.len() == 32 && hex(bytes).eq_ignore_ascii_case(text))
}

fn entry(
    reader: &mut Reader<'_>,
    path: &'static str,
    index: usize,
    item: Value,
) -> Option<Map<String, Value>> {
    match item {
        Value::Object(map) => Some(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            reader.fault(path, format_args!("entry {index} is no mapping"));
            None
        }
    }
}

fn text(map: &mut Map<String, Value>, name: &str) -> Option<String> {
    let value = map.remove(name)?;
    value
        .as_str()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
}

fn leftovers(
    reader: &mut Reader<'_>,
    path: &'static str,
    index: usize,
    map: &Map<String, Value>,
    known: &[&str],
) {
    for name in map.keys() {
        let near = runtime::config::nearest(name, known.iter().copied());
        let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        reader.fault(
            path,
            format_args!("entry {index}: {name} is not a known key{hint}"),
        );
    }
}
