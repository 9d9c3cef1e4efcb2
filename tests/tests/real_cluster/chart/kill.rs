//! The kill table by container: SIGKILL from the node, a fresh pod for each, the kubelet restarts it.

use tokio::time::Instant;

use anyhow::{Result, ensure};
use harness::{
    cluster::restarts,
    pod::Part,
    scenarios::{carrier::Carrier, observer::Observer},
    wait::eventually,
};
use serde_json::Value;

use super::{Installed, told};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_one_container_is_killed_without_the_others_noticing() -> Result<()> {
    told(async {
        let mut installed = Installed::new().await?;
        let agent = installed.one_agent()?;
        for (number, victim) in Part::ALL.into_iter().enumerate() {
            if number > 0 {
                // The kubelet backs off on a container that it restarted before: each case has a pod of its own.
                let old = installed.name().to_owned();
                installed
                    .cluster
                    .here(&["delete", "pod", &old, "--wait=true"])
                    .await?;
                installed.works(&old).await;
            }
            one(&installed, victim).await?;
            if victim == Part::Proxy {
                told_while_it_is_away(&installed, victim).await?;
            }
            ensure!(
                installed.one_agent()? == agent,
                "another agent after killing {}",
                victim.name()
            );
        }
        Ok(())
    })
    .await
}

async fn one(installed: &Installed, victim: Part) -> Result<()> {
    let (cluster, control_plane, id) = (
        &installed.cluster,
        &installed.control_plane,
        installed.id.as_str(),
    );
    let mut observer = Observer::start(control_plane, id, cluster.kubeconfig()?).await?;
    let core = Carrier::start(control_plane, id, "agent-http").await?;
    let proxy = Carrier::start(control_plane, id, "k8s-proxy").await?;
    let name = |step: &str| format!("pod-kill-{}-{step}", victim.name());
    observer.sees(&name("before")).await?;
    let registrations = control_plane.attempts().len();

    let start = Instant::now();
    cluster.kill_container(installed.name(), victim.name()).await?;
    observer.create(&name("down")).await?;
    let mut lines = Vec::new();
    match victim {
        Part::Core => {
            proxy.carries(5).await;
            ensure!(
                proxy.connections() == 1,
                "forward k8s-proxy was cut without agent-core: {}",
                proxy.why()
            );
            lines.push("forward k8s-proxy carried on over its connection".to_owned());
        }
        Part::Tunnel => {
            control_plane.wait_heartbeats(id, 2).await;
            lines.push("heartbeats went on".to_owned());
        }
        Part::Proxy => {
            core.carries(5).await;
            ensure!(
                core.connections() == 1,
                "forward agent-http was cut without k8s-proxy: {}",
                core.why()
            );
            lines.push("forward agent-http carried on over its connection".to_owned());
        }
    }
    observer.sees(&name("down-too")).await?;
    lines.push(format!(
        "the watch showed the next change after {:?}",
        start.elapsed()
    ));

    let (pod, _) = eventually("the kubelet to start it again", || async {
        let pods = cluster.pods().await.ok()?;
        let [pod] = pods.as_slice() else { return None };
        let all = pod["status"]["containerStatuses"]
            .as_array()?
            .iter()
            .all(|one| one["ready"] == true);
        (all && restarts(pod).get(victim.name()) == Some(&1)).then(|| pod.clone())
    })
    .await;
    lines.push(format!("all containers ready after {:?}", start.elapsed()));
    control_plane.wait_heartbeats(id, 2).await;
    core.carries(2).await;
    proxy.carries(2).await;
    observer.sees(&name("after")).await?;
    lines.push(format!("everything back after {:?}", start.elapsed()));
    println!("kill container {}: {}", victim.name(), lines.join("; "));

    let counts = observer.counts();
    for step in ["before", "down", "down-too", "after"] {
        ensure!(
            counts.get(&name(step)) == Some(&1),
            "{step} was seen {:?} times",
            counts.get(&name(step))
        );
    }
    for part in Part::ALL {
        let expected = u64::from(part == victim);
        let count = restarts(&pod).get(part.name()).copied();
        ensure!(
            count == Some(expected),
            "{} was restarted {count:?} times\n{pod}",
            part.name()
        );
    }
    ensure!(pod["metadata"]["name"] == installed.name(), "another pod");
    ensure!(
        control_plane.attempts().len() == registrations,
        "a restarted container registers nothing again"
    );
    Ok(())
}

/// Killed a second time, a container stays away for the kubelet's back-off: longer than the pace of the heartbeats,
/// which say so. Then it comes back.
async fn told_while_it_is_away(installed: &Installed, victim: Part) -> Result<()> {
    let (control_plane, id) = (&installed.control_plane, installed.id.as_str());
    let seen = control_plane.cluster(id).map_or(0, |cluster| cluster.heartbeats);
    installed
        .cluster
        .kill_container(installed.name(), victim.name())
        .await?;
    let newest = || async {
        let count = control_plane.cluster(id)?.heartbeats;
        control_plane.heartbeats(id).pop().filter(|_| count > seen)
    };
    let says = || async { newest().await.filter(|beat| says_so(&beat.body, victim)) };
    let (beat, told) = eventually("a heartbeat that says so", says).await;
    let back = || async { newest().await.filter(|beat| !says_so(&beat.body, victim)) };
    let (_, back) = eventually("a heartbeat that says it is back", back).await;
    println!(
        "{} away: a heartbeat said so after {told:?}, that it is back after another {back:?}",
        victim.name()
    );
    println!("  {}", beat.body["agent"]["containers"]);
    Ok(())
}

/// Whether a heartbeat calls a container unknown or not ready.
fn says_so(beat: &Value, victim: Part) -> bool {
    let containers = beat["agent"]["containers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let said = containers
        .iter()
        .find(|container| container["name"] == victim.name());
    said.is_some_and(|said| said["known"] != true || said["ready"] != true)
}
