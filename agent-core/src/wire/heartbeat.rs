//! Heartbeats: `POST /api/v1/clusters/agent/{cluster_uuid}/heartbeat`.

use serde::Serialize;

/// Path of the heartbeats of one cluster.
pub(crate) fn path(cluster_uuid: &str) -> String {
    format!("/api/v1/clusters/agent/{cluster_uuid}/heartbeat")
}

/// The body. What is not known is absent or null, never a made-up zero.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Heartbeat {
    pub(crate) cluster_id: String,
    pub(crate) agent_id: String,
    /// `active`, and `disconnected` in the last one of a clean stop.
    pub(crate) status: &'static str,
    /// `connected`, `connecting` or `disconnected`.
    pub(crate) tunnel_status: &'static str,
    pub(crate) timestamp: String,
    pub(crate) metadata: Metadata,
    pub(crate) agent: AgentState,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Metadata {
    pub(crate) agent_version: String,
    pub(crate) k8s_version: Option<String>,
    pub(crate) k8s_nodes: Option<u64>,
    pub(crate) k8s_pods: Option<u64>,
    /// Open report streams, watches and forwards, as the siblings count them.
    pub(crate) watches_open: Option<u32>,
    pub(crate) forwards_active: Option<u32>,
}

/// Our extension: the three containers as agent-core sees them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AgentState {
    pub(crate) containers: Vec<ContainerState>,
    pub(crate) proxy: Option<ProxyState>,
    pub(crate) draining: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) known: bool,
    pub(crate) unknown_since: Option<String>,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProxyState {
    pub(crate) certificate_sha256: String,
    pub(crate) read_only: bool,
}
