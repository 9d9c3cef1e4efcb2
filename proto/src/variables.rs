//! Which variables belong to which process: one environment may serve all three, so each leaves alone what the other
//! two read and refuses the rest as a slip of the keyboard.

/// The names of one process.
#[derive(Clone, Copy, Debug)]
pub struct Variables {
    names: &'static [&'static str],
    /// Beginnings of names, for sections of a file that are variables too.
    families: &'static [&'static str],
}

impl Variables {
    /// Whether the variable belongs to the process.
    pub fn know(&self, name: &str) -> bool {
        self.names.contains(&name) || self.families.iter().any(|family| name.starts_with(family))
    }
}

/// What agent-core reads, now or in earlier generations of the agent.
pub const AGENT_CORE: Variables = Variables {
    names: &[
        "PIPEOPS_ALLOW_INSECURE",
        "PIPEOPS_API_URL",
        "PIPEOPS_AUTO_INSTALL_COMPONENTS",
        "PIPEOPS_CLUSTER_NAME",
        "PIPEOPS_CONFIG",
        "PIPEOPS_CONTROL_PLANE_URL",
        "PIPEOPS_DISABLE_WEBSOCKET",
        "PIPEOPS_EDGE_PROXY_DIR",
        "PIPEOPS_EDGE_TUNNEL_DIR",
        "PIPEOPS_ENABLE_SSE",
        "PIPEOPS_ENABLE_STATE_PERSISTENCE",
        "PIPEOPS_ENABLE_WEBSOCKET",
        "PIPEOPS_ENCRYPTION",
        "PIPEOPS_FEATURES",
        "PIPEOPS_K8S_CERT_DATA",
        "PIPEOPS_K8S_SERVICE_TOKEN",
        "PIPEOPS_LEASE_NAME",
        "PIPEOPS_LOG_MODE",
        "PIPEOPS_NODE_NAME",
        "PIPEOPS_PORT",
        "PIPEOPS_RECONNECT_BACKOFF",
        "PIPEOPS_RECONNECT_ENABLED",
        "PIPEOPS_RECONNECT_INTERVAL",
        "PIPEOPS_RECONNECT_MAX_ATTEMPTS",
        "PIPEOPS_REPORT_TIMEOUT",
        "PIPEOPS_TELEMETRY",
        "PIPEOPS_TERMINATION_LOG",
        "PIPEOPS_TIMEOUT",
        "PIPEOPS_TLS_CA_FILE",
        "PIPEOPS_TLS_CERT_FILE",
        "PIPEOPS_TLS_ENABLED",
        "PIPEOPS_TLS_INSECURE_SKIP_VERIFY",
        "PIPEOPS_TLS_KEY_FILE",
        "PIPEOPS_TOKEN",
        "PIPEOPS_TOKEN_FILE",
        "PIPEOPS_TRUTHFUL_READINESS_PROBE",
        "PIPEOPS_TUNNELS",
        "PIPEOPS_UPGRADE",
        "PIPEOPS_WS_PROTOCOL",
    ],
    families: &[
        "PIPEOPS_AGENT_",
        "PIPEOPS_FEATURES_",
        "PIPEOPS_FRP",
        "PIPEOPS_GATEWAY",
        "PIPEOPS_HEARTBEAT_INTERVAL",
        "PIPEOPS_KUBERNETES_",
        "PIPEOPS_LOGGING_",
        "PIPEOPS_PIPEOPS_",
        "PIPEOPS_POD_",
        "PIPEOPS_PROCESS_",
        "PIPEOPS_PROXY_",
        "PIPEOPS_REALTIME_",
        "PIPEOPS_REGISTRATION_",
        "PIPEOPS_RUNNER_",
        "PIPEOPS_SERVER_",
        "PIPEOPS_STATE_",
        "PIPEOPS_TELEMETRY_",
        "PIPEOPS_TIMEOUTS",
        "PIPEOPS_TUNNEL_",
        "PIPEOPS_TUNNELS_",
    ],
};

/// What both siblings read.
pub const SIBLINGS: Variables = Variables {
    names: &[
        "PIPEOPS_ADDRESSES_FILE",
        "PIPEOPS_CORE_ADDRESS",
        "PIPEOPS_DRAIN_TIMEOUT",
        "PIPEOPS_EDGE_DIR",
        "PIPEOPS_GRPC_LISTEN",
        "PIPEOPS_HTTP_LISTEN",
        "PIPEOPS_LOG_FORMAT",
        "PIPEOPS_LOG_LEVEL",
        "PIPEOPS_PRIVATE_DIR",
    ],
    families: &[],
};

/// What tunnel-sidecar reads alone.
pub const TUNNEL_SIDECAR: Variables = Variables {
    names: &["PIPEOPS_CLIENT_CERT_FILE", "PIPEOPS_CLIENT_KEY_FILE"],
    families: &["PIPEOPS_TARGET_"],
};

/// What k8s-proxy reads alone.
pub const K8S_PROXY: Variables = Variables {
    names: &[
        "PIPEOPS_AUDIT",
        "PIPEOPS_DOOR_HTTP",
        "PIPEOPS_DOOR_HTTPS",
        "PIPEOPS_KUBECONFIG",
        "PIPEOPS_KUBE_API",
        "PIPEOPS_KUBE_CA_FILE",
        "PIPEOPS_KUBE_INSECURE",
        "PIPEOPS_KUBE_TOKEN_FILE",
        "PIPEOPS_MAX_STREAMS",
        "PIPEOPS_MAX_WAITING_BYTES",
        "PIPEOPS_POLICY_FILE",
        "PIPEOPS_RESPONSE_TIMEOUT",
        "PIPEOPS_SERVICE_ACCOUNT_DIR",
    ],
    families: &[],
};

/// What builds and test harnesses set around all of them.
pub const SURROUNDINGS: Variables = Variables {
    names: &["PIPEOPS_GIT_COMMIT"],
    families: &["PIPEOPS_PEERS_", "PIPEOPS_TEST_"],
};
