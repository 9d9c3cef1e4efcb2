//! What a running control plane was told, and waiting for more of it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{
    ControlPlane,
    book::{Cluster, ClusterView, Heartbeat, Registration, RouteCount},
    link::ProxyLink,
    ports,
    state::TunnelView,
};
use crate::wait::eventually;

impl ControlPlane {
    /// All clusters, oldest first.
    pub fn clusters(&self) -> Vec<ClusterView> {
        self.state
            .book()
            .clusters()
            .into_iter()
            .map(Cluster::view)
            .collect()
    }

    /// One cluster, known or forgotten.
    pub fn cluster(&self, id: &str) -> Option<ClusterView> {
        self.state.book().cluster(id).map(Cluster::view)
    }

    /// Its last heartbeats, oldest first.
    pub fn heartbeats(&self, id: &str) -> Vec<Heartbeat> {
        self.state
            .book()
            .cluster(id)
            .map(Cluster::heartbeats)
            .unwrap_or_default()
    }

    /// Its accepted registrations, oldest first.
    pub fn registrations(&self, id: &str) -> Vec<Registration> {
        self.state
            .book()
            .cluster(id)
            .map(Cluster::registrations)
            .unwrap_or_default()
    }

    /// All calls of `register`, the refused ones too (with an empty body), oldest first.
    pub fn attempts(&self) -> Vec<Registration> {
        self.state.book().attempts()
    }

    /// How often each path of agents was asked for.
    pub fn requests(&self) -> BTreeMap<String, RouteCount> {
        self.state.book().requests()
    }

    /// A cluster's tunnel in this moment.
    pub fn tunnel(&self, id: &str) -> Option<TunnelView> {
        self.state
            .book()
            .cluster(id)
            .map(|cluster| self.state.tunnel(cluster))
    }

    /// Its open links, newest last.
    pub fn links(&self, id: &str) -> Vec<Arc<ProxyLink>> {
        self.state.links.of(id)
    }

    /// Waits for the first registered cluster.
    ///
    /// # Panics
    /// When the patience of the tests runs out.
    pub async fn wait_registered(&self) -> String {
        let first = async || self.clusters().into_iter().find(|cluster| cluster.known);
        eventually("a cluster to register", first).await.0.cluster_id
    }

    /// Waits for `count` heartbeats more than there are, and returns the last.
    ///
    /// # Panics
    /// When the patience of the tests runs out.
    pub async fn wait_heartbeats(&self, id: &str, count: u64) -> Heartbeat {
        let count_of = || self.cluster(id).map_or(0, |cluster| cluster.heartbeats);
        let wanted = count_of() + count;
        let there = async || {
            if count_of() >= wanted {
                self.heartbeats(id).pop()
            } else {
                None
            }
        };
        eventually(&format!("{count} heartbeats of {id}"), there).await.0
    }

    /// Waits for an open link.
    ///
    /// # Panics
    /// When the patience of the tests runs out.
    pub async fn wait_link(&self, id: &str) -> Arc<ProxyLink> {
        eventually(&format!("a link to {id}"), async || self.state.links.newest(id))
            .await
            .0
    }

    /// Waits until chisel listens for a forward.
    ///
    /// # Panics
    /// When the patience of the tests runs out.
    pub async fn wait_forward(&self, id: &str, name: &str) -> SocketAddr {
        let there = async || {
            let address = self.state.forward_address(id, name)?;
            ports::listening(address.port()).then_some(address)
        };
        eventually(&format!("chisel to listen for {name} of {id}"), there)
            .await
            .0
    }
}
