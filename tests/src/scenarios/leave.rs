//! The end of the pod: SIGTERM to all three at once, as the kubelet sends it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::{process::Command, task::JoinSet, time::Instant};

use crate::{
    kubernetes::{Fault, FaultKind},
    lab::{Cluster, Lab},
    pod::Part,
    wait::eventually,
};

/// agent-core tells the control plane first and leaves last: after tunnel-sidecar and k8s-proxy, which finish the call
/// that is open through both of them.
///
/// # Errors
/// When the order is another one.
pub async fn core_leaves_last(cluster: Cluster) -> Result<()> {
    let mut lab = Lab::prepare(cluster).await?;
    for part in Part::ALL {
        let env = lab.pod.config_mut().env.entry(part).or_default();
        env.insert("PIPEOPS_DRAIN_TIMEOUT".to_owned(), "60s".to_owned());
    }
    let id = lab.start().await?;
    let port = lab
        .control_plane
        .tunnel(&id)
        .and_then(|view| {
            view.forwards
                .iter()
                .find(|known| known.name == "k8s-proxy")
                .map(|known| known.port)
        })
        .context("the forward k8s-proxy")?;
    let faults = lab.cluster.simulation()?.faults();
    let stall = faults.add(Fault::new(FaultKind::StallRequests).path("/configmaps"));
    let call = reqwest::Client::new()
        .get(format!(
            "http://127.0.0.1:{port}/api/v1/namespaces/default/configmaps"
        ))
        .bearer_auth(lab.control_plane.token())
        .send();
    let mut calls = JoinSet::new();
    calls.spawn(call);
    let simulation = lab.cluster.simulation()?;
    eventually("the call is open at the apiserver", || async {
        let asked = simulation
            .requests()
            .find(|request| request.path.contains("/configmaps"));
        (!asked.is_empty()).then_some(())
    })
    .await;

    let mut pids = Vec::new();
    for part in Part::ALL {
        pids.push(lab.pod.process(part)?.pid().context("a process")?.to_string());
    }
    let told = Instant::now();
    ensure!(
        Command::new("kill")
            .arg("-TERM")
            .args(&pids)
            .status()
            .await?
            .success()
    );
    let (_, first) = eventually("a heartbeat that tells of the drain", || async {
        let beat = lab.control_plane.heartbeats(&id).pop()?;
        (beat.body["agent"]["draining"] == true && beat.body["status"] == "active").then_some(())
    })
    .await;
    for part in Part::ALL {
        ensure!(
            lab.pod.process(part)?.running(),
            "{} left an open call",
            part.name()
        );
    }
    lab.cluster.simulation()?.faults().remove(stall);
    let answer = calls.join_next().await.context("the call")???;
    ensure!(answer.status().is_success(), "the open call was finished");

    let mut left: Vec<(Part, Duration)> = Vec::new();
    eventually("the end of all three", || {
        for part in Part::ALL {
            let gone = lab.pod.process(part).is_ok_and(|process| !process.running());
            if gone && left.iter().all(|(known, _)| *known != part) {
                left.push((part, told.elapsed()));
            }
        }
        let done = left.len() == Part::ALL.len();
        async move { done.then_some(()) }
    })
    .await;
    let order: Vec<String> = left
        .iter()
        .map(|(part, after)| format!("{} after {after:?}", part.name()))
        .collect();
    println!("told after {first:?}; left: {}", order.join(", "));
    ensure!(
        left.last().is_some_and(|(part, _)| *part == Part::Core),
        "{order:?}"
    );
    for part in Part::ALL {
        let status = lab.pod.process(part)?.ended().await?;
        ensure!(
            status.success(),
            "{}: {status}\n{}",
            part.name(),
            lab.pod.log(part)
        );
    }
    let last = lab.control_plane.heartbeats(&id).pop().context("heartbeats")?;
    ensure!(
        last.body["status"] == "disconnected",
        "last heartbeat: {}",
        last.body
    );
    Ok(())
}
