//! Watches through the front while the agent's pod is replaced, and while its container is.

use anyhow::Result;
use harness::{
    lab::Cluster,
    scenarios::survive::{across, finish, link_name, recorders},
    wire::Target,
};

use super::{Installed, told};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_survive_helm_upgrade_and_a_killed_container() -> Result<()> {
    told(async {
        let mut installed = Installed::new().await?;
        let truth = Cluster::Real(installed.cluster.kubeconfig()?);
        let link = installed.control_plane.wait_link(&installed.id).await;
        let front = [(
            link_name(&link),
            Target::front(&installed.control_plane, &installed.id)?,
        )];
        let recording = recorders(&front).await?;
        let upgrade = async {
            let old = installed.name().to_owned();
            let change = ["--set", "config.agent.labels.step=watched"];
            installed
                .cluster
                .install(&installed.control_plane, &change)
                .await?;
            installed.works(&old).await;
            Ok(())
        };
        let mut rows = across(&truth, recording, "helm upgrade", 0, "upgrade", upgrade).await?;
        let recording = recorders(&front).await?;
        let link = installed.control_plane.wait_link(&installed.id).await;
        let kill = async {
            installed
                .cluster
                .kill_container(installed.name(), "k8s-proxy")
                .await?;
            link.closed().await;
            installed.control_plane.wait_link(&installed.id).await;
            Ok(())
        };
        let fault = "container k8s-proxy killed (-9)";
        rows.extend(across(&truth, recording, fault, 0, "killed", kill).await?);
        finish(&rows)
    })
    .await
}
