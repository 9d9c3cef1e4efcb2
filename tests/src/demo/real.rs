//! The chart on the real cluster of `make cluster-up`.

use anyhow::Result;
use tempfile::TempDir;

use super::Commands;
use crate::{
    cluster::{NAMESPACE, RealCluster},
    control_plane::ControlPlane,
};

/// Everything that runs for the demo.
pub(crate) struct Stage {
    pub(crate) control_plane: ControlPlane,
    cluster: RealCluster,
    dir: TempDir,
}

impl Stage {
    pub(crate) async fn start() -> Result<Self> {
        let cluster = RealCluster::running().await?;
        let dir = crate::folder::private("pipeops-demo-")?;
        let token = runtime::secret::hex(&rand::random::<[u8; 16]>());
        let control_plane = cluster.control_plane(&token).await?;
        println!("control plane: {}", control_plane.api_url());
        println!(
            "cluster:       real, kubeconfig {}",
            cluster.kubeconfig()?.display()
        );
        println!("helm install:  pipeops-agent in namespace {NAMESPACE}\n");
        cluster.install(&control_plane, &[]).await?;
        Ok(Self {
            control_plane,
            cluster,
            dir,
        })
    }

    pub(crate) async fn commands(&self) -> Result<Commands> {
        let id = self.control_plane.wait_registered().await;
        let front = self.dir.path().join("kubeconfig");
        std::fs::write(&front, self.control_plane.kubeconfig(&id))?;
        let (front, own) = (front.display(), self.cluster.kubeconfig()?);
        let own = own.display();
        let logs =
            format!("kubectl --kubeconfig {own} -n {NAMESPACE} logs deploy/pipeops-agent -c k8s-proxy");
        let token = format!(
            "kubectl --kubeconfig {own} -n {NAMESPACE} exec deploy/pipeops-agent -c agent-core -- /agent-core token"
        );
        Ok(Commands {
            lines: vec![
                (
                    "the cluster, from outside",
                    format!("kubectl --kubeconfig {front} get pods -A"),
                ),
                (
                    "a live watch through the proxy",
                    format!("kubectl --kubeconfig {front} get pods -A -w"),
                ),
                ("what a container says", logs),
                ("the operator's token", token),
                (
                    "the page",
                    format!(
                        "kubectl --kubeconfig {own} -n {NAMESPACE} port-forward deploy/pipeops-agent 8080"
                    ),
                ),
            ],
        })
    }

    /// Uninstalls; the cluster itself stays until `make cluster-down`.
    pub(crate) async fn end(&self) -> Result<()> {
        self.cluster.remove().await
    }
}
