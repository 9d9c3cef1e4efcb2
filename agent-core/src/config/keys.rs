//! Every name that the configuration knows: paths in the file, variables, flags, and what each means here.
//!
//! One table serves the file, the environment, the command line, the nearest-name hint and `check-config`. A key
//! that other documents of this agent describe and that has no meaning here is accepted with a reason.

/// What becomes of a key that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is read.
    Read,
    /// It is accepted and has no effect, because …
    Ignored(&'static str),
}

/// The shape of the value in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Text, number or boolean.
    Scalar,
    /// A switch: its flag needs no value.
    Switch,
    /// A sequence.
    List,
    /// A mapping with free keys.
    Map,
    /// A block with any content below it; only for ignored keys.
    Block,
}

/// One known name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Dotted path in the file; also its name in every message.
    pub(crate) path: &'static str,
    /// Variables beside `PIPEOPS_<PATH>`, strongest first.
    pub(crate) variables: &'static [&'static str],
    /// Command-line flag, without dashes.
    pub(crate) flag: Option<&'static str>,
    /// Never printed.
    pub(crate) secret: bool,
    pub(crate) shape: Shape,
    pub(crate) meaning: Meaning,
}

impl Key {
    const fn new(path: &'static str) -> Self {
        Self {
            path,
            variables: &[],
            flag: None,
            secret: false,
            shape: Shape::Scalar,
            meaning: Meaning::Read,
        }
    }
    const fn env(mut self, variables: &'static [&'static str]) -> Self {
        self.variables = variables;
        self
    }
    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }
    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }
    const fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }
    const fn ignored(mut self, reason: &'static str) -> Self {
        self.meaning = Meaning::Ignored(reason);
        self
    }

    /// The variable that every key has: `PIPEOPS_` and the path in upper case.
    pub(crate) fn own_variable(&self) -> String {
        format!("PIPEOPS_{}", upper(self.path))
    }

    /// Every variable that sets this key, strongest first.
    pub(crate) fn all_variables(&self) -> Vec<String> {
        let mut names: Vec<String> = self.variables.iter().map(|name| (*name).to_owned()).collect();
        for name in [Some(self.own_variable()), self.bare_variable()]
            .into_iter()
            .flatten()
        {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Without the prefix, for the blocks whose names the Go agent read that way. Names such as `AGENT_NAME` are
    /// left out: build systems set them for purposes of their own.
    fn bare_variable(&self) -> Option<String> {
        ["pipeops.", "timeouts.", "tunnel.", "agent.port", "agent.debug"]
            .iter()
            .any(|start| self.path.starts_with(start))
            .then(|| upper(self.path))
    }
}

fn upper(path: &str) -> String {
    path.replace('.', "_").to_uppercase()
}

/// Whether a variable is one of the two siblings; one environment may serve all three processes.
pub(crate) fn is_of_sibling(name: &str) -> bool {
    use proto::variables::{K8S_PROXY, SIBLINGS, SURROUNDINGS, TUNNEL_SIDECAR};
    [SIBLINGS, TUNNEL_SIDECAR, K8S_PROXY, SURROUNDINGS]
        .iter()
        .any(|others| others.know(name))
}

const GATEWAY: &str = "this agent opens no ingress gateway of its own";
const MONITORING: &str = "this agent installs no monitoring stack";
const INGRESS: &str = "ingress routes are not synchronised by this agent";
const FOREVER: &str = "registration and heartbeats are retried for ever with backoff";
const FRP: &str = "forwards are carried by chisel, which takes its server from the control plane";

/// The table.
pub(crate) const KEYS: &[Key] = &[
    // Who this agent is.
    Key::new("agent.id").flag("agent-id"),
    Key::new("agent.name"),
    Key::new("agent.cluster_name")
        .env(&["PIPEOPS_CLUSTER_NAME", "CLUSTER_NAME"])
        .flag("cluster-name"),
    Key::new("agent.labels").shape(Shape::Map),
    Key::new("agent.version"),
    Key::new("agent.port").env(&["PIPEOPS_PORT", "AGENT_PORT"]),
    Key::new("agent.debug").shape(Shape::Switch),
    Key::new("agent.heartbeat_interval").env(&["PIPEOPS_HEARTBEAT_INTERVAL"]),
    Key::new("agent.heartbeat_interval_connected").env(&["PIPEOPS_HEARTBEAT_INTERVAL_CONNECTED"]),
    Key::new("agent.heartbeat_interval_reconnecting")
        .env(&["PIPEOPS_HEARTBEAT_INTERVAL_RECONNECTING"])
        .ignored("the pace after a missed heartbeat is the ordinary one, jittered"),
    Key::new("agent.heartbeat_interval_disconnected")
        .env(&["PIPEOPS_HEARTBEAT_INTERVAL_DISCONNECTED"])
        .ignored("the pace after a missed heartbeat is the ordinary one, jittered"),
    Key::new("agent.poll_interval").ignored("the tunnel is polled every tunnel.poll_interval"),
    Key::new("agent.truthful_readiness_probe")
        .env(&["PIPEOPS_TRUTHFUL_READINESS_PROBE"])
        .ignored("/ready always tells the truth"),
    Key::new("agent.grafana_sub_path")
        .env(&["PIPEOPS_AGENT_GRAFANA_SUB_PATH"])
        .ignored(MONITORING),
    Key::new("agent.enable_ingress_sync")
        .env(&["ENABLE_INGRESS_SYNC"])
        .ignored(INGRESS),
    Key::new("agent.gateway_route_refresh_interval")
        .env(&["GATEWAY_ROUTE_REFRESH_INTERVAL"])
        .ignored(INGRESS),
    Key::new("agent.compatibility")
        .shape(Shape::Block)
        .ignored(MONITORING),
    Key::new("agent.auto_install_components")
        .env(&["PIPEOPS_AUTO_INSTALL_COMPONENTS"])
        .ignored(MONITORING),
    // The control plane.
    Key::new("pipeops.api_url")
        .env(&["PIPEOPS_API_URL", "PIPEOPS_CONTROL_PLANE_URL"])
        .flag("pipeops-url"),
    Key::new("agent.api_url"),
    Key::new("pipeops.token")
        .env(&["PIPEOPS_TOKEN"])
        .flag("token")
        .secret(),
    Key::new("agent.token")
        .env(&["PIPEOPS_AGENT_TOKEN", "AGENT_TOKEN"])
        .secret(),
    Key::new("pipeops.token_file")
        .env(&["PIPEOPS_TOKEN_FILE"])
        .flag("token-file"),
    Key::new("pipeops.timeout"),
    Key::new("pipeops.allow_insecure")
        .env(&["PIPEOPS_ALLOW_INSECURE"])
        .shape(Shape::Switch),
    Key::new("pipeops.tls.enabled").ignored("the scheme of the URL decides, and http is refused by default"),
    Key::new("pipeops.tls.insecure_skip_verify").shape(Shape::Switch),
    Key::new("pipeops.tls.cert_file").ignored("the agent presents its token, no client certificate"),
    Key::new("pipeops.tls.key_file").ignored("the agent presents its token, no client certificate"),
    Key::new("pipeops.tls.ca_file"),
    Key::new("pipeops.reconnect.enabled").ignored(FOREVER),
    Key::new("pipeops.reconnect.max_attempts").ignored(FOREVER),
    Key::new("pipeops.reconnect.interval").ignored("the pause follows registration.backoff_min and _max"),
    Key::new("pipeops.reconnect.backoff").ignored("the pause follows registration.backoff_min and _max"),
    Key::new("pipeops.disable_websocket")
        .env(&["PIPEOPS_DISABLE_WEBSOCKET"])
        .ignored("the control plane is spoken to over HTTP in any case"),
    Key::new("pipeops.ws_protocol")
        .env(&["PIPEOPS_WS_PROTOCOL"])
        .ignored("the control plane is spoken to over HTTP in any case"),
    Key::new("registration.backoff_min").env(&["PIPEOPS_REGISTRATION_BACKOFF_MIN"]),
    Key::new("registration.backoff_max").env(&["PIPEOPS_REGISTRATION_BACKOFF_MAX"]),
    Key::new("registration.enabled").ignored("an agent without registration has no control plane"),
    Key::new("registration.retry_interval").ignored(FOREVER),
    Key::new("registration.max_attempts").ignored(FOREVER),
    Key::new("registration.deduplicate").ignored("the stored identity is always used"),
    // State.
    Key::new("state.backend"),
    Key::new("state.secret_name"),
    Key::new("state.configmap_name"),
    Key::new("state.namespace"),
    Key::new("state.file"),
    Key::new("state.enable_persistence")
        .env(&["PIPEOPS_ENABLE_STATE_PERSISTENCE"])
        .ignored("an identity that is not kept would register a new cluster at each start"),
    Key::new("state.enabled")
        .ignored("an identity that is not kept would register a new cluster at each start"),
    // Kubernetes.
    Key::new("kubernetes.in_cluster")
        .flag("in-cluster")
        .shape(Shape::Switch),
    Key::new("kubernetes.namespace"),
    Key::new("kubernetes.door").flag("kubernetes-door"),
    Key::new("kubernetes.service_token")
        .env(&["PIPEOPS_K8S_SERVICE_TOKEN"])
        .secret(),
    Key::new("kubernetes.service_token_file"),
    Key::new("kubernetes.ca_cert_data").env(&["PIPEOPS_K8S_CERT_DATA"]),
    Key::new("kubernetes.kubeconfig")
        .flag("kubeconfig")
        .ignored("only k8s-proxy holds a Kubernetes credential: give it --kubeconfig"),
    Key::new("pod.name").env(&["PIPEOPS_POD_NAME", "POD_NAME"]),
    Key::new("pod.namespace").env(&["PIPEOPS_POD_NAMESPACE", "POD_NAMESPACE"]),
    Key::new("pod.uid").env(&["PIPEOPS_POD_UID", "POD_UID"]),
    Key::new("pod.node_name").env(&["PIPEOPS_NODE_NAME"]),
    Key::new("pod.host_ip").env(&["HOST_IP"]),
    // The tunnel that tunnel-sidecar holds.
    Key::new("tunnel.enabled").shape(Shape::Switch),
    Key::new("tunnel.inactivity_timeout"),
    Key::new("tunnel.poll_interval"),
    Key::new("tunnel.forwards").shape(Shape::List),
    Key::new("tunnel.server"),
    Key::new("tunnel.credentials").secret(),
    Key::new("tunnel.credentials_file"),
    Key::new("tunnel.fingerprint"),
    Key::new("tunnel.ca_file"),
    Key::new("tunnel.allow_insecure").shape(Shape::Switch),
    Key::new("tunnel.allowed_targets").shape(Shape::List),
    Key::new("tunnel.raw_kubernetes_api").shape(Shape::Switch),
    Key::new("tunnel.kubelet_metrics").shape(Shape::Switch),
    Key::new("tunnel.remotes").shape(Shape::List),
    Key::new("tunnel.socks_targets").shape(Shape::List),
    Key::new("tunnel.hostname"),
    Key::new("tunnel.tls_server_name"),
    Key::new("tunnel.tls_skip_verify_i_know_it_is_insecure").shape(Shape::Switch),
    // A proxy's URL and a header's value may hold a password.
    Key::new("tunnel.proxy").secret(),
    Key::new("tunnel.proxy_file"),
    Key::new("tunnel.headers").shape(Shape::Map).secret(),
    Key::new("tunnel.headers_file"),
    Key::new("tunnel.ping_interval"),
    Key::new("tunnel.ping_timeout"),
    Key::new("tunnel.sessions"),
    // What k8s-proxy is told.
    Key::new("proxy.enabled").shape(Shape::Switch),
    Key::new("proxy.control_plane_mode"),
    // Marked secret because an owner may write a token there by mistake.
    Key::new("proxy.door_tokens").shape(Shape::List).secret(),
    Key::new("proxy.dial_url"),
    Key::new("proxy.dial_token_file"),
    Key::new("proxy.dial_ca_file"),
    Key::new("proxy.dial_mode"),
    Key::new("proxy.dial_protocol"),
    Key::new("proxy.allow_insecure").shape(Shape::Switch),
    Key::new("proxy.limits.streams"),
    Key::new("proxy.limits.in_flight"),
    Key::new("proxy.limits.requests_per_second"),
    Key::new("proxy.limits.bytes_per_second"),
    Key::new("proxy.lease").env(&["PIPEOPS_LEASE_NAME"]),
    // Local server and page.
    Key::new("server.enable_websocket")
        .env(&["PIPEOPS_ENABLE_WEBSOCKET"])
        .shape(Shape::Switch),
    Key::new("server.enable_sse")
        .env(&["PIPEOPS_ENABLE_SSE"])
        .shape(Shape::Switch),
    Key::new("server.enable_dashboard").shape(Shape::Switch),
    Key::new("server.allowed_hosts").shape(Shape::List),
    Key::new("server.cors_enabled").ignored("pages of other origins are never allowed to call the agent"),
    Key::new("realtime.websocket_port").ignored("/ws is served on the port of the HTTP server"),
    Key::new("realtime.sse_heartbeat"),
    Key::new("realtime.connection_timeout"),
    Key::new("realtime.max_connections"),
    Key::new("features")
        .shape(Shape::Block)
        .ignored("what the agent can do is fixed, and shown truthfully"),
    // Logs and the process.
    Key::new("logging.level")
        .env(&["PIPEOPS_LOG_LEVEL", "LOG_LEVEL"])
        .flag("log-level"),
    Key::new("logging.format")
        .env(&["PIPEOPS_LOG_FORMAT"])
        .flag("log-format"),
    Key::new("logging.output").ignored("logs go to standard error, as containers do it"),
    Key::new("telemetry.otlp_endpoint")
        .env(&["OTEL_EXPORTER_OTLP_ENDPOINT"])
        .flag("otlp-endpoint"),
    Key::new("process.http_listen")
        .env(&["PIPEOPS_HTTP_LISTEN"])
        .flag("http-listen"),
    Key::new("process.grpc_listen")
        .env(&["PIPEOPS_GRPC_LISTEN"])
        .flag("grpc-listen"),
    Key::new("process.tunnel_grpc")
        .env(&["PIPEOPS_TUNNEL_GRPC"])
        .flag("tunnel-grpc"),
    Key::new("process.proxy_grpc")
        .env(&["PIPEOPS_PROXY_GRPC"])
        .flag("proxy-grpc"),
    Key::new("process.private_dir")
        .env(&["PIPEOPS_PRIVATE_DIR"])
        .flag("private-dir"),
    Key::new("process.edge_tunnel_dir")
        .env(&["PIPEOPS_EDGE_TUNNEL_DIR"])
        .flag("edge-tunnel-dir"),
    Key::new("process.edge_proxy_dir")
        .env(&["PIPEOPS_EDGE_PROXY_DIR"])
        .flag("edge-proxy-dir"),
    Key::new("process.drain_timeout")
        .env(&["PIPEOPS_DRAIN_TIMEOUT"])
        .flag("drain-timeout"),
    Key::new("process.addresses_file")
        .env(&["PIPEOPS_ADDRESSES_FILE"])
        .flag("addresses-file"),
    Key::new("process.termination_log")
        .env(&["PIPEOPS_TERMINATION_LOG"])
        .flag("termination-log"),
    Key::new("process.report_timeout")
        .env(&["PIPEOPS_REPORT_TIMEOUT"])
        .flag("report-timeout"),
    // Time limits of the Go agent.
    Key::new("timeouts.registration"),
    Key::new("timeouts.heartbeat"),
    Key::new("timeouts.shutdown"),
    Key::new("timeouts")
        .shape(Shape::Block)
        .ignored("this agent has no such step, or its own limit for it"),
    // Blocks of other generations.
    Key::new("frp").shape(Shape::Block).ignored(FRP),
    Key::new("tunnels")
        .shape(Shape::Block)
        .ignored("Gateway API listeners are not published by this agent"),
    Key::new("gateway").shape(Shape::Block).ignored(GATEWAY),
    Key::new("upgrade")
        .shape(Shape::Block)
        .ignored("the agent is upgraded with its chart"),
    Key::new("encryption")
        .shape(Shape::Block)
        .ignored("secrets at rest are encrypted by the cluster itself"),
    Key::new("gateway.enabled")
        .flag("gateway-enabled")
        .shape(Shape::Switch)
        .ignored(GATEWAY),
    Key::new("gateway.namespace")
        .flag("gateway-namespace")
        .ignored(GATEWAY),
    Key::new("gateway.release_name")
        .flag("gateway-release-name")
        .ignored(GATEWAY),
    Key::new("gateway.environment.mode")
        .flag("gateway-env-mode")
        .ignored(GATEWAY),
    Key::new("gateway.environment.vm_ip")
        .flag("gateway-env-vm-ip")
        .ignored(GATEWAY),
    Key::new("gateway.gateway_api.enabled")
        .flag("gateway-gwapi-enabled")
        .shape(Shape::Switch)
        .ignored(GATEWAY),
    Key::new("gateway.gateway_api.gateway_class")
        .flag("gateway-gwapi-gateway-class")
        .ignored(GATEWAY),
    Key::new("gateway.gateway_api.listeners")
        .flag("gateway-gwapi-listeners-json")
        .ignored(GATEWAY),
    Key::new("gateway.gateway_api.tcp_routes")
        .flag("gateway-gwapi-tcp-routes-json")
        .ignored(GATEWAY),
    Key::new("gateway.gateway_api.udp_routes")
        .flag("gateway-gwapi-udp-routes-json")
        .ignored(GATEWAY),
    Key::new("gateway.istio.enabled")
        .flag("gateway-istio-enabled")
        .shape(Shape::Switch)
        .ignored(GATEWAY),
    Key::new("gateway.istio.service.create")
        .flag("gateway-istio-service-create")
        .shape(Shape::Switch)
        .ignored(GATEWAY),
    Key::new("gateway.istio.service.namespace")
        .flag("gateway-istio-service-namespace")
        .ignored(GATEWAY),
    Key::new("gateway.istio.servers")
        .flag("gateway-istio-servers-json")
        .ignored(GATEWAY),
    Key::new("gateway.istio.tcp_routes")
        .flag("gateway-istio-tcp-routes-json")
        .ignored(GATEWAY),
    Key::new("gateway.istio.tls_routes")
        .flag("gateway-istio-tls-routes-json")
        .ignored(GATEWAY),
];

/// The key of a path in the file: the exact one, else the block it lies in.
pub(crate) fn by_path(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path).or_else(|| {
        KEYS.iter().find(|key| {
            key.shape == Shape::Block
                && path
                    .strip_prefix(key.path)
                    .is_some_and(|rest| rest.starts_with('.'))
        })
    })
}

/// Whether some key lies below this path, so that a mapping there is a block and not a value.
pub(crate) fn is_block(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// The key that a variable sets, and whether it lies in an ignored block.
pub(crate) fn by_variable(name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.all_variables().iter().any(|known| known == name))
        .or_else(|| {
            KEYS.iter().find(|key| {
                key.shape == Shape::Block && name.starts_with(&format!("{}_", key.own_variable()))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut paths: Vec<_> = KEYS.iter().map(|key| key.path).collect();
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
        let mut variables: Vec<_> = KEYS.iter().flat_map(Key::all_variables).collect();
        variables.sort_unstable();
        for pair in variables.windows(2) {
            assert_ne!(pair[0], pair[1], "two keys share a variable");
        }
    }

    #[test]
    fn siblings_leave_our_variables_alone() {
        for name in KEYS.iter().flat_map(Key::all_variables) {
            let shared = proto::variables::SIBLINGS.know(&name) || !name.starts_with("PIPEOPS_");
            assert!(
                shared || proto::variables::AGENT_CORE.know(&name),
                "{name} is missing in proto::variables"
            );
        }
    }

    #[test]
    fn the_more_exact_key_wins_over_its_block() {
        assert_eq!(
            by_path("timeouts.registration").unwrap().path,
            "timeouts.registration"
        );
        assert_eq!(by_path("timeouts.websocket_ping").unwrap().path, "timeouts");
        assert!(by_path("timeoutsx").is_none());
        assert_eq!(by_variable("PIPEOPS_FRP_SERVER_ADDR").unwrap().path, "frp");
        assert_eq!(
            by_variable("PIPEOPS_CLUSTER_NAME").unwrap().path,
            "agent.cluster_name"
        );
    }
}
