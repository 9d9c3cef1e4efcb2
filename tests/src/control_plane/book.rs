//! What agents told: clusters, their registrations and heartbeats, counts of requests. Pure: no socket, no clock.
//!
//! Everything here is bounded, so that a reference control plane can run for weeks beside somebody's cluster.

use std::{
    collections::{BTreeMap, VecDeque},
    time::SystemTime,
};

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{config::TunnelWish, secrets::random_token};

/// Heartbeats, registrations and attempts that are kept: at one in 5 s, the last 80 minutes.
const KEPT: usize = 1000;
/// Clusters that are kept; a thousand and first one is refused.
const MAX_CLUSTERS: usize = 1000;
/// Paths that are counted by name.
const MAX_ROUTES: usize = 100;
/// A hint longer than this is no cluster id.
const MAX_ID: usize = 64;

/// One heartbeat as it came.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Wall clock, for people.
    pub received_at: SystemTime,
    /// The runtime's clock, for intervals.
    pub at: Instant,
    /// The body, untouched.
    pub body: Value,
}

/// One call of `register` as it came.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Wall clock, for people.
    pub received_at: SystemTime,
    /// The runtime's clock, for intervals.
    pub at: Instant,
    /// How it was answered.
    pub status: u16,
    /// The body, untouched; `null` when it was no JSON.
    pub body: Value,
}

/// A cluster at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterView {
    /// The id that was handed out.
    pub cluster_id: String,
    /// The agent that registered last.
    pub agent_id: String,
    /// The name that it gave.
    pub name: String,
    /// First registration (RFC 3339).
    pub registered_at: String,
    /// Accepted registrations.
    pub registrations: u64,
    /// Accepted heartbeats.
    pub heartbeats: u64,
    /// Last heartbeat (RFC 3339).
    pub last_heartbeat: Option<String>,
    /// `status` of the last heartbeat.
    pub status: Option<String>,
    /// `tunnel_status` of the last heartbeat.
    pub tunnel_status: Option<String>,
    /// False once it is forgotten, until it registers again.
    pub known: bool,
}

/// How often a path was asked for.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct RouteCount {
    /// All requests, those without an answer too.
    pub total: u64,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
}

/// One cluster.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) id: String,
    pub(super) agent_id: String,
    pub(super) name: String,
    pub(super) registered_at: SystemTime,
    pub(super) known: bool,
    pub(super) proxy_token: String,
    pub(super) wish: TunnelWish,
    /// `proxy_limits` of the answers to its heartbeats.
    pub(super) limits: Option<Value>,
    /// Name and port at the chisel server.
    pub(super) forwards: Vec<(String, u16)>,
    /// Port of the agent's echo door, when its forwards are proven.
    pub(super) echo: Option<u16>,
    registrations: VecDeque<Registration>,
    registration_count: u64,
    heartbeats: VecDeque<Heartbeat>,
    heartbeat_count: u64,
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registered {
    New,
    Again,
}

/// Everything that was told.
#[derive(Debug, Default)]
pub(super) struct Book {
    clusters: BTreeMap<String, Cluster>,
    attempts: VecDeque<Registration>,
    requests: BTreeMap<String, RouteCount>,
}

impl Book {
    /// Registers an agent: its own cluster again, or the cluster of the hint, or a new one.
    ///
    /// The id in a hint is kept when no other agent has it; somebody else's cluster cannot be taken over by naming it.
    /// `None` when there are too many clusters.
    pub(super) fn register(
        &mut self,
        agent_id: &str,
        name: &str,
        hint: Option<&str>,
        now: SystemTime,
        wish: TunnelWish,
    ) -> Option<(&mut Cluster, Registered)> {
        let own = self
            .clusters
            .values()
            .find(|cluster| cluster.known && cluster.agent_id == agent_id);
        if let Some(id) = own.map(|cluster| cluster.id.clone()) {
            let cluster = self.clusters.get_mut(&id)?;
            name.clone_into(&mut cluster.name);
            return Some((cluster, Registered::Again));
        }
        let hint = hint.filter(|hint| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            !hint.is_empty() && hint.len() <= MAX_ID && hint.chars().all(plain)
        });
        let id = match hint {
            Some(hint) if self.clusters.get(hint).is_none_or(|cluster| !cluster.known) => hint.to_owned(),
            _ => uuid::Uuid::new_v4().to_string(),
        };
        if !self.clusters.contains_key(&id) && self.clusters.len() >= MAX_CLUSTERS {
            return None;
        }
        let cluster = self.clusters.entry(id.clone()).or_insert_with(|| Cluster {
            id,
            agent_id: String::new(),
            name: String::new(),
            registered_at: now,
            known: true,
            proxy_token: String::new(),
            wish,
            limits: None,
            forwards: Vec::new(),
            echo: None,
            registrations: VecDeque::new(),
            registration_count: 0,
            heartbeats: VecDeque::new(),
            heartbeat_count: 0,
        });
        (cluster.known, cluster.agent_id, cluster.name) = (true, agent_id.to_owned(), name.to_owned());
        cluster.proxy_token = random_token();
        Some((cluster, Registered::New))
    }

    /// Keeps a heartbeat; false when the cluster is not known.
    pub(super) fn heartbeat(&mut self, id: &str, heartbeat: Heartbeat) -> bool {
        let Some(cluster) = self.clusters.get_mut(id).filter(|cluster| cluster.known) else {
            return false;
        };
        cluster.heartbeat_count += 1;
        keep(&mut cluster.heartbeats, heartbeat);
        true
    }

    /// Keeps a call of `register`, with its cluster when there is one.
    pub(super) fn attempt(&mut self, id: Option<&str>, attempt: Registration) {
        if let Some(cluster) = id.and_then(|id| self.clusters.get_mut(id)) {
            cluster.registration_count += 1;
            keep(&mut cluster.registrations, attempt.clone());
        }
        keep(&mut self.attempts, attempt);
    }

    /// Forgets a cluster; what it told stays readable.
    pub(super) fn forget(&mut self, id: &str) -> bool {
        self.clusters
            .get_mut(id)
            .is_some_and(|cluster| std::mem::take(&mut cluster.known))
    }

    /// Counts a request, whatever becomes of it.
    pub(super) fn asked(&mut self, route: &str) {
        if let Some(count) = self.count(route) {
            count.total += 1;
        }
    }

    /// Counts its answer.
    pub(super) fn answered(&mut self, route: &str, status: u16) {
        if let Some(count) = self.count(route) {
            *count.by_status.entry(status).or_default() += 1;
        }
    }

    fn count(&mut self, route: &str) -> Option<&mut RouteCount> {
        if self.requests.len() >= MAX_ROUTES && !self.requests.contains_key(route) {
            return None;
        }
        Some(self.requests.entry(route.to_owned()).or_default())
    }

    pub(super) fn requests(&self) -> BTreeMap<String, RouteCount> {
        self.requests.clone()
    }

    pub(super) fn attempts(&self) -> Vec<Registration> {
        self.attempts.iter().cloned().collect()
    }

    /// A cluster, known or forgotten.
    pub(super) fn cluster(&self, id: &str) -> Option<&Cluster> {
        self.clusters.get(id)
    }

    pub(super) fn cluster_mut(&mut self, id: &str) -> Option<&mut Cluster> {
        self.clusters.get_mut(id)
    }

    /// The known cluster of an agent.
    pub(super) fn cluster_of(&self, agent_id: &str) -> Option<&Cluster> {
        self.clusters
            .values()
            .find(|cluster| cluster.known && cluster.agent_id == agent_id)
    }

    /// All clusters, oldest first.
    pub(super) fn clusters(&self) -> Vec<&Cluster> {
        let mut all: Vec<_> = self.clusters.values().collect();
        all.sort_by_key(|cluster| cluster.registered_at);
        all
    }

    /// Whether a port is given out already.
    pub(super) fn has_port(&self, port: u16) -> bool {
        self.clusters
            .values()
            .flat_map(|cluster| {
                cluster
                    .forwards
                    .iter()
                    .map(|(_, taken)| *taken)
                    .chain(cluster.echo)
            })
            .any(|taken| taken == port)
    }
}

impl Cluster {
    pub(super) fn heartbeats(&self) -> Vec<Heartbeat> {
        self.heartbeats.iter().cloned().collect()
    }

    pub(super) fn registrations(&self) -> Vec<Registration> {
        self.registrations.iter().cloned().collect()
    }

    pub(super) fn view(&self) -> ClusterView {
        let last = self.heartbeats.back();
        let said = |key: &str| {
            last.and_then(|beat| beat.body.get(key)?.as_str())
                .map(str::to_owned)
        };
        ClusterView {
            cluster_id: self.id.clone(),
            agent_id: self.agent_id.clone(),
            name: self.name.clone(),
            registered_at: rfc3339(self.registered_at),
            registrations: self.registration_count,
            heartbeats: self.heartbeat_count,
            last_heartbeat: last.map(|beat| rfc3339(beat.received_at)),
            status: said("status"),
            tunnel_status: said("tunnel_status"),
            known: self.known,
        }
    }
}

/// A time as people and agents read it.
pub(super) fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or_default().to_string()
}

fn keep<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= KEPT {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(book: &mut Book, agent: &str, hint: Option<&str>) -> (String, Registered) {
        let (cluster, registered) = book
            .register(agent, "lab", hint, SystemTime::UNIX_EPOCH, TunnelWish::Required)
            .unwrap();
        (cluster.id.clone(), registered)
    }

    fn beat(book: &mut Book, id: &str) -> bool {
        let (received_at, body) = (SystemTime::UNIX_EPOCH, serde_json::json!({"status": "healthy"}));
        book.heartbeat(
            id,
            Heartbeat {
                received_at,
                at: Instant::now(),
                body,
            },
        )
    }

    #[test]
    fn one_agent_has_one_cluster() {
        let mut book = Book::default();
        let (first, new) = register(&mut book, "a", None);
        assert_eq!(
            (register(&mut book, "a", None), new),
            ((first.clone(), Registered::Again), Registered::New)
        );
        assert_ne!(register(&mut book, "b", None).0, first);
    }

    #[test]
    fn a_hint_is_kept_unless_it_is_somebody_elses() {
        let mut book = Book::default();
        assert_eq!(
            register(&mut book, "a", Some("c-1")),
            ("c-1".to_owned(), Registered::New)
        );
        assert_ne!(register(&mut book, "b", Some("c-1")).0, "c-1");
        assert_ne!(register(&mut book, "c", Some("../x")).0, "../x");
    }

    #[test]
    fn a_forgotten_cluster_comes_back_by_its_hint_only() {
        let mut book = Book::default();
        let (id, _) = register(&mut book, "a", None);
        let token = book.cluster(&id).unwrap().proxy_token.clone();
        assert!(beat(&mut book, &id) && book.forget(&id) && !beat(&mut book, &id));
        assert_ne!(
            register(&mut book, "a", None).0,
            id,
            "an agent that does not say who it was is new"
        );
        let (other, _) = register(&mut book, "a", None);
        book.forget(&other);
        assert_eq!(register(&mut book, "a", Some(&id)), (id.clone(), Registered::New));
        let cluster = book.cluster(&id).unwrap();
        assert_eq!(cluster.view().heartbeats, 1);
        assert_ne!(cluster.proxy_token, token);
    }

    #[test]
    fn memory_is_bounded() {
        let mut book = Book::default();
        let (id, _) = register(&mut book, "a", None);
        for _ in 0..KEPT + 5 {
            beat(&mut book, &id);
        }
        for number in 0..MAX_ROUTES + 5 {
            book.asked(&number.to_string());
        }
        let cluster = book.cluster(&id).unwrap();
        assert_eq!(
            (cluster.heartbeats().len(), cluster.view().heartbeats),
            (KEPT, KEPT as u64 + 5)
        );
        assert_eq!(book.requests().len(), MAX_ROUTES);
    }
}
