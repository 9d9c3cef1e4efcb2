//! What the handlers of the control plane share.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{
    book::{Book, Cluster},
    chisel::ChiselServer,
    config::{ControlPlaneConfig, TunnelWish},
    door::Door,
    faults::Faults,
    links::Links,
    ports::{free_port, listening},
    prove::{ProofView, Proven},
    secrets::{random_token, same},
    tls::Authority,
};

/// Everything but the listeners.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: ControlPlaneConfig,
    pub(super) dir: PathBuf,
    pub(super) authority: Authority,
    pub(super) chisel: Option<ChiselServer>,
    pub(super) faults: Faults,
    pub(super) links: Links,
    pub(super) front_token: String,
    pub(super) admin_token: String,
    /// The addresses that were really bound.
    pub(super) api_address: SocketAddr,
    pub(super) front_address: Option<SocketAddr>,
    /// Weak, because the door's router holds this state.
    pub(super) door: OnceLock<Weak<Door>>,
    /// What came back through forwards.
    pub(super) proven: Proven,
    token: RwLock<String>,
    book: Mutex<Book>,
}

/// A cluster's tunnel as people see it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct TunnelView {
    /// Where the sidecar connects; absent without chisel.
    pub server: Option<String>,
    /// base64(SHA256(host key)).
    pub fingerprint: Option<String>,
    /// What it shall be.
    pub wish: TunnelWish,
    /// Its forwards.
    pub forwards: Vec<ForwardView>,
}

/// One forward as people see it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct ForwardView {
    /// Name of the forward.
    pub name: String,
    /// Port at the chisel server.
    pub port: u16,
    /// Whether chisel listens there, which it does while the sidecar is connected.
    pub listening: bool,
    /// Bytes that went through it and back last, when it is proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofView>,
}

/// What only exists once everything is bound.
pub(super) struct Parts {
    pub(super) dir: PathBuf,
    pub(super) authority: Authority,
    pub(super) chisel: Option<ChiselServer>,
    pub(super) api_address: SocketAddr,
    pub(super) front_address: Option<SocketAddr>,
}

impl State {
    pub(super) fn new(config: ControlPlaneConfig, parts: Parts) -> Self {
        let Parts {
            dir,
            authority,
            chisel,
            api_address,
            front_address,
        } = parts;
        let front_token = config.front_token.clone().unwrap_or_else(random_token);
        let admin_token = config.admin_token.clone().unwrap_or_else(random_token);
        let token = RwLock::new(config.token.clone());
        Self {
            dir,
            authority,
            chisel,
            faults: Faults::new(),
            links: Links::default(),
            proven: Proven::default(),
            front_token,
            admin_token,
            api_address,
            front_address,
            door: OnceLock::new(),
            token,
            book: Mutex::default(),
            config,
        }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agents' token of the moment.
    pub(super) fn token(&self) -> String {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_token(&self, token: String) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Whether this is the agents' token.
    pub(super) fn accepts(&self, token: Option<&str>) -> bool {
        token.is_some_and(|token| same(token, &self.token()))
    }

    /// `http` or `https`, host and port, as agents see the API.
    pub(super) fn api_url(&self) -> String {
        let scheme = if self.config.tls { "https" } else { "http" };
        format!(
            "{scheme}://{}:{}",
            self.config.public_host,
            self.api_address.port()
        )
    }

    /// The URL that a proxy dials.
    pub(super) fn proxy_url(&self, cluster: &str) -> String {
        let scheme = if self.config.tls { "wss" } else { "ws" };
        let own = format!("{}:{}", self.config.public_host, self.api_address.port());
        let authority = self
            .config
            .proxy_address
            .map_or(own, |address| address.to_string());
        format!("{scheme}://{authority}/api/v1/clusters/agent/{cluster}/proxy")
    }

    /// The URL of a cluster at the front.
    pub(super) fn front_url(&self, cluster: &str) -> Option<String> {
        let port = self.front_address?.port();
        Some(format!(
            "https://{}:{port}/clusters/{cluster}",
            self.config.public_host
        ))
    }

    /// Gives every configured forward of the cluster a port that it keeps.
    pub(super) fn allot(&self, book: &mut Book, cluster: &str, names: &[String], fresh: bool) -> Result<()> {
        let old: BTreeMap<String, u16> = match book.cluster(cluster) {
            Some(cluster) => cluster.forwards.iter().cloned().collect(),
            None => bail!("no cluster {cluster}"),
        };
        let mut forwards = Vec::new();
        let mut taken: BTreeSet<u16> = old.values().copied().collect();
        for name in names {
            let port = match old.get(name) {
                Some(port) if !fresh => *port,
                _ => free_port(|port| taken.contains(&port) || book.has_port(port))?,
            };
            taken.insert(port);
            forwards.push((name.clone(), port));
        }
        let echo = match self.config.prove_every {
            Some(_) => Some(free_port(|port| taken.contains(&port) || book.has_port(port))?),
            None => None,
        };
        let cluster = book.cluster_mut(cluster).context("no such cluster")?;
        cluster.forwards = forwards;
        // One that is known already stays, so that a change of forwards moves no other port.
        cluster.echo = cluster.echo.filter(|_| !fresh).or(echo);
        Ok(())
    }

    /// The tunnel of a cluster, looked at in this moment.
    pub(super) fn tunnel(&self, cluster: &Cluster) -> TunnelView {
        let forwards = cluster.forwards.iter().map(|(name, port)| ForwardView {
            name: name.clone(),
            port: *port,
            listening: self.chisel.is_some() && listening(*port),
            proof: self.proven.of(&cluster.id, name),
        });
        TunnelView {
            server: self
                .chisel
                .as_ref()
                .map(|chisel| chisel.url(&self.config.public_host)),
            fingerprint: self.chisel.as_ref().map(ChiselServer::fingerprint),
            wish: cluster.wish,
            forwards: forwards.collect(),
        }
    }

    /// A kubeconfig whose only cluster is this one, through the front.
    pub(super) fn kubeconfig(&self, cluster: &str) -> Option<String> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let (server, ca) = (self.front_url(cluster)?, STANDARD.encode(self.authority.ca_pem()));
        let token = &self.front_token;
        Some(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: pipeops\n\
             clusters: [{{name: pipeops, cluster: {{server: \"{server}\", certificate-authority-data: {ca}}}}}]\n\
             users: [{{name: pipeops, user: {{token: \"{token}\"}}}}]\n\
             contexts: [{{name: pipeops, context: {{cluster: pipeops, user: pipeops}}}}]\n"
        ))
    }

    /// Where chisel listens for a forward.
    pub(super) fn forward_address(&self, cluster: &str, name: &str) -> Option<SocketAddr> {
        let ip = self.chisel.as_ref()?.address().ip();
        let book = self.book();
        let (_, port) = book
            .cluster(cluster)?
            .forwards
            .iter()
            .find(|(forward, _)| forward == name)?;
        Some(SocketAddr::new(ip, *port))
    }

    /// A change of the API listener that must not wait for the request that asks for it.
    pub(super) fn door(&self) -> Result<Arc<Door>> {
        self.door
            .get()
            .and_then(Weak::upgrade)
            .context("the control plane is stopping")
    }
}
