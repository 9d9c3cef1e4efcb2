//! The settings of this process: flags over variables over defaults, every fault told at once.
//!
//! Listener addresses, log, telemetry, agent-core's address and paths of secrets are all there is; what to do comes
//! as spec over gRPC.

mod siblings;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use runtime::{
    cli::Command,
    config::{Env, Problems, nearest},
    proxy::ProxyEnv,
    telemetry::LogFormat,
};
use url::Url;

use crate::{
    address::HostPort, carrier::MAX_CONNECTIONS, never::Never, outbound::IdentityFiles, targets::Places,
    timing::Timing,
};

/// The command line.
#[derive(Clone, Debug, Default, clap::Parser)]
#[command(
    name = "tunnel-sidecar",
    about = "Holds the forwards of a cluster on one chisel connection",
    disable_version_flag = true
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Settings as they were written.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// What is logged, for example info,tunnel_sidecar=debug [env: PIPEOPS_LOG_LEVEL, default: info].
    #[arg(long, global = true)]
    log_level: Option<String>,
    /// text or json [env: PIPEOPS_LOG_FORMAT, default: text].
    #[arg(long, global = true)]
    log_format: Option<String>,
    /// Where traces go (OTLP over gRPC) [env: OTEL_EXPORTER_OTLP_ENDPOINT, default: nowhere].
    #[arg(long, global = true)]
    otlp_endpoint: Option<String>,
    /// Probes and metrics [env: PIPEOPS_HTTP_LISTEN, default: 0.0.0.0:8081].
    #[arg(long, global = true)]
    http_listen: Option<String>,
    /// Local gRPC, on the loopback [env: PIPEOPS_GRPC_LISTEN, default: 127.0.0.1:7071].
    #[arg(long, global = true)]
    grpc_listen: Option<String>,
    /// Folder of this container alone [env: PIPEOPS_PRIVATE_DIR, default: /run/pipeops/private].
    #[arg(long, global = true)]
    private_dir: Option<String>,
    /// Folder with the token shared with agent-core [env: PIPEOPS_EDGE_DIR, default: /run/pipeops/edge-tunnel].
    #[arg(long, global = true)]
    edge_dir: Option<String>,
    /// agent-core [env: PIPEOPS_CORE_ADDRESS, default: http://127.0.0.1:7070].
    #[arg(long, global = true)]
    core_address: Option<String>,
    /// PEM of our certificate for the chisel server's TLS [env: PIPEOPS_CLIENT_CERT_FILE, default: none].
    #[arg(long, global = true)]
    client_cert_file: Option<String>,
    /// PEM of its key [env: PIPEOPS_CLIENT_KEY_FILE, default: none].
    #[arg(long, global = true)]
    client_key_file: Option<String>,
    /// How long open connections may finish [env: PIPEOPS_DRAIN_TIMEOUT, default: 25s].
    #[arg(long, global = true)]
    drain_timeout: Option<String>,
    /// File that receives the bound addresses as JSON [env: PIPEOPS_ADDRESSES_FILE, default: none].
    #[arg(long, global = true)]
    addresses_file: Option<String>,
}

/// The settings, read.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is logged.
    pub log_level: String,
    /// How it looks.
    pub log_format: LogFormat,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// Probes and metrics.
    pub http_listen: SocketAddr,
    /// Local gRPC.
    pub grpc_listen: SocketAddr,
    /// Folder of this container alone.
    pub private_dir: PathBuf,
    /// Folder with the token shared with agent-core.
    pub edge_dir: PathBuf,
    /// agent-core.
    pub core_address: Url,
    /// How long open connections may finish.
    pub drain_timeout: Duration,
    /// File that receives the bound addresses.
    pub addresses_file: Option<PathBuf>,
    /// Where named targets are.
    pub places: Places,
    /// Our certificate towards the chisel server; its files are read at each connection.
    pub identity: Option<IdentityFiles>,
    /// Proxies as the usual variables name them.
    pub proxies: ProxyEnv,
    /// Connections at a time.
    pub max_connections: usize,
    /// Durations that only tests change.
    pub timing: Timing,
}

/// Name of the variable behind each flag, with the default; no default means none is needed.
const SETTINGS: [(&str, &str, Option<&str>); 15] = [
    ("--log-level", "PIPEOPS_LOG_LEVEL", Some("info")),
    ("--log-format", "PIPEOPS_LOG_FORMAT", Some("text")),
    ("--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", None),
    ("--http-listen", "PIPEOPS_HTTP_LISTEN", Some("0.0.0.0:8081")),
    ("--grpc-listen", "PIPEOPS_GRPC_LISTEN", Some("127.0.0.1:7071")),
    (
        "--private-dir",
        "PIPEOPS_PRIVATE_DIR",
        Some("/run/pipeops/private"),
    ),
    ("--edge-dir", "PIPEOPS_EDGE_DIR", Some("/run/pipeops/edge-tunnel")),
    (
        "--core-address",
        "PIPEOPS_CORE_ADDRESS",
        Some("http://127.0.0.1:7070"),
    ),
    ("--client-cert-file", "PIPEOPS_CLIENT_CERT_FILE", None),
    ("--client-key-file", "PIPEOPS_CLIENT_KEY_FILE", None),
    ("--drain-timeout", "PIPEOPS_DRAIN_TIMEOUT", Some("25s")),
    ("--addresses-file", "PIPEOPS_ADDRESSES_FILE", None),
    (
        "kubernetes-api",
        "PIPEOPS_TARGET_KUBERNETES_API",
        Some("127.0.0.1:8443"),
    ),
    ("k8s-proxy", "PIPEOPS_TARGET_K8S_PROXY", Some("127.0.0.1:8001")),
    ("agent-http", "PIPEOPS_TARGET_AGENT_HTTP", Some("127.0.0.1:8080")),
];

/// The shortest drain that lets a session say goodbye.
const LEAST_DRAIN: Duration = Duration::from_secs(1);

/// Reads settings one after the other and keeps what is wrong with them.
struct Reader<'a> {
    env: &'a Env,
    problems: Problems,
}

impl Reader<'_> {
    /// The written value of a setting and where it came from.
    fn written(&self, name: &str, flag: Option<&str>) -> Option<(String, String)> {
        let (_, variable, default) = SETTINGS.iter().find(|(known, _, _)| *known == name)?;
        if let Some(value) = flag {
            return Some((value.to_owned(), format!("from flag {name}")));
        }
        if let Some(value) = self.env.get(variable) {
            return Some((value.to_owned(), format!("from env {variable}")));
        }
        default.map(|value| (value.to_owned(), "default".to_owned()))
    }

    fn read<T, E: std::fmt::Display>(
        &mut self,
        name: &str,
        flag: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (value, source) = self.written(name, flag)?;
        parse(&value)
            .map_err(|reason| self.problems.push(name, source, Some(&value), reason))
            .ok()
    }
}

impl Config {
    /// Reads flags and variables.
    ///
    /// # Errors
    /// Everything that is wrong, one line each.
    pub fn read(flags: &Flags, env: &Env) -> Result<Self, Problems> {
        let mut reader = Reader {
            env,
            problems: Problems::new(),
        };
        unknown_variables(env, &mut reader.problems);
        let log_level = reader.read("--log-level", flags.log_level.as_deref(), String::from_str);
        let log_format = reader.read("--log-format", flags.log_format.as_deref(), LogFormat::from_str);
        let otlp_endpoint = reader.read(
            "--otlp-endpoint",
            flags.otlp_endpoint.as_deref(),
            String::from_str,
        );
        let http_listen = reader.read("--http-listen", flags.http_listen.as_deref(), listener);
        let grpc_listen = reader.read("--grpc-listen", flags.grpc_listen.as_deref(), |value| {
            let address = listener(value)?;
            let reason = "must be a loopback address: tokens cross it in clear";
            if address.ip().is_loopback() {
                Ok(address)
            } else {
                Err(reason)
            }
        });
        let private_dir = reader.read("--private-dir", flags.private_dir.as_deref(), PathBuf::from_str);
        let edge_dir = reader.read("--edge-dir", flags.edge_dir.as_deref(), PathBuf::from_str);
        let core_address = reader.read("--core-address", flags.core_address.as_deref(), core);
        let drain_timeout = reader.read("--drain-timeout", flags.drain_timeout.as_deref(), duration);
        let addresses_file = reader.read(
            "--addresses-file",
            flags.addresses_file.as_deref(),
            PathBuf::from_str,
        );
        let kubernetes_api = reader.read("kubernetes-api", None, HostPort::from_str);
        let k8s_proxy = reader.read("k8s-proxy", None, HostPort::from_str);
        let agent_http = reader.read("agent-http", None, HostPort::from_str);
        let host_ip = host_ip(env, &mut reader.problems);
        let identity = identity(&mut reader, flags);
        let proxies = ProxyEnv::read(env).unwrap_or_else(|(name, bad)| {
            // The value stays out: it may hold a password.
            reader.problems.push(name, format!("from env {name}"), None, bad);
            ProxyEnv::default()
        });
        let problems = reader.problems;
        // Every `None` below has left a problem, so the fallback is never what runs.
        let (Some(log_level), Some(log_format), Some(http_listen), Some(grpc_listen)) =
            (log_level, log_format, http_listen, grpc_listen)
        else {
            return Err(problems);
        };
        let (Some(private_dir), Some(edge_dir), Some(core_address), Some(drain_timeout)) =
            (private_dir, edge_dir, core_address, drain_timeout)
        else {
            return Err(problems);
        };
        let (Some(kubernetes_api), Some(k8s_proxy), Some(agent_http)) =
            (kubernetes_api, k8s_proxy, agent_http)
        else {
            return Err(problems);
        };
        let places = Places {
            kubernetes_api,
            k8s_proxy,
            agent_http,
            host_ip,
            apiserver: apiserver(env),
        };
        problems.into_result(Self {
            log_level,
            log_format,
            otlp_endpoint,
            http_listen,
            grpc_listen,
            private_dir,
            edge_dir,
            core_address,
            drain_timeout,
            addresses_file,
            places,
            identity,
            proxies,
            max_connections: MAX_CONNECTIONS,
            timing: Timing::default(),
        })
    }

    /// The never-list, given what was really bound.
    pub fn never(&self, bound: &[SocketAddr]) -> Never {
        let core = self.core_address.port_or_known_default();
        Never::new(bound.iter().map(SocketAddr::port).chain(core))
    }

    /// One line for the log and for `check-config`; there is no secret among the settings.
    pub fn describe(&self) -> String {
        let Self {
            http_listen,
            grpc_listen,
            core_address,
            places,
            drain_timeout,
            ..
        } = self;
        format!(
            "http {http_listen}, grpc {grpc_listen}, agent-core {core_address}, edge token in {}, private folder {}, \
             kubernetes-api at {}, k8s-proxy at {}, agent-http at {}, drain {drain_timeout:?}",
            self.edge_dir.display(),
            self.private_dir.display(),
            places.kubernetes_api,
            places.k8s_proxy,
            places.agent_http,
        )
    }
}

fn listener(value: &str) -> Result<SocketAddr, &'static str> {
    value
        .parse()
        .map_err(|_| "is not address:port, for example 127.0.0.1:7071")
}

fn core(value: &str) -> Result<Url, &'static str> {
    let reason = "is not http://host:port of agent-core in this pod";
    let url = Url::parse(value).map_err(|_| reason)?;
    if url.scheme() == "http" && runtime::dial::url_is_loopback(&url) {
        Ok(url)
    } else {
        Err(reason)
    }
}

fn duration(value: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(value).map_err(|_| "is not a duration, for example 25s")?;
    if duration >= LEAST_DRAIN {
        Ok(duration)
    } else {
        Err("is below 1s, too short for a goodbye")
    }
}

fn identity(reader: &mut Reader<'_>, flags: &Flags) -> Option<IdentityFiles> {
    let (certificate, key) = (
        flags.client_cert_file.as_deref(),
        flags.client_key_file.as_deref(),
    );
    let certificate = reader.read("--client-cert-file", certificate, PathBuf::from_str);
    let key = reader.read("--client-key-file", key, PathBuf::from_str);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(IdentityFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            let reason = "a certificate and its key are given together: set both --client-cert-file and --client-key-file";
            reader
                .problems
                .push("--client-cert-file", "given alone", None, reason);
            None
        }
    }
}

fn host_ip(env: &Env, problems: &mut Problems) -> Option<IpAddr> {
    let value = env.get("HOST_IP")?;
    let refuse = |_| problems.push("HOST_IP", "from env HOST_IP", Some(value), "is not an IP address");
    value.parse().map_err(refuse).ok()
}

/// The apiserver as the kubelet tells every container. Outside a cluster there is none, which is no fault.
fn apiserver(env: &Env) -> Option<HostPort> {
    let port = env.get("KUBERNETES_SERVICE_PORT")?.parse().ok()?;
    HostPort::new(env.get("KUBERNETES_SERVICE_HOST")?, port).ok()
}

/// A variable of ours that nobody knows is a slip of somebody's keyboard.
fn unknown_variables(env: &Env, problems: &mut Problems) {
    let known = || SETTINGS.iter().map(|(_, variable, _)| *variable);
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with("PIPEOPS_")) {
        if known().any(|own| own == name) || siblings::knows(name) || siblings::is_service_link(name, value) {
            continue;
        }
        let reason = match nearest(name, known()) {
            Some(near) => format!("is not a setting; did you mean {near}?"),
            None => "is not a setting of any container".to_owned(),
        };
        // The value stays out: what was meant may be a secret.
        problems.push(name, format!("from env {name}"), None, reason);
    }
}

#[cfg(test)]
mod tests;
