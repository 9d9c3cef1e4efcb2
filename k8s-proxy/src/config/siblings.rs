//! Variables that belong to the other containers: one ConfigMap may serve all three.

/// Exact names that agent-core and tunnel-sidecar read, or that older versions of the agent did.
const NAMES: [&str; 32] = [
    "PIPEOPS_ALLOW_INSECURE",
    "PIPEOPS_API_URL",
    "PIPEOPS_AUTO_INSTALL_COMPONENTS",
    "PIPEOPS_CLIENT_CERT_FILE",
    "PIPEOPS_CLIENT_KEY_FILE",
    "PIPEOPS_CLUSTER_NAME",
    "PIPEOPS_CONFIG",
    "PIPEOPS_CONTROL_PLANE_URL",
    "PIPEOPS_DISABLE_WEBSOCKET",
    "PIPEOPS_EDGE_PROXY_DIR",
    "PIPEOPS_EDGE_TUNNEL_DIR",
    "PIPEOPS_ENABLE_SSE",
    "PIPEOPS_ENABLE_STATE_PERSISTENCE",
    "PIPEOPS_ENABLE_WEBSOCKET",
    "PIPEOPS_GIT_COMMIT",
    "PIPEOPS_HEARTBEAT_INTERVAL",
    "PIPEOPS_K8S_CERT_DATA",
    "PIPEOPS_K8S_SERVICE_TOKEN",
    "PIPEOPS_LOG_MODE",
    "PIPEOPS_NODE_NAME",
    "PIPEOPS_POD_UID",
    "PIPEOPS_PORT",
    "PIPEOPS_REPORT_TIMEOUT",
    "PIPEOPS_STATE_BACKEND",
    "PIPEOPS_STATE_CONFIGMAP_NAME",
    "PIPEOPS_STATE_FILE",
    "PIPEOPS_TERMINATION_LOG",
    "PIPEOPS_TIMEOUT",
    "PIPEOPS_TOKEN",
    "PIPEOPS_TOKEN_FILE",
    "PIPEOPS_TUNNEL_POLL_INTERVAL",
    "PIPEOPS_WS_PROTOCOL",
];

/// Families of names: the sections of agent-core's file as variables, the targets of tunnel-sidecar, and what the
/// test harness sets.
const FAMILIES: [&str; 15] = [
    "PIPEOPS_AGENT_",
    "PIPEOPS_FRP_",
    "PIPEOPS_GATEWAY_",
    "PIPEOPS_HEARTBEAT_INTERVAL_",
    "PIPEOPS_KUBERNETES_",
    "PIPEOPS_LOGGING_",
    "PIPEOPS_PEERS_",
    "PIPEOPS_PIPEOPS_",
    "PIPEOPS_PROXY_",
    "PIPEOPS_REGISTRATION_",
    "PIPEOPS_RUNNER_",
    "PIPEOPS_TARGET_",
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
    name.ends_with("_SERVICE_HOST") || port || value.starts_with("tcp://") || value.starts_with("udp://")
}
