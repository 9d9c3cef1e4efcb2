//! What a reference control plane is told at its start. Every default is on the loopback, with port 0.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::link::LinkLimits;

/// Settings; see [`ControlPlaneConfig::new`] for the defaults.
#[derive(Clone)]
pub struct ControlPlaneConfig {
    /// Address of the API.
    pub listen: SocketAddr,
    /// Address of the HTTPS front, none for no front.
    pub front_listen: Option<SocketAddr>,
    /// Whether the API is served over TLS, with a certificate of the self-made authority.
    pub tls: bool,
    /// Folder for keys, certificates and the log of chisel; a temporary one when absent.
    pub dir: Option<PathBuf>,
    /// Host in the URLs that are handed out, and in the certificate.
    pub public_host: String,
    /// Token of the agents.
    pub token: String,
    /// Token of the people who use the front; made up when absent.
    pub front_token: Option<String>,
    /// Token for the questions and faults from elsewhere than the loopback; made up when absent.
    pub admin_token: Option<String>,
    /// The real chisel server.
    pub chisel: Chisel,
    /// Whether chisel is served over TLS, with the same certificate.
    pub chisel_tls: bool,
    /// Kind of chisel's host key.
    pub host_key: HostKey,
    /// Chisel's own keepalive; 25 s is its default.
    pub chisel_keepalive: Duration,
    /// Names of the forwards that every new cluster gets ports for.
    pub forwards: Vec<String>,
    /// What a new cluster's tunnel shall be.
    pub tunnel: TunnelWish,
    /// Which of the two paths for the tunnel's status exist.
    pub tunnel_api: TunnelApi,
    /// Which words they use.
    pub vocabulary: Vocabulary,
    /// Seconds between polls that agents are told.
    pub poll_frequency: u32,
    /// What an agent hears that registers again.
    pub known_agent: KnownAgent,
    /// Whether the register response carries `proxy_url` and `proxy_token`.
    pub hand_out_proxy: bool,
    /// Where proxies shall dial instead of the API's own address, for example a relay in front of it.
    pub proxy_address: Option<SocketAddr>,
    /// Name of the forward through which every cluster's `/ws/k8s` is dialled, again when lost.
    pub dial_forward: Option<String>,
    /// How often bytes are sent through every forward and back; never when absent.
    pub prove_every: Option<Duration>,
    /// How long a watch at the front waits for a link before it gives up.
    pub resume_patience: Duration,
    /// What links keep to.
    pub link: LinkLimits,
}

/// Which chisel server is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chisel {
    /// The one of `PIPEOPS_PEERS_CHISEL`, else the one in the user's cache folder.
    Find,
    /// This one.
    Path(PathBuf),
    /// None: tunnels are idle.
    Off,
}

/// Kind of chisel's host key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKey {
    /// ECDSA on P-256, which chisel makes itself when it has no key.
    Ecdsa,
    /// Ed25519.
    Ed25519,
}

/// What a cluster's tunnel shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelWish {
    /// Closed.
    Idle,
    /// Open.
    Required,
}

/// Which paths for the tunnel's status exist; the other one is 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelApi {
    /// `GET /api/v1/tunnel/status?agent_id=`.
    Seeds,
    /// `GET /api/agents/{agent_id}/tunnel/status`.
    Older,
    /// Both of them.
    Both,
}

/// Which words the tunnel's status uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// Each path its own.
    ByPath,
    /// `ready`, `tunnel_url`.
    Seeds,
    /// `IDLE`, `REQUIRED`, `ACTIVE`, `tunnel_server_addr`.
    Older,
}

/// What an agent hears that registers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownAgent {
    /// 200 and the same body.
    Ok,
    /// 409 with `cluster_id` at its top.
    Conflict,
}

impl ControlPlaneConfig {
    /// The defaults: loopback, port 0, real chisel, both paths for the tunnel, links dialled by the proxies.
    pub fn new(token: impl Into<String>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: loopback,
            front_listen: Some(loopback),
            tls: false,
            dir: None,
            public_host: "127.0.0.1".to_owned(),
            token: token.into(),
            front_token: None,
            admin_token: None,
            chisel: Chisel::Find,
            chisel_tls: false,
            host_key: HostKey::Ecdsa,
            chisel_keepalive: Duration::from_secs(25),
            forwards: ["kubernetes-api", "k8s-proxy", "agent-http"]
                .map(str::to_owned)
                .to_vec(),
            tunnel: TunnelWish::Required,
            tunnel_api: TunnelApi::Both,
            vocabulary: Vocabulary::ByPath,
            poll_frequency: 5,
            known_agent: KnownAgent::Ok,
            hand_out_proxy: true,
            proxy_address: None,
            dial_forward: None,
            prove_every: None,
            resume_patience: Duration::from_secs(300),
            link: LinkLimits::default(),
        }
    }

    /// The same without chisel.
    #[must_use]
    pub fn without_chisel(mut self) -> Self {
        self.chisel = Chisel::Off;
        self
    }
}

impl std::fmt::Debug for ControlPlaneConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (listen, front) = (&self.listen, &self.front_listen);
        f.debug_struct("ControlPlaneConfig")
            .field("listen", listen)
            .field("front_listen", front)
            .finish_non_exhaustive()
    }
}
