//! The kill table: any one process is killed without the others noticing.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::time::Instant;

use super::observer::{Observer, through_forward};
use crate::{
    control_plane::ControlPlane,
    lab::{Cluster, Lab},
    pod::Part,
    wait::eventually,
};

/// Kills one process with signal 9 while a watch streams, forwards carry bytes and heartbeats run.
///
/// # Errors
/// When something else breaks, or does not come back.
pub async fn one(cluster: Cluster, victim: Part) -> Result<()> {
    let (mut lab, id) = Lab::running(cluster).await?;
    let mut observer = Observer::start(&lab.control_plane, &id, lab.kubeconfig.clone()).await?;
    let name = |step: &str| format!("kill-{}-{step}", victim.name());
    observer.sees(&name("before")).await?;
    for forward in ["agent-http", "k8s-proxy"] {
        eventually(forward, || async {
            through_forward(&lab.control_plane, &id, forward).await.ok()
        })
        .await;
    }
    let others: Vec<Part> = Part::ALL.into_iter().filter(|part| *part != victim).collect();
    let mut pids = Vec::new();
    for part in &others {
        pids.push(lab.pod.process(*part)?.pid());
    }

    lab.pod.kill(victim).await?;
    let mut lines = Vec::new();
    let cp = &lab.control_plane;
    match victim {
        Part::Core => {
            through_forward(cp, &id, "k8s-proxy")
                .await
                .context("the forward must go on without agent-core")?;
            lines.push("forward k8s-proxy carried on".to_owned());
            observer.sees(&name("down")).await?;
            lines.push("the watch went on".to_owned());
        }
        Part::Tunnel => {
            cp.wait_heartbeats(&id, 2).await;
            lines.push("heartbeats went on".to_owned());
            observer.sees(&name("down")).await?;
            lines.push("the watch went on".to_owned());
        }
        Part::Proxy => {
            let took = told_by_heartbeat(cp, &id, victim).await;
            lines.push(format!("a heartbeat said so after {took:?}"));
            through_forward(cp, &id, "agent-http")
                .await
                .context("the forward must go on without k8s-proxy")?;
            lines.push("forward agent-http carried on".to_owned());
            observer.create(&name("down")).await?;
        }
    }

    let back = Instant::now();
    lab.pod.start_part(victim)?;
    let cp = &lab.control_plane;
    cp.wait_heartbeats(&id, 1).await;
    lines.push(format!("heartbeats after {:?}", back.elapsed()));
    observer.sees(&name("after")).await?;
    lines.push(format!("watch after {:?}", back.elapsed()));
    for forward in ["agent-http", "k8s-proxy"] {
        eventually(forward, || async { through_forward(cp, &id, forward).await.ok() }).await;
    }
    lines.push(format!("forwards after {:?}", back.elapsed()));
    println!("kill -9 {}: {}", victim.name(), lines.join("; "));

    let counts = observer.counts();
    for step in ["before", "down", "after"] {
        ensure!(
            counts.get(&name(step)) == Some(&1),
            "{step} was seen {:?} times",
            counts.get(&name(step))
        );
    }
    for (part, pid) in others.iter().zip(pids) {
        ensure!(
            lab.pod.process(*part)?.running(),
            "{} ended too:\n{}",
            part.name(),
            lab.pod.log(*part)
        );
        ensure!(lab.pod.process(*part)?.pid() == pid);
    }
    ensure!(lab.control_plane.clusters().len() == 1, "one pod is one cluster");
    Ok(())
}

/// Waits until a heartbeat calls the container unknown or not ready.
pub async fn told_by_heartbeat(control_plane: &ControlPlane, id: &str, victim: Part) -> std::time::Duration {
    let (_, took) = eventually("a heartbeat that says so", || async {
        let beat = control_plane.heartbeats(id).pop()?;
        let containers = beat.body["agent"]["containers"].as_array()?.clone();
        let said = containers
            .iter()
            .find(|container| container["name"] == victim.name())?;
        let fine = said["known"] == Value::Bool(true) && said["ready"] == Value::Bool(true);
        (!fine).then_some(())
    })
    .await;
    took
}
