use std::{collections::BTreeMap, io::Write as _};

use proptest::prelude::*;

use super::{read::parse_duration, *};

fn load_text(yaml: &str, env: &[(&str, &str)]) -> Result<Config, Problems> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    load(
        &BTreeMap::new(),
        Some(file.path()),
        &Env::from_pairs(env.iter().copied()),
    )
}

fn load_env(env: &[(&str, &str)]) -> Result<Config, Problems> {
    load_text("", env)
}

fn lines(result: Result<Config, Problems>) -> Vec<String> {
    result.unwrap_err().iter().map(ToString::to_string).collect()
}

const SEED_000: &str = r#"
agent:
  id: "agent-prod-east-001"
  name: "Production East Agent"
  cluster_name: "production-east"
  version: "v2.0.0"
  port: 8080
  labels:
    environment: "production"
    region: "us-east-1"
pipeops:
  api_url: "https://api.pipeops.io"
  token: "your-token-here"
server:
  enable_websocket: true
  enable_sse: true
  enable_dashboard: true
  cors_enabled: true
realtime:
  websocket_port: 8080
  sse_heartbeat: "30s"
  connection_timeout: "5m"
  max_connections: 100
kubernetes:
  in_cluster: true
  namespace: "pipeops-system"
  kubeconfig: ""
logging:
  level: "info"
  format: "json"
features:
  health_monitoring: true
  runtime_metrics: true
  feature_detection: true
  connectivity_testing: true
"#;

const SEED_000_TUNNEL: &str = r#"
tunnel:
  enabled: true
  forwards:
    - name: "kubernetes-api"
      local_addr: "localhost:6443"
      remote_port: 0  # Allocated by control plane
    - name: "kubelet-metrics"
      local_addr: "localhost:10250"
      remote_port: 0
    - name: "agent-http"
      local_addr: "localhost:8080"
      remote_port: 0
"#;

const SEED_001: &str = r#"
agent:
  id: "prod-k3s-agent-01"
  name: "Production K3s Agent"
  cluster_name: "production-k3s"
  poll_interval: "30s"
  port: 8080
  debug: false
  labels:
    environment: "production"
    region: "us-west-2"
pipeops:
  api_url: "https://api.pipeops.io"
  token: "your-secure-token"
  timeout: "30s"
  tls:
    enabled: true
    insecure_skip_verify: false
  reconnect:
    enabled: true
    max_attempts: 10
    interval: "5s"
kubernetes:
  kubeconfig: "/home/user/.kube/config"
  in_cluster: false
  namespace: "pipeops-system"
logging:
  level: "info"
  format: "json"
  output: "stdout"
"#;

const SEED_001_SHORT: &str = r#"
agent:
  cluster_name: "my-cluster"
pipeops:
  api_url: "https://api.pipeops.io"
  token: "your-token"
"#;

const SEED_002: &str = r#"
agent:
  id: "agent-001"
  name: "production-k8s-cluster"
  cluster_name: "prod-cluster"
  token: "your-agent-token"
  api_url: "https://api.pipeops.io"
  debug: false
frp:
  server_addr: "frp.pipeops.io"
  server_port: 7000
  token: "your-frp-token"
  admin_port: 7400
kubernetes:
  kubeconfig: ""  # Optional: path to kubeconfig
  in_cluster: true  # Use in-cluster authentication
"#;

const SEED_003: &str = r#"
agent:
  id: ""  # Auto-generated from hostname if not specified
  name: "pipeops-agent"
  cluster_name: "production-cluster"
  grafana_sub_path: true  # Set to false to skip PipeOps proxy subpath configuration
  labels:
    environment: "production"
    region: "us-east-1"
pipeops:
  api_url: "https://api.pipeops.sh"
  token: "your-cluster-token-here"
  timeout: "30s"
  reconnect:
    enabled: true
    max_attempts: 10
    interval: "5s"
    backoff: "5s"
  tls:
    enabled: true
    insecure_skip_verify: false
tunnel:
  enabled: true
  inactivity_timeout: "5m"
  forwards:
    - name: "kubernetes-api"
      local_addr: "localhost:6443"
      remote_port: 0  # 0 = dynamically assigned by control plane
    - name: "kubelet-metrics"
      local_addr: "localhost:10250"
      remote_port: 0
    - name: "agent-http"
      local_addr: "localhost:8080"
      remote_port: 0
kubernetes:
  in_cluster: true
  namespace: "pipeops-system"
  kubeconfig: ""
logging:
  level: "info"
  format: "json"
  output: "stdout"
"#;

const SEED_003_NO_TUNNEL: &str = "tunnel:\n  enabled: false\n";

#[test]
fn every_file_of_the_seeds_is_accepted() {
    let token = [("PIPEOPS_TOKEN", "t")];
    let cases: [(&str, &[(&str, &str)]); 7] = [
        (SEED_000, &[]),
        (SEED_000_TUNNEL, &token),
        (SEED_001, &[]),
        (SEED_001_SHORT, &[]),
        (SEED_002, &[]),
        (SEED_003, &[]),
        (SEED_003_NO_TUNNEL, &token),
    ];
    for (yaml, env) in cases {
        if let Err(problems) = load_text(yaml, env) {
            panic!("{problems}\n{yaml}");
        }
    }
}

#[test]
fn the_seeds_values_reach_the_configuration() {
    let config = load_text(SEED_003, &[]).unwrap();
    assert_eq!(config.identity.agent_id, None, "an empty id is none");
    assert_eq!(config.identity.cluster_name, "production-cluster");
    assert_eq!(config.control_plane.url.as_str(), "https://api.pipeops.sh/");
    assert_eq!(config.tunnel.forwards.len(), 3);
    assert_eq!(config.tunnel.forwards[0].target, "localhost:6443");
    assert_eq!(config.state.backend, StateBackend::Secret);
    assert_eq!(config.log_format, LogFormat::Json);
    assert!(
        config
            .notes
            .iter()
            .any(|line| line.starts_with("ignored: pipeops.reconnect.max_attempts"))
    );

    let config = load_text(SEED_002, &[]).unwrap();
    assert_eq!(config.control_plane.url.as_str(), "https://api.pipeops.io/");
    assert_eq!(
        config.control_plane.token.read().unwrap().expose_secret(),
        "your-agent-token"
    );
    let note = "ignored: frp (";
    assert!(
        config
            .notes
            .iter()
            .any(|line| line.starts_with(note) && line.contains("because"))
    );

    let config = load_text(SEED_000, &[]).unwrap();
    assert_eq!(config.server.sse_heartbeat, Duration::from_secs(30));
    assert_eq!(config.http_listen.port(), 8080);
}

#[test]
fn every_variable_of_the_seeds_is_accepted() {
    let documented = [
        ("PIPEOPS_API_URL", "https://a.example"),
        ("PIPEOPS_TOKEN", "t"),
        ("PIPEOPS_CLUSTER_NAME", "c"),
        ("PIPEOPS_AGENT_ID", "agent-001"),
        ("PIPEOPS_AGENT_NAME", "n"),
        ("PIPEOPS_AGENT_TOKEN", "t"),
        ("PIPEOPS_LOG_LEVEL", "info"),
        ("PIPEOPS_PORT", "8080"),
        ("PIPEOPS_ENABLE_WEBSOCKET", "true"),
        ("PIPEOPS_ENABLE_SSE", "true"),
        ("PIPEOPS_NODE_NAME", "node"),
        ("PIPEOPS_POD_NAME", "pod"),
        ("PIPEOPS_POD_NAMESPACE", "ns"),
        ("PIPEOPS_PIPEOPS_API_URL", "https://a.example"),
        ("PIPEOPS_PIPEOPS_TOKEN", "t"),
        ("PIPEOPS_AGENT_CLUSTER_NAME", "c"),
        ("PIPEOPS_KUBERNETES_KUBECONFIG", "/etc/kubeconfig"),
        ("PIPEOPS_KUBERNETES_IN_CLUSTER", "true"),
        ("PIPEOPS_CONTROL_PLANE_URL", "https://a.example"),
        ("PIPEOPS_FRP_SERVER_ADDR", "frp.pipeops.io"),
        ("PIPEOPS_FRP_SERVER_PORT", "7000"),
        ("PIPEOPS_FRP_TOKEN", "f"),
        ("AGENT_TOKEN", "t"),
        ("CLUSTER_NAME", "c"),
        ("LOG_LEVEL", "debug"),
        ("KUBECONFIG", "/x"),
        ("NODE_TYPE", "server"),
        ("K3S_URL", "https://1.2.3.4:6443"),
        ("K3S_TOKEN", "k"),
        ("PIPEOPS_AUTO_INSTALL_COMPONENTS", "true"),
        ("PIPEOPS_HEARTBEAT_INTERVAL_CONNECTED", "30"),
        ("PIPEOPS_HEARTBEAT_INTERVAL_RECONNECTING", "60"),
        ("PIPEOPS_TRUTHFUL_READINESS_PROBE", "true"),
        ("PIPEOPS_ENABLE_STATE_PERSISTENCE", "true"),
        ("PIPEOPS_REGISTRATION_RETRY_INTERVAL", "5s"),
        ("PIPEOPS_TIMEOUT", "30s"),
        ("PIPEOPS_GATEWAY_ENABLED", "true"),
        ("PIPEOPS_STATE_CONFIGMAP_NAME", "x"),
        ("PIPEOPS_DOOR_HTTP", "127.0.0.1:8001"),
    ];
    if let Err(problems) = load_env(&documented) {
        panic!("{problems}");
    }
    for (name, value) in documented {
        let config = load_env(&[("PIPEOPS_TOKEN", "t"), (name, value)]);
        assert!(config.is_ok(), "{name}: {config:?}");
    }
}

#[test]
fn every_key_has_a_variable_after_its_path() {
    for key in keys::KEYS.iter().filter(|key| key.shape != keys::Shape::Block) {
        let mut raw = Raw::default();
        let mut problems = Problems::new();
        let name = format!("PIPEOPS_{}", key.path.replace('.', "_").to_uppercase());
        raw.environment(&Env::from_pairs([(name.as_str(), "value")]), &mut problems);
        assert!(problems.is_empty(), "{name}: {problems}");
        let read = raw.get(key.path).is_some();
        assert_ne!(read, !raw.notes.is_empty(), "{name} is read or noted");
    }
}

#[test]
fn flags_beat_variables_and_variables_beat_the_file() {
    let yaml = "agent: { cluster_name: file }\npipeops: { token: t }\n";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    let env = Env::from_pairs([("PIPEOPS_CLUSTER_NAME", "env")]);
    let none = BTreeMap::new();
    let flags = BTreeMap::from([("agent.cluster_name", "flag".to_owned())]);
    let empty = Env::default();
    let name = |flags, env| load(flags, Some(file.path()), env).unwrap().identity.cluster_name;
    assert_eq!(name(&none, &empty), "file");
    assert_eq!(name(&none, &env), "env");
    assert_eq!(name(&flags, &env), "flag");
    let config = load_env(&[("PIPEOPS_TOKEN", "t")]).unwrap();
    assert_eq!(config.identity.cluster_name, "default-cluster");
}

#[test]
fn three_faults_give_three_lines() {
    let faults = lines(load_env(&[
        ("PIPEOPS_API_URL", "http://api.example.com"),
        ("PIPEOPS_TOKEN", "t"),
        ("PIPEOPS_HEARTBEAT_INTERVAL", "soon"),
        ("PIPEOPS_CLUSTR_NAME", "x"),
    ]));
    insta::assert_snapshot!(faults.join("\n"), @r#"
    PIPEOPS_CLUSTR_NAME: is not a known variable; did you mean PIPEOPS_CLUSTER_NAME? (from env PIPEOPS_CLUSTR_NAME)
    pipeops.api_url: would send the token in clear: use https, or set pipeops.allow_insecure: true if the network is trusted (value "http://api.example.com", from env PIPEOPS_API_URL)
    agent.heartbeat_interval: is no duration such as 30s or 5m (value "soon", from env PIPEOPS_HEARTBEAT_INTERVAL)
    "#);
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let yaml = "agent: { clustername: x }\npipeopss: 1\npipeops: { token: t }\ntunnel: on\n";
    let faults = lines(load_text(yaml, &[]));
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(
        faults
            .iter()
            .any(|line| line.contains("did you mean agent.cluster_name?")),
        "{faults:?}"
    );
    assert!(
        faults.iter().any(|line| line.contains("did you mean pipeops?")),
        "{faults:?}"
    );
    assert!(
        faults.iter().any(|line| line.contains("tunnel: is a block")),
        "{faults:?}"
    );
}

#[test]
fn a_missing_file_is_a_fault_when_it_was_named() {
    let env = Env::from_pairs([("PIPEOPS_TOKEN", "t")]);
    let faults = lines(load(
        &BTreeMap::new(),
        Some(Path::new("/nonexistent/a.yaml")),
        &env,
    ));
    assert!(faults[0].contains("/nonexistent/a.yaml"), "{faults:?}");
    let faults = lines(load_env(&[("PIPEOPS_TOKEN_FILE", "/nonexistent/token")]));
    assert!(
        faults[0].contains("/nonexistent/token is missing or empty"),
        "{faults:?}"
    );
    let faults = lines(load_env(&[]));
    assert!(faults[0].contains("PIPEOPS_TOKEN_FILE"), "{faults:?}");
}

#[test]
fn service_links_are_not_settings() {
    let config = load_env(&[
        ("PIPEOPS_TOKEN", "t"),
        ("AGENT_PORT", "tcp://10.0.0.1:8080"),
        ("PIPEOPS_AGENT_PORT", "tcp://10.0.0.1:8080"),
        ("PIPEOPS_AGENT_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PIPEOPS_AGENT_PORT_8080_TCP_PROTO", "tcp"),
        ("PIPEOPS_AGENT_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("PIPEOPS_AGENT_SERVICE_HOST", "10.0.0.1"),
        ("PIPEOPS_AGENT_SERVICE_PORT", "8080"),
        ("PIPEOPS_AGENT_SERVICE_PORT_HTTP", "8080"),
    ])
    .unwrap();
    assert_eq!(config.http_listen.port(), 8080);
    assert!(
        config
            .notes
            .iter()
            .any(|line| line.starts_with("ignored: AGENT_PORT because"))
    );
}

#[test]
fn a_secret_is_never_printed() {
    const CANARY: &str = "canary-7d1f";
    let yaml = format!(
        "pipeops: {{ token: {CANARY}-a }}\nkubernetes: {{ service_token: {CANARY}-b }}\n\
         tunnel: {{ credentials: 'u:{CANARY}-c' }}\n"
    );
    let config = load_text(&yaml, &[("PIPEOPS_FRP_TOKEN", CANARY)]).unwrap();
    assert_eq!(
        config.control_plane.token.read().unwrap().expose_secret(),
        "canary-7d1f-a"
    );
    assert!(!format!("{config:?}").contains(CANARY));
    assert!(!config.notes.join("\n").contains(CANARY));

    let broken = format!(
        "pipeops: {{ token: [{CANARY}], api_url: 'https://u:{CANARY}@h' }}\n\
         kubernetes: {{ service_token: [{CANARY}] }}\ntunnel: {{ credentials: {{ a: {CANARY} }} }}\n\
         proxy: {{ door_tokens: [{{ name: a, token: {CANARY} }}] }}\n"
    );
    let env = [
        ("PIPEOPS_TOKEM", CANARY),
        ("PIPEOPS_AGENT_TOKEN", "canary-7d1f white space"),
    ];
    let faults = lines(load_text(&broken, &env));
    assert!(faults.len() >= 5, "{faults:?}");
    assert!(!faults.join("\n").contains(CANARY), "{faults:?}");
    // The parser's own message would show the line.
    let faults = lines(load_text(&format!("pipeops:\n  token: '{CANARY}\n"), &[]));
    assert!(!faults.join("\n").contains(CANARY), "{faults:?}");
}

#[test]
fn credentials_do_not_leave_in_clear_unless_the_owner_says_so() {
    let base = ("PIPEOPS_TOKEN", "t");
    let url = ("PIPEOPS_API_URL", "http://api.example.com");
    assert!(load_env(&[base, url]).is_err());
    assert!(load_env(&[base, url, ("PIPEOPS_ALLOW_INSECURE", "true")]).is_ok());
    assert!(load_env(&[base, ("PIPEOPS_API_URL", "http://127.0.0.1:4711")]).is_ok());
    assert!(load_env(&[base, ("PIPEOPS_KUBERNETES_DOOR", "http://10.0.0.1:8001")]).is_err());
    assert!(load_env(&[base, ("PIPEOPS_GRPC_LISTEN", "0.0.0.0:7070")]).is_err());
    assert!(load_env(&[base, ("PIPEOPS_PIPEOPS_TLS_INSECURE_SKIP_VERIFY", "true")]).is_err());
}

#[test]
fn durations_are_read_as_people_write_them() {
    for (text, seconds) in [("30s", 30), ("5m", 300), ("1h30m", 5400), ("7", 7), (" 2s ", 2)] {
        assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(parse_duration("0.5"), Some(Duration::from_millis(500)));
    for text in ["", "s", "-1", "NaN", "1e400", "5 parsecs"] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text in "[a-z_.:{}\\[\\]\"' \n\\-0-9&*!|>%]{0,200}") {
        load_text(&text, &[("PIPEOPS_TOKEN", "t")]).ok();
    }

    #[test]
    fn no_value_of_any_key_makes_the_reader_panic(index in 0..keys::KEYS.len(), text in "\\PC{0,40}") {
        let name = keys::KEYS[index].own_variable();
        load_env(&[("PIPEOPS_TOKEN", "t"), (name.as_str(), text.as_str())]).ok();
    }
}

#[test]
fn what_a_user_of_chisel_knows_has_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let written = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let proxy = written("proxy", "http://u:canary@proxy:3128\n");
    let headers = written("headers", "X-Secret: canary: two\n\nX-Other:b\n");
    let yaml = format!(
        "pipeops: {{ token: t }}\ntunnel:\n  server: wss://t.example\n  remotes: ['R:2222:localhost:22', '3000:db:5432']\n  \
         socks_targets: ['*:443']\n  hostname: h\n  tls_server_name: s\n  tls_skip_verify_i_know_it_is_insecure: true\n  \
         proxy_file: {proxy}\n  headers: {{ X-A: b }}\n  headers_file: {headers}\n"
    );
    let config = load_text(&yaml, &[]).unwrap();
    let chisel = &config.tunnel.chisel;
    assert_eq!((chisel.remotes.len(), chisel.socks_targets.len()), (2, 1));
    assert!(
        config.tunnel.forwards.is_empty(),
        "the default ones have no ports at a server of the owner's"
    );
    assert_eq!(
        (chisel.hostname.as_deref(), chisel.tls_server_name.as_deref()),
        (Some("h"), Some("s"))
    );
    assert!(chisel.tls_skip_verify);
    assert_eq!(
        chisel.proxy().unwrap().unwrap().expose_secret(),
        "http://u:canary@proxy:3128"
    );
    let found: Vec<_> = chisel
        .headers()
        .unwrap()
        .into_iter()
        .map(|(name, value)| (name, value.expose_secret().to_owned()))
        .collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        found,
        [
            pair("X-A", "b"),
            pair("X-Secret", "canary: two"),
            pair("X-Other", "b")
        ]
    );
    assert!(!format!("{config:?}").contains("canary"));

    let lines = lines(load_text(
        "pipeops: { token: t }\ntunnel: { proxy: 'ftp://u:canary@p', remotes: [1], forwards: [{ name: a, target: b, protocol: UDP }] }\n",
        &[],
    ));
    for part in [
        "tunnel.proxy: ",
        "tunnel.remotes: holds something that is no text",
        "protocol is neither tcp nor udp",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(part)),
            "{part} in {lines:?}"
        );
    }
    assert!(!lines.join("\n").contains("canary"), "{lines:?}");
}
