use super::*;
use clap::Parser as _;

fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Problems> {
    let args = Args::try_parse_from([&["tunnel-sidecar"], args].concat()).unwrap();
    Config::read(&args.flags, &Env::from_pairs(env.iter().copied()))
}

#[test]
fn the_defaults_are_those_of_the_pod() {
    insta::assert_snapshot!(
        read(&[], &[]).unwrap().describe(),
        @"http 0.0.0.0:8081, grpc 127.0.0.1:7071, agent-core http://127.0.0.1:7070/, edge token in /run/pipeops/edge-tunnel, private folder /run/pipeops/private, kubernetes-api at 127.0.0.1:8443, k8s-proxy at 127.0.0.1:8001, agent-http at 127.0.0.1:8080, drain 25s"
    );
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_default() {
    let env = [
        ("PIPEOPS_GRPC_LISTEN", "127.0.0.1:1"),
        ("PIPEOPS_DRAIN_TIMEOUT", "3s"),
        ("HOST_IP", "10.1.2.3"),
    ];
    let config = read(&["--grpc-listen", "127.0.0.1:2"], &env).unwrap();
    assert_eq!(config.common.grpc_listen.port(), 2);
    assert_eq!(config.common.drain_timeout, std::time::Duration::from_secs(3));
    assert_eq!(config.places.host_ip, Some([10, 1, 2, 3].into()));
    assert_eq!(config.places.apiserver, None);
}

#[test]
fn all_faults_are_told_at_once() {
    let env = [
        ("PIPEOPS_GRPC_LISTEN", "0.0.0.0:7071"),
        ("PIPEOPS_LOG_FORMAT", "yaml"),
        ("PIPEOPS_HTTP_LISTN", "canary"),
        ("PIPEOPS_SOMETHING", "canary"),
        ("PIPEOPS_CORE_ADDRESS", "http://10.0.0.1:7070"),
        ("HOST_IP", "node-7"),
        ("PIPEOPS_TARGET_K8S_PROXY", "localhost"),
    ];
    insta::assert_snapshot!(read(&["--drain-timeout", "soon"], &env).unwrap_err().to_string(), @r#"
    PIPEOPS_HTTP_LISTN: is not a setting; did you mean PIPEOPS_HTTP_LISTEN? (from env PIPEOPS_HTTP_LISTN)
    PIPEOPS_SOMETHING: is not a setting of any container (from env PIPEOPS_SOMETHING)
    --log-format: is neither text nor json (value "yaml", from env PIPEOPS_LOG_FORMAT)
    --grpc-listen: must be a loopback address: tokens cross it in clear (value "0.0.0.0:7071", from env PIPEOPS_GRPC_LISTEN)
    --core-address: is not http://host:port of agent-core in this pod (value "http://10.0.0.1:7070", from env PIPEOPS_CORE_ADDRESS)
    --drain-timeout: is not a duration, for example 25s (value "soon", from flag --drain-timeout)
    k8s-proxy: has no port: write host:port (value "localhost", from env PIPEOPS_TARGET_K8S_PROXY)
    HOST_IP: is not an IP address (value "node-7", from env HOST_IP)
    "#);
}

#[test]
fn what_other_containers_and_the_kubelet_set_is_left_alone() {
    let env = [
        ("PIPEOPS_TOKEN", "secret"),
        ("PIPEOPS_PORT", "tcp://10.96.0.9:80"),
        ("PIPEOPS_UI_SERVICE_HOST", "10.96.0.9"),
        ("PIPEOPS_UI_PORT_80_TCP_ADDR", "10.96.0.9"),
        ("PIPEOPS_STATE_BACKEND", "auto"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
    ];
    let config = read(&[], &env).unwrap();
    assert_eq!(
        config
            .places
            .apiserver
            .map(|address| address.to_string())
            .as_deref(),
        Some("10.96.0.1:443")
    );
    assert!(!format!("{config:?}", config = read(&[], &env).unwrap()).contains("secret"));
}

#[test]
fn a_client_certificate_and_its_key_come_together() {
    let both = read(
        &["--client-cert-file", "/c"],
        &[("PIPEOPS_CLIENT_KEY_FILE", "/k")],
    );
    let identity = both.unwrap().identity.unwrap();
    assert_eq!((identity.certificate, identity.key), ("/c".into(), "/k".into()));
    let alone = read(&[], &[("PIPEOPS_CLIENT_CERT_FILE", "/c")]).unwrap_err();
    assert!(alone.to_string().contains("--client-key-file"), "{alone}");
    assert_eq!(read(&[], &[]).unwrap().identity, None);
}

#[test]
fn a_proxy_that_cannot_be_used_is_named_without_its_password() {
    let bad = read(&[], &[("https_proxy", "ftp://u:canary@p")])
        .unwrap_err()
        .to_string();
    assert!(bad.contains("https_proxy") && bad.contains("ftp"), "{bad}");
    assert!(!bad.contains("canary"), "{bad}");
    let config = read(
        &[],
        &[("HTTPS_PROXY", "http://u:canary@p:3128"), ("NO_PROXY", "x")],
    )
    .unwrap();
    assert_eq!(
        config
            .proxies
            .for_peer(true, "t.example", 443)
            .unwrap()
            .to_string(),
        "http://p:3128"
    );
    assert!(!format!("{config:?}").contains("canary"));
}
