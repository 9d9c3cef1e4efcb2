//! Variables that belong to the other containers: one ConfigMap may serve all three.

/// Exact names that agent-core and k8s-proxy read, now or in older versions of the agent.
const NAMES: [&str; 46] = [
    "PIPEOPS_AGENT_CLUSTER_NAME",
    "PIPEOPS_AGENT_ID",
    "PIPEOPS_AGENT_NAME",
    "PIPEOPS_AGENT_TOKEN",
    "PIPEOPS_API_URL",
    "PIPEOPS_AUDIT",
    "PIPEOPS_AUTO_INSTALL_COMPONENTS",
    "PIPEOPS_CLUSTER_NAME",
    "PIPEOPS_CONFIG",
    "PIPEOPS_CONTROL_PLANE_URL",
    "PIPEOPS_DISABLE_WEBSOCKET",
    "PIPEOPS_DOOR_HTTP",
    "PIPEOPS_DOOR_HTTPS",
    "PIPEOPS_EDGE_PROXY_DIR",
    "PIPEOPS_EDGE_TUNNEL_DIR",
    "PIPEOPS_ENABLE_SSE",
    "PIPEOPS_ENABLE_STATE_PERSISTENCE",
    "PIPEOPS_ENABLE_WEBSOCKET",
    "PIPEOPS_GIT_COMMIT",
    "PIPEOPS_HEARTBEAT_INTERVAL",
    "PIPEOPS_KUBECONFIG",
    "PIPEOPS_KUBE_API",
    "PIPEOPS_KUBE_CA_FILE",
    "PIPEOPS_KUBE_TOKEN_FILE",
    "PIPEOPS_LOG_MODE",
    "PIPEOPS_MAX_WAITING_BYTES",
    "PIPEOPS_NODE_NAME",
    "PIPEOPS_POD_NAME",
    "PIPEOPS_POD_NAMESPACE",
    "PIPEOPS_POD_UID",
    "PIPEOPS_POLICY_FILE",
    "PIPEOPS_PORT",
    "PIPEOPS_REGISTRATION_BACKOFF_MAX",
    "PIPEOPS_REGISTRATION_BACKOFF_MIN",
    "PIPEOPS_REPORT_TIMEOUT",
    "PIPEOPS_SERVICE_ACCOUNT_DIR",
    "PIPEOPS_STATE_BACKEND",
    "PIPEOPS_STATE_CONFIGMAP_NAME",
    "PIPEOPS_STATE_FILE",
    "PIPEOPS_STATE_NAMESPACE",
    "PIPEOPS_STATE_SECRET_NAME",
    "PIPEOPS_TIMEOUT",
    "PIPEOPS_TOKEN",
    "PIPEOPS_TOKEN_FILE",
    "PIPEOPS_TUNNEL_POLL_INTERVAL",
    "PIPEOPS_WS_PROTOCOL",
];

/// Families of names: the sections of agent-core's file as variables, and what the test harness sets.
const FAMILIES: [&str; 13] = [
    "PIPEOPS_AGENT_",
    "PIPEOPS_FRP_",
    "PIPEOPS_GATEWAY_",
    "PIPEOPS_KUBERNETES_",
    "PIPEOPS_LOGGING_",
    "PIPEOPS_PEERS_",
    "PIPEOPS_PIPEOPS_",
    "PIPEOPS_PROXY_",
    "PIPEOPS_RUNNER_",
    "PIPEOPS_STATE_",
    "PIPEOPS_TEST_",
    "PIPEOPS_TRUTHFUL",
    "PIPEOPS_TUNNEL_",
];

/// Whether another container reads the variable.
pub(super) fn knows(name: &str) -> bool {
    NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Whether the kubelet wrote it for a Service whose name begins with `pipeops`.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    let port = name
        .split_once("_PORT")
        .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('_'));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || port
        || value.starts_with("tcp://")
        || value.starts_with("udp://")
}
