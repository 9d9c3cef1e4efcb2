//! One installation is one cluster for the control plane, whatever happens to its pods and to the release.

use anyhow::{Context as _, Result, ensure};
use harness::{cluster::STATE_SECRET, wait::eventually};

use super::{Installed, told};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_identity_outlives_upgrade_pod_and_release() -> Result<()> {
    told(async {
        let mut installed = Installed::new().await?;
        let agent = installed.one_agent()?;
        let state = installed.cluster.json(&["secret", STATE_SECRET]).await?;
        ensure!(
            state["data"].as_object().is_some_and(|data| !data.is_empty()),
            "no state in the Secret: {state}"
        );

        let old = installed.name().to_owned();
        installed
            .cluster
            .install(
                &installed.control_plane,
                &["--set", "config.agent.labels.step=upgraded"],
            )
            .await?;
        installed.works(&old).await;
        ensure!(
            installed.one_agent()? == agent,
            "another agent after helm upgrade"
        );

        let old = installed.name().to_owned();
        installed
            .cluster
            .here(&["delete", "pod", &old, "--wait=true"])
            .await?;
        installed.works(&old).await;
        ensure!(installed.one_agent()? == agent, "another agent in a new pod");

        installed.cluster.uninstall().await?;
        let last = installed
            .control_plane
            .heartbeats(&installed.id)
            .pop()
            .context("heartbeats")?;
        ensure!(last.body["status"] == "disconnected", "no goodbye: {}", last.body);
        let kept = installed
            .cluster
            .json(&["secret", STATE_SECRET])
            .await
            .context("the state must stay")?;
        ensure!(
            kept["data"].as_object().is_some_and(|data| !data.is_empty()),
            "the state was emptied: {kept}"
        );
        let left = installed
            .cluster
            .here(&[
                "get",
                "deploy,pods,services,configmaps,rolebindings",
                "-o",
                "name",
            ])
            .await?;
        let ours: Vec<_> = left.lines().filter(|name| name.contains("pipeops")).collect();
        ensure!(ours.is_empty(), "uninstalled, and still there: {ours:?}");

        installed.cluster.install(&installed.control_plane, &[]).await?;
        installed.works(&old).await;
        ensure!(
            installed.one_agent()? == agent,
            "another agent after uninstall and install"
        );
        let hinted = installed.control_plane.attempts();
        println!(
            "one agent over upgrade, new pod, uninstall and install; {} registrations in all",
            hinted.len()
        );
        let (beat, _) = eventually("an active heartbeat", || async {
            let beat = installed.control_plane.heartbeats(&installed.id).pop()?;
            (beat.body["status"] == "active").then_some(beat)
        })
        .await;
        ensure!(beat.body["agent_id"] == agent.as_str(), "{}", beat.body);
        Ok(())
    })
    .await
}
