//! The binary: commands, exit codes, signals.

use std::{path::Path, process::Stdio};

use tokio::{io::AsyncReadExt as _, process::Command};

use crate::world::*;

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunnel-sidecar"));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn in_dir(command: &mut Command, dir: &Path) {
    std::fs::create_dir_all(dir.join("edge")).unwrap();
    command
        .env("PIPEOPS_PRIVATE_DIR", dir.join("private"))
        .env("PIPEOPS_EDGE_DIR", dir.join("edge"))
        .env("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0")
        .env("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0")
        .env("PIPEOPS_ADDRESSES_FILE", dir.join("addresses.json"));
}

async fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn commands_and_exit_codes() {
    let (code, out, _) = output(binary().arg("version")).await;
    assert!(code == Some(0) && out.starts_with("tunnel-sidecar "), "{out}");
    let (code, out, _) = output(binary().arg("check-config")).await;
    assert!(code == Some(0) && out.contains("127.0.0.1:7071"), "{out}");
    let mut bad = binary();
    bad.arg("check-config")
        .env("PIPEOPS_GRPC_LISTEN", "0.0.0.0:1")
        .env("PIPEOPS_LOG_FORMAT", "x")
        .env("PIPEOPS_EDG_DIR", "y");
    let (code, _, err) = output(&mut bad).await;
    assert!(
        code == Some(64) && err.lines().count() == 3 && err.contains("did you mean PIPEOPS_EDGE_DIR"),
        "{err}"
    );
    let (code, _, err) = output(binary().arg("--http-listn=x")).await;
    assert!(code == Some(64) && err.contains("--http-listen"), "{err}");
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = output(binary().arg("token").env("PIPEOPS_PRIVATE_DIR", dir.path())).await;
    assert!(
        code == Some(1) && err.contains("is the process running?"),
        "{err}"
    );
}

#[tokio::test]
async fn it_runs_prints_its_token_and_ends_clean_on_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = binary();
    in_dir(&mut command, dir.path());
    let mut child = command
        .env("PIPEOPS_LOG_FORMAT", "json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let addresses: serde_json::Value = eventually("the addresses", || async {
        serde_json::from_slice(&std::fs::read(dir.path().join("addresses.json")).ok()?).ok()
    })
    .await;
    let http = addresses["http"].as_str().unwrap().parse().unwrap();
    eventually("it to serve", || async {
        (get(http, "/livez").await.0 == 200).then_some(())
    })
    .await;
    assert!(get(http, "/version").await.1.contains("tunnel-sidecar"));
    assert_eq!(get(http, "/readyz").await.0, 503);
    assert_eq!(get(http, "/dashboard").await.0, 404, "probes and metrics only");
    let mut token = binary();
    in_dir(token.arg("token"), dir.path());
    assert_eq!(output(&mut token).await.1.trim().len(), 43);
    let pid = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("the end")
        .unwrap();
    let mut log = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .await
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("\"SIGTERM\""), "{log}");
}
