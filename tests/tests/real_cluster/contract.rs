//! The double is honest: what it promises is what a real kube-apiserver does.

use anyhow::{Result, ensure};
use harness::{
    cluster::RealCluster,
    kubernetes::contract::{ContractClient, check, failures},
    wait::eventually,
};
use serde_json::json;

const POD: &str = "contract-writer";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_apiserver_keeps_the_contract_of_the_simulation() -> Result<()> {
    runtime::tls::install_provider();
    let cluster = RealCluster::running().await?;
    // One that starts on an older database does not know the first revisions: one scenario asks for such a one.
    cluster.restart_apiserver(&[]).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "writer", "image": "busybox:dev", "imagePullPolicy": "Never",
                "command": ["sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done"],
            }],
        },
    });
    cluster
        .kubectl(&[
            "delete",
            "pod",
            POD,
            "-n",
            "default",
            "--ignore-not-found",
            "--wait=true",
        ])
        .await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), pod.to_string())?;
    cluster
        .kubectl(&["create", "-f", &file.path().display().to_string()])
        .await?;
    eventually("the writing pod to have written", || async {
        let log = cluster.kubectl(&["logs", POD, "-n", "default"]).await.ok()?;
        (log.lines().count() > 3).then_some(())
    })
    .await;
    let client = ContractClient::from_kubeconfig(&cluster.kubeconfig()?)?.with_log_pod("default", POD);
    let outcomes = check(&client).await;
    cluster
        .kubectl(&["delete", "pod", POD, "-n", "default", "--wait=false"])
        .await?;
    let failed = failures(&outcomes);
    println!("{} scenarios against the real apiserver", outcomes.len());
    ensure!(
        failed.is_empty(),
        "the real apiserver does not keep the contract:\n{failed}"
    );
    Ok(())
}
