//! What the configuration means to the rest of agent-core.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use runtime::{
    backoff::Policy,
    secret::{SecretString, TokenFile},
    telemetry::LogFormat,
};
use url::Url;

use super::{Effective, ProxyConfig, TunnelConfig};

/// What agent-core runs with.
#[derive(Debug)]
pub struct Config {
    /// HTTP for kubelet, Prometheus and people.
    pub http_listen: SocketAddr,
    /// Local gRPC; always a loopback address.
    pub grpc_listen: SocketAddr,
    /// tunnel-sidecar's local gRPC, for what a person asks of the tunnel on the page.
    pub tunnel_grpc: Url,
    /// k8s-proxy's, for the open streams that the page shows.
    pub proxy_grpc: Url,
    /// Holds the operator token and the write-through copy of the state.
    pub private_dir: PathBuf,
    /// Shared with tunnel-sidecar only.
    pub edge_tunnel_dir: PathBuf,
    /// Shared with k8s-proxy only.
    pub edge_proxy_dir: PathBuf,
    /// How long a drain may last.
    pub drain_timeout: Duration,
    /// Where the bound addresses are written.
    pub addresses_file: Option<PathBuf>,
    /// Where the last sentence goes when the process ends for good.
    pub termination_log: PathBuf,
    /// A sibling that said nothing for so long is unknown.
    pub report_timeout: Duration,
    /// Log filter.
    pub log_level: String,
    /// Log format.
    pub log_format: LogFormat,
    /// OTLP endpoint.
    pub otlp_endpoint: Option<String>,
    /// Who the agent is.
    pub identity: IdentityConfig,
    /// Who it reports to.
    pub control_plane: ControlPlaneConfig,
    /// How it reaches the Kubernetes API, and what it hands out about it.
    pub kubernetes: KubernetesConfig,
    /// Where its identity is kept.
    pub state: StateConfig,
    /// The pod around it.
    pub pod: PodConfig,
    /// What tunnel-sidecar is told.
    pub tunnel: TunnelConfig,
    /// What k8s-proxy is told.
    pub proxy: ProxyConfig,
    /// The local server.
    pub server: ServerConfig,
    /// Accepted settings without effect, one line each.
    pub notes: Vec<String>,
    /// The settings in force, for the log and for `check-config`.
    pub effective: Vec<Effective>,
}

/// Names of the agent and its cluster.
#[derive(Debug)]
pub struct IdentityConfig {
    /// Set by the owner; made up and kept otherwise.
    pub agent_id: Option<String>,
    /// Name of the agent for people.
    pub name: String,
    /// Name under which the cluster is registered.
    pub cluster_name: String,
    /// Sent with the registration.
    pub labels: Vec<(String, String)>,
    /// What is sent as `agent_version`; our own version otherwise.
    pub version: Option<String>,
}

/// The control plane's address and how it is spoken to.
#[derive(Debug)]
pub struct ControlPlaneConfig {
    /// Base URL.
    pub url: Url,
    /// The bearer.
    pub token: TokenSource,
    /// One registration or tunnel call.
    pub timeout: Duration,
    /// PEM of roots beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// One heartbeat.
    pub heartbeat_timeout: Duration,
    /// Between registrations.
    pub backoff: Policy,
}

/// Where a token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// Given as a value.
    Value(SecretString),
    /// Read from a file at each use, so that a rotated token is used at once.
    File(TokenFile),
}

impl TokenSource {
    /// The token at this moment.
    ///
    /// # Errors
    /// A sentence, when the file is missing, empty or cannot be read.
    pub fn read(&self) -> Result<SecretString, String> {
        match self {
            Self::Value(token) => Ok(token.clone()),
            Self::File(file) => match file.read() {
                Ok(Some(token)) => Ok(token),
                Ok(None) => Err(format!("{} is missing or empty", file.path().display())),
                Err(error) => Err(format!("cannot read {}: {error}", file.path().display())),
            },
        }
    }
}

/// The Kubernetes side.
#[derive(Debug)]
pub struct KubernetesConfig {
    /// k8s-proxy's local door.
    pub door: Url,
    /// Whether the agent runs in a pod.
    pub in_cluster: bool,
    /// Sent with the registration only when the owner gave it.
    pub service_token: Option<TokenSource>,
    /// Likewise.
    pub ca_cert_data: Option<String>,
}

/// Where the identity is kept.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// Secret or file.
    pub backend: StateBackend,
    /// The Secret's name.
    pub secret_name: String,
    /// The ConfigMap in which the Go agent kept its identity.
    pub configmap_name: String,
    /// Their namespace.
    pub namespace: String,
    /// The file of the file backend.
    pub file: PathBuf,
    /// The copy beside the Secret.
    pub copy: PathBuf,
}

/// The kinds of state store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateBackend {
    /// A Kubernetes Secret through the local door, with a copy in the private folder.
    Secret,
    /// One file.
    File,
}

/// The pod, as far as the downward API tells it.
#[derive(Clone, Debug, Default)]
pub struct PodConfig {
    /// Name of the pod.
    pub name: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its UID.
    pub uid: Option<String>,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// The node's address.
    pub host_ip: Option<IpAddr>,
}

/// The local HTTP server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Serve `/ws`.
    pub websocket: bool,
    /// Serve `/api/realtime/events`.
    pub sse: bool,
    /// Serve the page.
    pub dashboard: bool,
    /// Host names under which a browser may come, beside addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Between two events of a quiet stream.
    pub sse_heartbeat: Duration,
    /// Silence after which a WebSocket is closed.
    pub idle: Duration,
    /// How many realtime streams may be open.
    pub max_streams: usize,
}
