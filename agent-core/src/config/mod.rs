//! The configuration: every source, every name of the documents before us, all faults at once.
//!
//! [`load`] takes flags, environment and file (in this order of strength) through `raw` into a [`Config`], in
//! which nothing is optional that is not optional to the agent. agent-core alone reads the documents' file and
//! variables; the siblings learn from it over gRPC.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use runtime::{
    backoff::Policy,
    config::{Env, Problems},
    dial::url_is_loopback,
    secret::{ExposeSecret as _, TokenFile},
    telemetry::LogFormat,
};
use url::Url;

pub(crate) mod chisel;
mod forward;
pub(crate) mod keys;
mod limits;
mod parts;
pub(crate) mod raw;
mod read;
#[cfg(test)]
mod tests;
mod types;

pub use self::{
    chisel::ChiselConfig,
    forward::ForwardLimits,
    parts::{
        DialConfig, Digest, DoorToken, ForwardConfig, Mode, Protocol, ProxyConfig, Spoken, TunnelConfig,
    },
    read::Effective,
    types::{
        Config, ControlPlaneConfig, IdentityConfig, KubernetesConfig, PodConfig, ServerConfig, StateBackend,
        StateConfig, TokenSource,
    },
};
use self::{raw::Raw, read::Reader};

/// Where the kubelet looks for a container's last words.
pub(crate) const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where the hosted control plane is (seed 003).
const DEFAULT_API_URL: &str = "https://api.pipeops.sh";
/// Beat of profile `classic` (seed 003).
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// A beat that is not answered by then is missed; the next one does not wait for it.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// One registration call (`pipeops.timeout` of the seeds).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// First and largest ceiling between registrations (the Go agent's own numbers).
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Five below the chart's `terminationGracePeriodSeconds`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// Siblings report at least every 10 s; two may be lost.
const REPORT_TIMEOUT: Duration = Duration::from_secs(25);
/// Keeps a quiet event stream open through proxies (seed 000).
const SSE_HEARTBEAT: Duration = Duration::from_secs(30);
/// A WebSocket that sent nothing for so long is closed (seed 000).
const REALTIME_IDLE: Duration = Duration::from_secs(300);
/// Streams for people, together (seed 000).
const REALTIME_MAX: usize = 100;

/// Reads all sources. `flags` maps the path of a key to what its flag said; `file` is what `--config` named.
///
/// # Errors
/// Every fault there is, at once.
pub fn load(
    flags: &BTreeMap<&'static str, String>,
    file: Option<&Path>,
    env: &Env,
) -> Result<Config, Problems> {
    let mut raw = Raw::default();
    let mut problems = Problems::new();
    raw.flags(flags);
    raw.environment(env, &mut problems);
    let candidates = match file {
        Some(path) => vec![path.to_path_buf()],
        None => default_files(env),
    };
    for path in candidates {
        let shown = path.display().to_string();
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                raw.file(&shown, &text, &mut problems);
                break;
            }
            Err(error) if file.is_some() => {
                problems.push(
                    "config",
                    "from flag --config",
                    Some(&shown),
                    format!("cannot be read: {error}"),
                );
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
            Err(error) => {
                problems.push(
                    "config",
                    format!("from file {shown}"),
                    None,
                    format!("cannot be read: {error}"),
                );
            }
        }
    }
    let mut reader = Reader {
        raw: &raw,
        problems,
        effective: Vec::new(),
    };
    let config = read_config(&mut reader);
    let Reader {
        problems, effective, ..
    } = reader;
    let notes = raw.notes;
    match config {
        Some(config) => problems.into_result(Config {
            notes,
            effective,
            ..config
        }),
        None => Err(problems),
    }
}

/// The places of the seeds, in their order.
fn default_files(env: &Env) -> Vec<PathBuf> {
    let dirs = env.get("HOME").map(PathBuf::from).into_iter();
    dirs.chain([PathBuf::from("/etc/pipeops"), PathBuf::from(".")])
        .flat_map(|dir| [dir.join(".pipeops-agent.yaml"), dir.join(".pipeops-agent")])
        .collect()
}

fn read_config(reader: &mut Reader<'_>) -> Option<Config> {
    let http_listen = http_listen(reader);
    let grpc_listen = reader.address_or(
        "process.grpc_listen",
        SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
    );
    if !grpc_listen.ip().is_loopback() {
        reader.fault(
            "process.grpc_listen",
            "must be a loopback address: only this pod may reach it",
        );
    }
    let tunnel_grpc = loopback_http(reader, "process.tunnel_grpc", "http://127.0.0.1:7071");
    let proxy_grpc = loopback_http(reader, "process.proxy_grpc", "http://127.0.0.1:7072");
    let log_format = match reader.raw.get("logging.format") {
        Some(_) => reader
            .parsed("logging.format", "text or json")
            .unwrap_or(LogFormat::Text),
        None => LogFormat::Text,
    };
    let debug = reader.switch("agent.debug").unwrap_or(false);
    let log_level = reader.text_or("logging.level", if debug { "debug" } else { "info" });
    let private_dir = reader.path_or("process.private_dir", "/run/pipeops/private");
    let pod = PodConfig {
        name: reader.text("pod.name"),
        namespace: reader.text("pod.namespace"),
        uid: reader.text("pod.uid"),
        node_name: reader.text("pod.node_name"),
        host_ip: reader.parsed("pod.host_ip", "an IP address"),
    };
    let kubernetes = kubernetes(reader);
    let state = state(reader, &kubernetes, &pod, &private_dir);
    let shutdown = reader.duration_or("timeouts.shutdown", DRAIN_TIMEOUT, false);
    let drain_timeout = reader.duration_or("process.drain_timeout", shutdown, false);
    let identity = IdentityConfig {
        agent_id: reader.text("agent.id"),
        name: reader.text_or("agent.name", "pipeops-agent"),
        cluster_name: reader.text_or("agent.cluster_name", "default-cluster"),
        labels: reader.pairs("agent.labels"),
        version: reader.text("agent.version"),
    };
    let mut tunnel = parts::tunnel(reader, kubernetes.in_cluster);
    let proxy = parts::proxy(reader);
    let server = server(reader, &pod);
    let report_timeout = reader.duration_or("process.report_timeout", REPORT_TIMEOUT, false);
    let otlp_endpoint = reader
        .url("telemetry.otlp_endpoint", &["http", "https"])
        .map(|url| url.to_string());
    let addresses_file = reader.path("process.addresses_file");
    let termination_log = reader.path_or("process.termination_log", TERMINATION_LOG);
    let edge_tunnel_dir = reader.path_or("process.edge_tunnel_dir", "/run/pipeops/edge-tunnel");
    let edge_proxy_dir = reader.path_or("process.edge_proxy_dir", "/run/pipeops/edge-proxy");
    let control_plane = control_plane(reader)?;
    // Whoever has an own CA for the control plane has it for the control plane's tunnel server too.
    tunnel.ca_pem = tunnel.ca_pem.or_else(|| control_plane.ca_pem.clone());
    Some(Config {
        http_listen,
        grpc_listen,
        tunnel_grpc,
        proxy_grpc,
        private_dir,
        edge_tunnel_dir,
        edge_proxy_dir,
        drain_timeout,
        addresses_file,
        termination_log,
        report_timeout,
        log_level,
        log_format,
        otlp_endpoint,
        identity,
        control_plane,
        kubernetes,
        state,
        pod,
        tunnel,
        proxy,
        server,
        notes: Vec::new(),
        effective: Vec::new(),
    })
}

fn http_listen(reader: &mut Reader<'_>) -> SocketAddr {
    let port = match reader.raw.get("agent.port") {
        Some(_) => reader
            .parsed::<u16>("agent.port", "a port (0 to 65535)")
            .unwrap_or(0),
        None => 8080,
    };
    reader.address_or(
        "process.http_listen",
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
    )
}

fn control_plane(reader: &mut Reader<'_>) -> Option<ControlPlaneConfig> {
    let allow_insecure = reader.switch_or("pipeops.allow_insecure", false);
    let name = if reader.raw.get("pipeops.api_url").is_some() || reader.raw.get("agent.api_url").is_none() {
        "pipeops.api_url"
    } else {
        "agent.api_url"
    };
    let url = match reader.raw.get(name) {
        Some(_) => reader.url(name, &["https", "http"]),
        None => Url::parse(&reader.text_or("pipeops.api_url", DEFAULT_API_URL)).ok(),
    };
    if let Some(url) = &url
        && url.scheme() == "http"
        && !url_is_loopback(url)
        && !allow_insecure
    {
        reader.fault(
            name,
            "would send the token in clear: use https, or set pipeops.allow_insecure: true if the network is trusted",
        );
    }
    if reader.switch("pipeops.tls.insecure_skip_verify") == Some(true) {
        reader.fault(
            "pipeops.tls.insecure_skip_verify",
            "is not supported: certificates are always verified; name the control plane's CA in pipeops.tls.ca_file",
        );
    }
    let ca_pem = parts::pem(reader, "pipeops.tls.ca_file");
    let token = token(reader);
    let timeout = reader.duration_or("pipeops.timeout", REQUEST_TIMEOUT, false);
    let timeout = reader.duration_or("timeouts.registration", timeout, false);
    let heartbeat_timeout = reader.duration_or("timeouts.heartbeat", HEARTBEAT_TIMEOUT, false);
    // The Go agent's name for the same pace.
    let interval = reader.duration_or("agent.heartbeat_interval_connected", HEARTBEAT_INTERVAL, false);
    let heartbeat_interval = reader.duration_or("agent.heartbeat_interval", interval, false);
    let min = reader.duration_or("registration.backoff_min", BACKOFF_MIN, false);
    let max = reader.duration_or("registration.backoff_max", BACKOFF_MAX.max(min), false);
    if max < min {
        reader.fault(
            "registration.backoff_max",
            "is less than registration.backoff_min",
        );
    }
    Some(ControlPlaneConfig {
        url: url?,
        token: token?,
        timeout,
        ca_pem,
        heartbeat_interval,
        heartbeat_timeout,
        backoff: Policy {
            min,
            max,
            stable: max,
        },
    })
}

fn token(reader: &mut Reader<'_>) -> Option<TokenSource> {
    if let Some(path) = reader.path("pipeops.token_file") {
        let source = TokenSource::File(TokenFile::new(path));
        if let Err(reason) = source.read() {
            reader.fault("pipeops.token_file", reason);
        }
        return Some(source);
    }
    let token = match reader.secret("pipeops.token") {
        Some(token) => Some(token),
        None => reader.secret("agent.token"),
    };
    match token {
        Some(token)
            if token
                .expose_secret()
                .chars()
                .any(|c| c.is_control() || c.is_whitespace()) =>
        {
            reader.fault("pipeops.token", "holds white space or control characters");
            None
        }
        Some(token) => Some(TokenSource::Value(token)),
        None => {
            reader.fault(
                "pipeops.token",
                "is missing: set PIPEOPS_TOKEN, or name a file in PIPEOPS_TOKEN_FILE",
            );
            None
        }
    }
}

fn kubernetes(reader: &mut Reader<'_>) -> KubernetesConfig {
    let door = loopback_http(reader, "kubernetes.door", "http://127.0.0.1:8001");
    let in_cluster = reader.switch_or("kubernetes.in_cluster", false);
    let service_token = match reader.path("kubernetes.service_token_file") {
        Some(path) => {
            let source = TokenSource::File(TokenFile::new(path));
            if let Err(reason) = source.read() {
                reader.fault("kubernetes.service_token_file", reason);
            }
            Some(source)
        }
        None => reader.secret("kubernetes.service_token").map(TokenSource::Value),
    };
    KubernetesConfig {
        door,
        in_cluster,
        service_token,
        ca_cert_data: reader.text("kubernetes.ca_cert_data"),
    }
}

/// A sibling's address: edge tokens go there, so it must be this host.
fn loopback_http(reader: &mut Reader<'_>, path: &'static str, default: &'static str) -> Url {
    #[expect(clippy::expect_used, reason = "a constant URL")]
    let fallback = Url::parse(default).expect("a constant URL");
    let url = match reader.raw.get(path) {
        Some(_) => reader.url(path, &["http"]),
        None => Url::parse(&reader.text_or(path, default)).ok(),
    };
    match url {
        Some(url) if !url_is_loopback(&url) => {
            reader.fault(path, "must be an address of this host: an edge token goes there");
            fallback
        }
        Some(url) => url,
        None => fallback,
    }
}

fn state(
    reader: &mut Reader<'_>,
    kubernetes: &KubernetesConfig,
    pod: &PodConfig,
    private_dir: &Path,
) -> StateConfig {
    let backend = match reader.text_or("state.backend", "auto").as_str() {
        "secret" => StateBackend::Secret,
        "file" => StateBackend::File,
        "auto" if kubernetes.in_cluster => StateBackend::Secret,
        "auto" => StateBackend::File,
        _ => {
            reader.fault("state.backend", "is none of auto, secret and file");
            StateBackend::File
        }
    };
    let given = reader.text("kubernetes.namespace");
    let namespace = pod
        .namespace
        .clone()
        .or(given)
        .unwrap_or_else(|| "pipeops-system".to_owned());
    StateConfig {
        backend,
        secret_name: reader.text_or("state.secret_name", "pipeops-agent-state"),
        configmap_name: reader.text_or("state.configmap_name", "pipeops-agent-state"),
        namespace: reader.text_or("state.namespace", &namespace),
        file: reader.path_or("state.file", "/var/lib/pipeops/agent-state.yaml"),
        copy: private_dir.join("agent-state.yaml"),
    }
}

fn server(reader: &mut Reader<'_>, pod: &PodConfig) -> ServerConfig {
    let mut allowed_hosts = reader.texts("server.allowed_hosts");
    // How the Service of the chart and Docker's own name for the host are typed into a browser.
    allowed_hosts.push("host.docker.internal".to_owned());
    allowed_hosts.extend(pod.name.clone());
    if let Some(namespace) = &pod.namespace {
        allowed_hosts.push(format!("pipeops-agent.{namespace}"));
        allowed_hosts.push(format!("pipeops-agent.{namespace}.svc"));
        allowed_hosts.push(format!("pipeops-agent.{namespace}.svc.cluster.local"));
    }
    let max_streams = match reader.raw.get("realtime.max_connections") {
        Some(_) => reader
            .parsed("realtime.max_connections", "a number")
            .unwrap_or(REALTIME_MAX),
        None => REALTIME_MAX,
    };
    ServerConfig {
        websocket: reader.switch_or("server.enable_websocket", true),
        sse: reader.switch_or("server.enable_sse", true),
        dashboard: reader.switch_or("server.enable_dashboard", true),
        allowed_hosts,
        sse_heartbeat: reader.duration_or("realtime.sse_heartbeat", SSE_HEARTBEAT, false),
        idle: reader.duration_or("realtime.connection_timeout", REALTIME_IDLE, false),
        max_streams,
    }
}
