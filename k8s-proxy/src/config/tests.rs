use super::*;
use clap::Parser as _;

fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Problems> {
    let args = Args::try_parse_from(std::iter::once(&"k8s-proxy").chain(args)).unwrap();
    Config::read(&args.flags, &Env::from_pairs(env.iter().copied()))
}

#[test]
fn an_apiserver_by_url_is_enough() {
    let config = read(&["--kube-api", "http://127.0.0.1:1"], &[("PIPEOPS_AUDIT", "off")]).unwrap();
    assert_eq!(config.door_http.to_string(), "127.0.0.1:8001");
    assert!(!config.audit);
    assert!(config.describe().contains("http://127.0.0.1:1"));
}

#[test]
fn every_fault_is_a_line() {
    let faults = read(
        &["--door-http", "0.0.0.0:1", "--audit", "maybe"],
        &[
            ("PIPEOPS_KUBE_API", "nonsense"),
            ("PIPEOPS_DOR_HTTPS", "x"),
            ("PIPEOPS_DRAIN_TIMEOUT", "10ms"),
        ],
    )
    .unwrap_err();
    let text = faults.to_string();
    assert_eq!(faults.len(), 5, "{text}");
    for word in [
        "loopback",
        "stdout",
        "no URL",
        "did you mean PIPEOPS_DOOR_HTTPS?",
        "below 1s",
    ] {
        assert!(text.contains(word), "{word} is missing in:\n{text}");
    }
}

#[test]
fn without_any_apiserver_it_says_what_to_set() {
    let text = read(&[], &[]).unwrap_err().to_string();
    assert!(
        text.contains("--kubeconfig") && text.contains("--kube-api"),
        "{text}"
    );
}

#[test]
fn in_a_pod_the_kubelet_tells_all() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(vec!["ca".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(dir.path().join("namespace"), "pipeops-system\n").unwrap();
    let path = dir.path().display().to_string();
    let env = [
        ("KUBERNETES_SERVICE_HOST", "fd00::1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("PIPEOPS_SERVICE_ACCOUNT_DIR", path.as_str()),
        ("PIPEOPS_TOKEN", "canary"),
        ("PIPEOPS_UI_SERVICE_HOST", "10.0.0.1"),
        ("PIPEOPS_UI_PORT", "tcp://10.0.0.1:80"),
    ];
    let config = read(&[], &env).unwrap();
    assert_eq!(config.upstream.address(), "https://[fd00::1]/");
    assert_eq!(config.scope.namespace, "pipeops-system");
    assert!(!format!("{config:?}{}", config.describe()).contains("canary"));
}

#[test]
fn every_flag_has_a_row_in_the_table() {
    use clap::CommandFactory as _;
    let command = Args::command();
    let flags: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| arg.get_long())
        .filter(|name| *name != "help")
        .collect();
    let common = DEFAULTS.rows();
    let rows = || common.iter().chain(&SETTINGS);
    assert_eq!(flags.len(), rows().count());
    for flag in flags {
        assert!(
            rows().any(|(name, _, _)| name.strip_prefix("--") == Some(flag)),
            "{flag}"
        );
    }
}
