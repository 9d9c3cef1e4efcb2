//! The chart, installed with helm, in a namespace that demands the strictest pods, run by a real kubelet.

mod identity;
mod inside;
mod kill;
mod refused;
mod survive;

use std::{future::Future, panic::AssertUnwindSafe};

use anyhow::{Result, bail};
use futures_util::FutureExt as _;
use harness::{
    cluster::RealCluster, control_plane::ControlPlane, lab::TOKEN, scenarios::observer::through_forward,
    wait::eventually,
};
use serde_json::Value;

/// Every forward that the control plane asks for.
const FORWARDS: [&str; 3] = ["kubernetes-api", "k8s-proxy", "agent-http"];

/// The chart at work.
struct Installed {
    cluster: RealCluster,
    control_plane: ControlPlane,
    /// The cluster's id at the control plane.
    id: String,
    /// The pod as it was when everything worked.
    pod: Value,
}

impl Installed {
    /// A namespace without traces of earlier runs, and a control plane for it.
    async fn prepare() -> Result<(RealCluster, ControlPlane)> {
        runtime::tls::install_provider();
        let cluster = RealCluster::running().await?;
        cluster.uninstall().await?;
        cluster.make_namespace().await?;
        cluster
            .here(&["delete", "secret,lease,event,service", "--all"])
            .await?;
        cluster
            .kubectl(&[
                "delete",
                "configmap",
                "-n",
                "default",
                "--field-selector",
                "metadata.name!=kube-root-ca.crt",
            ])
            .await?;
        let control_plane = cluster.control_plane(TOKEN).await?;
        Ok((cluster, control_plane))
    }

    /// Installs, and waits until all of it works.
    async fn new() -> Result<Self> {
        let (cluster, control_plane) = Self::prepare().await?;
        Self::with(cluster, control_plane).await
    }

    /// The same where everything is prepared.
    async fn with(cluster: RealCluster, control_plane: ControlPlane) -> Result<Self> {
        cluster.install(&control_plane, &[]).await?;
        let id = control_plane.wait_registered().await;
        let mut installed = Self {
            cluster,
            control_plane,
            id,
            pod: Value::Null,
        };
        installed.works("").await;
        Ok(installed)
    }

    /// Waits until a pod other than the one named `not` is ready, beats, is linked, and carries bytes through each
    /// forward.
    async fn works(&mut self, not: &str) {
        self.pod = self.cluster.ready_pod(not).await;
        let (control_plane, id) = (&self.control_plane, self.id.as_str());
        control_plane.wait_heartbeats(id, 1).await;
        control_plane.wait_link(id).await;
        for forward in FORWARDS {
            eventually(forward, || async {
                through_forward(control_plane, id, forward).await.ok()
            })
            .await;
        }
    }

    fn name(&self) -> &str {
        self.pod["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The agent's id; fails unless there is exactly one cluster.
    fn one_agent(&self) -> Result<String> {
        let clusters = self.control_plane.clusters();
        let [cluster] = clusters.as_slice() else {
            bail!("one installation is one cluster: {clusters:?}")
        };
        Ok(cluster.agent_id.clone())
    }
}

/// Runs a scenario; if it fails, what the containers said is printed. Afterwards nothing is installed.
async fn told(scenario: impl Future<Output = Result<()>>) -> Result<()> {
    let result = AssertUnwindSafe(scenario).catch_unwind().await;
    let cluster = RealCluster::running().await?;
    if !matches!(result, Ok(Ok(()))) {
        println!("{}", cluster.story().await);
    }
    cluster.uninstall().await?;
    match result {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
