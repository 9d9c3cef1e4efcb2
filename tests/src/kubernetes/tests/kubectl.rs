//! The real kubectl, as people will use it.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::{super::*, *};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: mine, namespace: shop}
data: {a: "1"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: mine, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: mine}}
  template:
    metadata: {labels: {app: mine}}
    spec:
      containers:
      - {name: a, image: "x:1"}
      - {name: b, image: "x:1"}
"#;

fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new("kubectl");
    let cache = dir.join("cache");
    command
        .arg("--kubeconfig")
        .arg(dir.join("kubeconfig"))
        .arg("--cache-dir")
        .arg(cache)
        .args(line.split(' '));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs kubectl, and returns what it printed.
async fn kubectl(dir: &Path, line: &str) -> String {
    let output = command(dir, line).output().await.expect("kubectl is in PATH");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "kubectl {line}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

async fn simulation() -> (Simulation, tempfile::TempDir) {
    let simulation = start(SimulationConfig::default()).await;
    let dir = tempfile::tempdir().unwrap();
    simulation.kubeconfig(&dir.path().join("kubeconfig")).unwrap();
    (simulation, dir)
}

#[tokio::test]
async fn get_logs_and_describe() {
    let (simulation, dir) = simulation().await;
    let dir = dir.path();
    let pods = kubectl(dir, "get pods -n shop").await;
    assert!(
        pods.starts_with("NAME") && pods.lines().next().unwrap().contains("READY"),
        "{pods}"
    );
    assert_eq!(pods.matches("1/1").count(), 5, "{pods}");
    let all = kubectl(dir, "get all,cm,secrets,events,sa,leases,ns,nodes -A").await;
    assert!(
        all.contains("deployment.apps/web") && all.contains("node/node-3"),
        "{all}"
    );
    let names = kubectl(dir, "get pods -A --chunk-size=2 -o name").await;
    assert_eq!(names.lines().count(), 7, "{names}");
    assert_eq!(
        kubectl(dir, "get pods -n shop -l app=web -o name")
            .await
            .lines()
            .count(),
        3
    );

    let pod = simulation.running_pod("shop").unwrap();
    simulation.append_log("shop", &pod, "hello from the pod");
    assert_eq!(
        kubectl(dir, &format!("logs -n shop {pod} --tail=1")).await,
        "hello from the pod\n"
    );
    let described = kubectl(dir, &format!("describe pod -n shop {pod}")).await;
    assert!(
        described.contains("Successfully assigned") && described.contains("Controlled By:"),
        "{described}"
    );
    let described = kubectl(dir, "describe deployment -n shop web").await;
    assert!(
        described.contains("3 desired | 3 updated | 3 total | 3 available"),
        "{described}"
    );
    assert!(
        kubectl(dir, "describe node node-1")
            .await
            .contains("Non-terminated Pods")
    );
    assert!(kubectl(dir, "version").await.contains("Server Version: v1.34.2"));
    assert!(kubectl(dir, "api-resources").await.contains("configmaps"));
}

#[tokio::test]
async fn apply_change_and_delete() {
    let (simulation, dir) = simulation().await;
    let dir = dir.path();
    let file = dir.join("manifest.yaml");
    std::fs::write(&file, MANIFEST).unwrap();
    let apply = format!("apply -f {}", file.display());
    assert_eq!(
        kubectl(dir, &apply).await,
        "configmap/mine created\ndeployment.apps/mine created\n"
    );
    assert_eq!(
        kubectl(dir, &apply).await,
        "configmap/mine unchanged\ndeployment.apps/mine unchanged\n"
    );
    std::fs::write(&file, MANIFEST.replacen("x:1", "x:2", 1)).unwrap();
    assert_eq!(
        kubectl(dir, &apply).await,
        "configmap/mine unchanged\ndeployment.apps/mine configured\n"
    );
    let mine = simulation.get("deployments", "shop", "mine").unwrap();
    let containers = &mine["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        (&containers[0]["image"], &containers[1]["image"]),
        (&"x:2".into(), &"x:1".into())
    );
    kubectl(dir, "scale deployment mine -n shop --replicas=3").await;
    simulation.step(4);
    kubectl(dir, "rollout status deployment/mine -n shop --timeout=30s").await;
    assert_eq!(
        kubectl(dir, "get pods -n shop -l app=mine -o name")
            .await
            .lines()
            .count(),
        3
    );
    kubectl(dir, "label configmap mine -n shop x=y").await;
    kubectl(dir, "patch configmap mine -n shop -p {\"data\":{\"b\":\"2\"}}").await;
    let labelled = simulation.get("configmaps", "shop", "mine").unwrap();
    assert_eq!(
        (&labelled["metadata"]["labels"]["x"], &labelled["data"]["b"]),
        (&"y".into(), &"2".into())
    );
    kubectl(
        dir,
        &format!("apply --server-side --force-conflicts -f {}", file.display()),
    )
    .await;
    kubectl(dir, "delete configmap mine -n shop").await;
    kubectl(dir, "delete deployment mine -n shop").await;
    assert!(simulation.get("configmaps", "shop", "mine").is_none());
    assert!(
        simulation
            .list("pods", Some("shop"))
            .iter()
            .all(|pod| pod["metadata"]["labels"]["app"] != "mine")
    );
}

#[tokio::test]
async fn create_and_ask() {
    let (simulation, dir) = simulation().await;
    let dir = dir.path();
    kubectl(dir, "create namespace mine").await;
    kubectl(dir, "create configmap a -n mine --from-literal=k=v").await;
    kubectl(dir, "create secret generic b -n mine --from-literal=k=v").await;
    kubectl(dir, "create deployment c -n mine --image=x:1 --replicas=2").await;
    assert_eq!(
        simulation.get("configmaps", "mine", "a").unwrap()["data"]["k"],
        "v"
    );
    assert_eq!(
        simulation.get("secrets", "mine", "b").unwrap()["data"]["k"],
        "dg=="
    );
    simulation.step(3);
    assert_eq!(simulation.list("pods", Some("mine")).len(), 2);
    assert!(kubectl(dir, "auth whoami").await.contains("admin"));
    assert_eq!(kubectl(dir, "auth can-i list pods").await, "yes\n");
    kubectl(dir, "run one -n mine --image=x").await;
    kubectl(dir, "delete namespace mine").await;
    assert!(simulation.list("pods", Some("mine")).is_empty());
}

#[tokio::test]
async fn get_and_watch() {
    let (simulation, dir) = simulation().await;
    let mut child = command(dir.path(), "get configmaps -n shop -w --output-watch-events")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        tokio::time::timeout(crate::wait::patience(), lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    assert!(next().await.starts_with("EVENT"));
    assert!(next().await.contains("kube-root-ca.crt"));
    assert!(next().await.contains("web-config"));
    crate::wait::eventually("the watch", async || {
        (simulation.requests().open_watches() == 1).then_some(())
    })
    .await;
    simulation
        .create(
            "configmaps",
            "shop",
            serde_json::json!({"metadata": {"name": "seen"}}),
        )
        .unwrap();
    let line = next().await;
    assert!(line.starts_with("ADDED") && line.contains("seen"), "{line}");
    simulation.delete("configmaps", "shop", "seen").unwrap();
    let line = next().await;
    assert!(line.starts_with("DELETED") && line.contains("seen"), "{line}");
    child.kill().await.unwrap();
}
