//! The settings of this process: flags over variables over defaults, every fault told at once.
//!
//! Listener addresses, log, telemetry, agent-core's address and paths of secrets are all there is; what to do comes
//! as spec over gRPC.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use proto::variables::{AGENT_CORE, K8S_PROXY, SURROUNDINGS};
use runtime::{
    cli::Command,
    config::{Env, Problems},
    proxy::ProxyEnv,
    settings::{Common, CommonFlags, Defaults, Reader, Row},
};

use crate::{
    address::HostPort, carrier::MAX_CONNECTIONS, never::Never, outbound::IdentityFiles, targets::Places,
    timing::Timing,
};

/// The command line.
#[derive(Clone, Debug, Default, clap::Parser)]
#[command(
    name = "tunnel-sidecar",
    about = "Holds the forwards of a cluster on one chisel connection",
    after_help = "Defaults: --http-listen 0.0.0.0:8081, --grpc-listen 127.0.0.1:7071, --edge-dir /run/pipeops/edge-tunnel",
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
    /// What every process of the pod has.
    #[command(flatten)]
    common: CommonFlags,
    /// PEM of our certificate for the chisel server's TLS [env: PIPEOPS_CLIENT_CERT_FILE, default: none].
    #[arg(long, global = true)]
    client_cert_file: Option<String>,
    /// PEM of its key [env: PIPEOPS_CLIENT_KEY_FILE, default: none].
    #[arg(long, global = true)]
    client_key_file: Option<String>,
}

/// The settings, read.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every process of the pod has.
    pub common: Common,
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

/// What differs from the other containers.
const DEFAULTS: Defaults = Defaults {
    http_listen: "0.0.0.0:8081",
    grpc_listen: "127.0.0.1:7071",
    edge_dir: "/run/pipeops/edge-tunnel",
};

/// Settings of this process alone.
const SETTINGS: [Row; 5] = [
    ("--client-cert-file", "PIPEOPS_CLIENT_CERT_FILE", None),
    ("--client-key-file", "PIPEOPS_CLIENT_KEY_FILE", None),
    (
        "kubernetes-api",
        "PIPEOPS_TARGET_KUBERNETES_API",
        Some("127.0.0.1:8443"),
    ),
    ("k8s-proxy", "PIPEOPS_TARGET_K8S_PROXY", Some("127.0.0.1:8001")),
    ("agent-http", "PIPEOPS_TARGET_AGENT_HTTP", Some("127.0.0.1:8080")),
];

impl Config {
    /// Reads flags and variables.
    ///
    /// # Errors
    /// Everything that is wrong, one line each.
    pub fn read(flags: &Flags, env: &Env) -> Result<Self, Problems> {
        let mut reader = Reader::new(env, &DEFAULTS, &SETTINGS);
        reader.unknown_variables(&[], |name| {
            [AGENT_CORE, K8S_PROXY, SURROUNDINGS]
                .iter()
                .any(|others| others.know(name))
        });
        let common = Common::read(&mut reader, &flags.common);
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
        let (Some(common), Some(kubernetes_api), Some(k8s_proxy), Some(agent_http)) =
            (common, kubernetes_api, k8s_proxy, agent_http)
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
            common,
            places,
            identity,
            proxies,
            max_connections: MAX_CONNECTIONS,
            timing: Timing::default(),
        })
    }

    /// The never-list, given what was really bound.
    pub fn never(&self, bound: &[SocketAddr]) -> Never {
        let core = self.common.core_address.port_or_known_default();
        Never::new(bound.iter().map(SocketAddr::port).chain(core))
    }

    /// One line for the log and for `check-config`; there is no secret among the settings.
    pub fn describe(&self) -> String {
        let (common, places) = (&self.common, &self.places);
        format!(
            "http {}, grpc {}, agent-core {}, edge token in {}, private folder {}, kubernetes-api at {}, \
             k8s-proxy at {}, agent-http at {}, drain {:?}",
            common.http_listen,
            common.grpc_listen,
            common.core_address,
            common.edge_dir.display(),
            common.private_dir.display(),
            places.kubernetes_api,
            places.k8s_proxy,
            places.agent_http,
            common.drain_timeout,
        )
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

#[cfg(test)]
mod tests;
