//! The reference control plane: the server side of profile `classic`, on real sockets, for tests and for people.
//!
//! ```text
//!            agents                    k8s-proxy                       people, kubectl
//!   register│heartbeat│status      WebSocket│dialled out                │ HTTPS
//!           ▼                               ▼                           ▼
//!   door ─► api ──► book (what was told)   links ─► link (frames v1) ◄─ front (calls, follow, watches)
//!     └───► people (questions, faults)      ▲
//!                                           │ dialled by us, through a forward of
//!                                        chisel (the real Go server, our child)
//! ```
//!
//! `api`, `people` and the WebSockets share one listener, which tests can take away and bring back (`door`).

mod api;
mod book;
mod chisel;
mod config;
pub mod conformance;
mod door;
mod faults;
pub mod frames;
mod front;
mod link;
mod links;
mod orders;
mod people;
mod ports;
mod prove;
mod secrets;
mod state;
mod steer;
#[cfg(test)]
mod tests;
mod tls;
mod told;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub use self::{
    book::{ClusterView, Heartbeat, Registration, RouteCount},
    chisel::KeyChange,
    config::{Chisel, ControlPlaneConfig, HostKey, KnownAgent, TunnelApi, TunnelWish, Vocabulary},
    faults::{Answer, Route, Times},
    frames::Call,
    link::{
        Direction, End, LinkBody, LinkError, LinkLimits, LinkView, ProxyLink, Response, ResponseStream, Tap,
        Unanswered,
    },
    prove::ProofView,
    state::{ForwardView, TunnelView},
};
use self::{
    chisel::{ChiselServer, ChiselSettings},
    door::Door,
    state::{Parts, State},
};

/// How often a cluster is looked at that has no link through its forward.
const DIAL_AGAIN: Duration = Duration::from_millis(500);

/// A running control plane; dropping it ends it and its chisel server.
#[derive(Debug)]
pub struct ControlPlane {
    state: Arc<State>,
    door: Arc<Door>,
    front: Option<Door>,
    /// Dials and proves through forwards, when that is asked for.
    _dialling: JoinSet<()>,
    _dir: Option<TempDir>,
}

impl ControlPlane {
    /// Binds everything, starts chisel, serves.
    ///
    /// # Errors
    /// When an address cannot be bound, a folder not be used, or chisel not be started.
    pub async fn start(config: ControlPlaneConfig) -> Result<Self> {
        // A program that has a provider already keeps it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let temporary = match &config.dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
                None
            }
            None => Some(tempfile::tempdir()?),
        };
        let dir = config
            .dir
            .clone()
            .or_else(|| Some(temporary.as_ref()?.path().to_owned()));
        let dir = dir.context("no folder")?;
        let authority = tls::Authority::open(&dir, &config.public_host)?;
        let api = door::bind(config.listen).await?;
        let front = match config.front_listen {
            Some(listen) => Some(door::bind(listen).await?),
            None => None,
        };
        let chisel = match chisel::find(&config.chisel)? {
            Some(binary) => Some(
                ChiselServer::start(ChiselSettings {
                    binary,
                    dir: dir.clone(),
                    host: config.listen.ip(),
                    tls: config.chisel_tls.then(|| authority.clone()),
                    host_key: config.host_key,
                    keepalive: config.chisel_keepalive,
                })
                .await?,
            ),
            None => None,
        };
        let api_address = api.local_addr()?;
        let front_address = front.as_ref().map(|front| front.local_addr()).transpose()?;
        let tls = config
            .tls
            .then(|| authority.server_config(&[b"http/1.1"]))
            .transpose()?;
        let front_tls = authority.server_config(&[b"h2", b"http/1.1"])?;
        let state = Arc::new(State::new(
            config,
            Parts {
                dir,
                authority,
                chisel,
                api_address,
                front_address,
            },
        ));
        let router = api::router(&state).merge(people::router(&state));
        let door = Arc::new(Door::open(api, router, tls)?);
        // Set once, here.
        let _ = state.door.set(Arc::downgrade(&door));
        let front = match front {
            Some(listener) => Some(Door::open(listener, front::router(&state), Some(front_tls))?),
            None => None,
        };
        let mut dialling = JoinSet::new();
        if let Some(name) = state.config.dial_forward.clone() {
            dialling.spawn(keep_dialling(Arc::clone(&state), name));
        }
        if let Some(every) = state.config.prove_every {
            dialling.spawn(prove::keep_proving(Arc::clone(&state), every));
        }
        Ok(Self {
            state,
            door,
            front,
            _dialling: dialling,
            _dir: temporary,
        })
    }

    /// Ends it in order: listeners first, then chisel.
    pub async fn stop(self) {
        self.state.links.cut(None, "the control plane stopped");
        self.door.down().await;
        if let Some(front) = &self.front {
            front.down().await;
        }
        if let Some(chisel) = &self.state.chisel {
            let _ = chisel.kill().await;
        }
    }
}

// === Where it is ===

impl ControlPlane {
    /// URL of the API, for `PIPEOPS_API_URL`.
    pub fn api_url(&self) -> String {
        self.state.api_url()
    }

    /// Address of the API.
    pub fn api_address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Address of the front, if there is one.
    pub fn front_address(&self) -> Option<SocketAddr> {
        self.front.as_ref().map(Door::address)
    }

    /// URL of a cluster at the front, for `kubectl --server`; empty without a front.
    pub fn front_url(&self, cluster: &str) -> String {
        self.state.front_url(cluster).unwrap_or_default()
    }

    /// Address of chisel, if there is one.
    pub fn chisel_address(&self) -> Option<SocketAddr> {
        self.state.chisel.as_ref().map(ChiselServer::address)
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        self.state.authority.ca_pem()
    }

    /// File with the authority's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.state.authority.ca_file()
    }

    /// Token of the people who use the front.
    pub fn front_token(&self) -> &str {
        &self.state.front_token
    }

    /// Token for questions and faults from elsewhere than the loopback.
    pub fn admin_token(&self) -> &str {
        &self.state.admin_token
    }

    /// Token of the agents.
    pub fn token(&self) -> String {
        self.state.token()
    }

    /// Folder of keys, certificates and chisel's log.
    pub fn dir(&self) -> &Path {
        &self.state.dir
    }

    /// A kubeconfig for one cluster through the front; empty without a front.
    pub fn kubeconfig(&self, cluster: &str) -> String {
        self.state.kubeconfig(cluster).unwrap_or_default()
    }
}

async fn dial_forward(state: &State, id: &str, name: &str) -> Result<Arc<ProxyLink>> {
    let address = state
        .forward_address(id, name)
        .with_context(|| format!("no forward {name} for {id}"))?;
    let url = links::forward_url(address);
    links::dial(&state.links, id, &url, &state.token(), state.config.link).await
}

/// Sees to it that every known cluster has a link that was dialled through this forward.
async fn keep_dialling(state: Arc<State>, name: String) {
    loop {
        let known: Vec<String> = {
            let book = state.book();
            book.clusters()
                .into_iter()
                .filter(|cluster| cluster.known)
                .map(|cluster| cluster.id.clone())
                .collect()
        };
        for id in known {
            let linked = state
                .links
                .of(&id)
                .iter()
                .any(|link| link.direction() == Direction::ToProxy);
            let up = state
                .forward_address(&id, &name)
                .is_some_and(|address| ports::listening(address.port()));
            if up
                && !linked
                && let Err(error) = dial_forward(&state, &id, &name).await
            {
                tracing::info!(
                    cluster = id,
                    forward = name,
                    error = format!("{error:#}"),
                    "not linked yet"
                );
            }
        }
        tokio::time::sleep(DIAL_AGAIN).await;
    }
}
