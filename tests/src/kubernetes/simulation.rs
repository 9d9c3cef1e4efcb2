//! The simulation as tests hold it.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::{
    auth::{Auth, User},
    bench,
    cluster::Cluster,
    fast::Fast,
    faults::Faults,
    object, patch,
    requests::Requests,
    resources::by_plural,
    seed,
    server::Server,
    status::Status,
    store::Key,
    tls, workload,
    write::WriteOptions,
};

const ADMIN_TOKEN: &str = "simulated-admin-token";
const AGENT_TOKEN: &str = "simulated-agent-token";

/// Changes that are kept of each kind: about what the real watch cache grows to under load.
const WATCH_CACHE: usize = 4096;
/// Requests that the log keeps.
const REQUEST_LOG: usize = 10_000;
/// As the real API: bookmarks about once a minute, watches end after half an hour to an hour.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
const WATCH_TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// How a simulation is made.
#[derive(Clone, Debug)]
pub struct SimulationConfig {
    /// Decides names, uids and the course of the workload.
    pub seed: u64,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// HTTPS with an own authority, or plain HTTP.
    pub tls: bool,
    /// More names for the certificate.
    pub host_names: Vec<String>,
    /// Users beside the administrator and the agent.
    pub users: Vec<User>,
    /// Whether a request without a token is served; else 401.
    pub anonymous: bool,
    /// Changes that are kept of each kind: older positions are 410.
    pub watch_cache: usize,
    /// Requests that the log keeps.
    pub request_log: usize,
    /// Time between two steps of the workload; `None`: only [`Simulation::step`] moves it.
    pub tick: Option<Duration>,
    /// How often a watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
    /// When a watch without `timeoutSeconds` ends.
    pub watch_timeout: Duration,
    /// Start of a simulated clock; `None`: the clock of the machine.
    pub start: Option<Timestamp>,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Whether paths of namespace `bench` are answered by [`Fast`], before everything else.
    pub fast: bool,
}

impl Default for SimulationConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: true,
            host_names: Vec::new(),
            users: Vec::new(),
            anonymous: false,
            watch_cache: WATCH_CACHE,
            request_log: REQUEST_LOG,
            tick: None,
            bookmark_interval: BOOKMARK_INTERVAL,
            watch_timeout: WATCH_TIMEOUT,
            start: None,
            nodes: 3,
            fast: false,
        }
    }
}

/// A running simulation; dropped, it is gone.
#[derive(Debug)]
pub struct Simulation {
    cluster: Arc<Cluster>,
    server: Arc<Server>,
    fast: Option<Arc<Fast>>,
    ca_pem: String,
    _ticker: AbortOnDropHandle<()>,
}

impl Simulation {
    /// Fills the cluster, binds and serves on the current runtime.
    ///
    /// # Errors
    /// When the address is taken or a name for the certificate is none.
    pub async fn start(mut config: SimulationConfig) -> Result<Self> {
        let mut admin = User::new(ADMIN_TOKEN, "admin");
        admin.groups.push("system:masters".to_owned());
        let agent_name = format!("system:serviceaccount:{}:pipeops-agent", seed::AGENT_NAMESPACE);
        let mut agent = User::new(AGENT_TOKEN, &agent_name);
        agent.groups.push("system:serviceaccounts".to_owned());
        config.users.splice(0..0, [admin, agent]);
        let cluster = Arc::new(Cluster::new(&config));
        seed::fill(&cluster, config.nodes).map_err(|status| anyhow::anyhow!(status.message))?;
        let (acceptor, ca_pem) = if config.tls {
            let tls = tls::make(&config.host_names)?;
            (Some(tls.acceptor), tls.ca_pem)
        } else {
            (None, String::new())
        };
        let fast = config.fast.then(Arc::<Fast>::default);
        let server = Server::start(cluster.clone(), config.listen, acceptor, fast.clone()).await?;
        let ticker = AbortOnDropHandle::new(tokio::spawn(workload::live(cluster.clone())));
        Ok(Self {
            cluster,
            server,
            fast,
            ca_pem,
            _ticker: ticker,
        })
    }

    /// Base URL.
    pub fn url(&self) -> String {
        let scheme = if self.ca_pem.is_empty() { "http" } else { "https" };
        format!("{scheme}://{}", self.server.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Certificate of the authority; empty on plain HTTP.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Token of `admin`, who may do everything.
    pub fn admin_token(&self) -> &'static str {
        ADMIN_TOKEN
    }

    /// Token of the agent's ServiceAccount, which may do everything but impersonate, as long as no rule says no.
    pub fn agent_token(&self) -> &'static str {
        AGENT_TOKEN
    }

    /// Writes a kubeconfig with the administrator's token.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig(&self, path: &Path) -> Result<()> {
        let mut cluster = json!({"server": self.url()});
        if !self.ca_pem.is_empty() {
            cluster["certificate-authority-data"] = json!(BASE64_STANDARD.encode(&self.ca_pem));
        }
        // JSON is YAML, and kubectl reads it.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "simulated",
            "clusters": [{"name": "simulated", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
            "contexts": [{"name": "simulated", "context": {"cluster": "simulated", "user": "admin", "namespace": "default"}}]
        });
        std::fs::write(path, format!("{config:#}\n"))?;
        Ok(())
    }

    /// Everything inside.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// What was asked.
    pub fn requests(&self) -> &Requests {
        &self.cluster.requests
    }

    /// What is made to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.cluster.faults
    }

    /// Who may do what.
    pub fn auth(&self) -> &Auth {
        &self.cluster.auth
    }

    /// The fast side for benches.
    ///
    /// # Errors
    /// When the simulation was started without it.
    pub fn fast(&self) -> Result<&Fast> {
        self.fast.as_deref().context("the simulation has no fast side")
    }

    /// The newest resourceVersion.
    pub fn revision(&self) -> u64 {
        self.cluster.store.revision()
    }

    /// One object; the namespace of cluster-wide kinds is empty.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = Key::new(by_plural(plural), namespace, name);
        self.cluster.store.get(&key).map(|stored| stored.value.clone())
    }

    /// All objects of a kind, in one namespace or all.
    pub fn list(&self, plural: &str, namespace: Option<&str>) -> Vec<Value> {
        let found = self.cluster.store.snapshot(by_plural(plural), namespace, None);
        found
            .map(|(_, all)| all.iter().map(|stored| stored.value.clone()).collect())
            .unwrap_or_default()
    }

    /// Creates an object by the rules of the API.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn create(&self, plural: &str, namespace: &str, value: Value) -> Result<Value, Status> {
        let stored = self
            .cluster
            .create(by_plural(plural), namespace, value, &WriteOptions::default())?;
        Ok(stored.value.clone())
    }

    /// Changes an object by a merge patch; one that touches `status` changes the status too.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn merge(&self, plural: &str, namespace: &str, name: &str, change: &Value) -> Result<Value, Status> {
        let key = Key::new(by_plural(plural), namespace, name);
        let apply = |old: &Value| {
            let mut new = old.clone();
            patch::merge(&mut new, change);
            Ok(new)
        };
        let mut stored = self.cluster.update(&key, "", &WriteOptions::default(), apply)?;
        if change.get("status").is_some() {
            stored = self
                .cluster
                .update(&key, "status", &WriteOptions::default(), apply)?;
        }
        Ok(stored.value.clone())
    }

    /// Deletes an object by the rules of the API.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        let key = Key::new(by_plural(plural), namespace, name);
        self.cluster
            .delete(&key, &WriteOptions::default())
            .map(|(last, _)| last.value.clone())
    }

    /// Adds a line to the log of a pod.
    pub fn append_log(&self, namespace: &str, pod: &str, text: &str) {
        self.cluster
            .logs
            .append(namespace, pod, self.cluster.clock.micros(), text);
    }

    /// Makes a namespace with configmaps of a size, for big lists.
    ///
    /// # Errors
    /// When they are there already.
    pub fn fill_configmaps(&self, namespace: &str, count: usize, bytes: usize) -> Result<(), Status> {
        bench::fill(&self.cluster, namespace, count, bytes)
    }

    /// Lets the workload live this many ticks, at once.
    pub fn step(&self, ticks: usize) {
        for _ in 0..ticks {
            self.cluster.tick();
        }
    }

    /// Stops the ticks; [`Self::step`] still works.
    pub fn pause(&self) {
        self.cluster.pace.pause(true);
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) {
        self.cluster.pace.pause(false);
    }

    /// Changes the time between two ticks.
    pub fn set_tick(&self, tick: Duration) {
        self.cluster.pace.set(Some(tick));
    }

    /// Forgets all changes: whoever asks for an older position gets a 410.
    pub fn compact(&self) {
        self.cluster.store.compact();
    }

    /// Ends every open watch cleanly.
    pub fn end_watches(&self) {
        self.cluster.end_watches.send_modify(|count| *count += 1);
    }

    /// Sends a bookmark on every watch that asked for bookmarks.
    pub fn bookmark_now(&self) {
        self.cluster.bookmark.send_modify(|count| *count += 1);
    }

    /// Open TCP connections.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// Breaks all connections without a farewell; new ones are welcome.
    pub fn cut_connections(&self) {
        self.server.cut_connections();
    }

    /// Closes the port and breaks all connections.
    pub async fn down(&self) {
        self.server.down().await;
    }

    /// Comes back on the same port.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub async fn up(&self) -> Result<()> {
        self.server.up().await
    }

    /// The name of the first pod that runs in a namespace.
    pub fn running_pod(&self, namespace: &str) -> Option<String> {
        let pods = self.list("pods", Some(namespace));
        let running = pods
            .iter()
            .find(|pod| object::text(pod, "status.phase") == "Running")?;
        Some(object::name(running).to_owned())
    }
}
