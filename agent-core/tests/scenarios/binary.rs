//! The program itself: exit codes, what it prints, and what it never prints.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::{
    agent::eventually,
    control_plane::{ControlPlane, Say},
};

const CANARY: &str = "canary-5b1e77";

fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-core"));
    command
        .env_clear()
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let path = |name: &str| dir.join(name).display().to_string();
    command
        .env("PIPEOPS_PRIVATE_DIR", path("private"))
        .env("PIPEOPS_EDGE_TUNNEL_DIR", path("edge-tunnel"))
        .env("PIPEOPS_EDGE_PROXY_DIR", path("edge-proxy"))
        .env("PIPEOPS_STATE_FILE", path("state.yaml"))
        .env("PIPEOPS_ADDRESSES_FILE", path("addresses.json"))
        .env("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0")
        .env("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0");
    command
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn three_faults_are_three_lines_and_code_64() {
    let dir = tempfile::tempdir().unwrap();
    let output = program(dir.path())
        .arg("check-config")
        .env("PIPEOPS_TOKEN", format!("{CANARY} with white space"))
        .env("PIPEOPS_API_URL", "http://api.example.com")
        .env("PIPEOPS_CLUSTR_NAME", "x")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = text(&output);
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("configuration:"))
            .count(),
        3,
        "{text}"
    );
    assert!(
        text.contains("did you mean PIPEOPS_CLUSTER_NAME?") && !text.contains(CANARY),
        "{text}"
    );
    let output = program(dir.path()).arg("--no-such-flag").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn check_config_shows_what_it_means_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("agent.yaml"),
        format!("pipeops: {{ token: {CANARY} }}\nfrp: {{ token: {CANARY} }}\n"),
    )
    .unwrap();
    let args = [
        "check-config",
        "--config",
        "agent.yaml",
        "--gateway-enabled",
        "--cluster-name",
        "from-flag",
    ];
    let output = program(dir.path()).args(args).output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("agent.cluster_name = from-flag (from flag --cluster-name)"),
        "{text}"
    );
    assert!(
        text.contains("ignored: frp (from file agent.yaml) because"),
        "{text}"
    );
    assert!(
        text.contains("ignored: gateway.enabled (from flag --gateway-enabled)"),
        "{text}"
    );
    assert!(!text.contains(CANARY), "{text}");
    let output = program(dir.path()).arg("version").output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).starts_with("agent-core "));
}

#[tokio::test]
async fn a_refused_program_ends_with_one_and_a_running_one_with_zero_and_no_log_holds_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start().await;
    let mut command = program(dir.path());
    command
        .env("PIPEOPS_TOKEN", CANARY)
        .env("PIPEOPS_API_URL", cp.url())
        .env("PIPEOPS_K8S_SERVICE_TOKEN", CANARY)
        .env("PIPEOPS_LOG_LEVEL", "trace")
        .env("PIPEOPS_LOG_FORMAT", "json");
    let run = |mut command: Command| tokio::task::spawn_blocking(move || command.output().unwrap());
    // The double knows another token.
    let output = run(clone(&command)).await.unwrap();
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(
        log.contains("refused the registration (401") && log.contains("PIPEOPS_TOKEN"),
        "{log}"
    );
    assert!(!log.contains(CANARY), "{log}");

    cp.script().token = CANARY.to_owned();
    cp.say_register([Say::Ok(
        serde_json::json!({ "cluster_id": "uuid-1", "proxy_url": "wss://p",
        "proxy_token": CANARY }),
    )]);
    let child = clone(&command).spawn().unwrap();
    cp.beats(1).await;
    let token = run({
        let mut command = program(dir.path());
        command.arg("token");
        command
    })
    .await
    .unwrap();
    let operator = std::fs::read_to_string(dir.path().join("private/operator-token")).unwrap();
    assert_eq!(String::from_utf8_lossy(&token.stdout).trim(), operator);
    eventually("the addresses are written", async || {
        std::fs::read_to_string(dir.path().join("addresses.json"))
            .ok()
            .filter(|text| text.contains("grpc"))
    })
    .await;
    let pid = child.id().to_string();
    let stopped = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(stopped.success());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    let log = text(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(
        log.contains("told the control plane goodbye") && !log.contains(CANARY),
        "{log}"
    );
    assert_eq!(cp.script().beats.last().unwrap().1["status"], "disconnected");
}

/// `Command` cannot be cloned; all we set are variables.
fn clone(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    copy.current_dir(command.get_current_dir().unwrap());
    copy.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    copy
}
