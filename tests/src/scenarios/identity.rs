//! Who the agent is survives everything that happens to it and to the control plane.

use anyhow::{Context as _, Result, ensure};

use crate::{
    control_plane::{Answer, Route, Times},
    lab::{Cluster, Lab},
    pod::Part,
    wait::eventually,
};

/// The text of `/readyz` of one part.
///
/// # Errors
/// When it does not answer.
pub async fn readyz(lab: &Lab, part: Part) -> Result<String> {
    let (http, _) = lab.pod.ports.of(part);
    Ok(reqwest::get(format!("http://{http}/readyz"))
        .await?
        .text()
        .await?)
}

/// Two starts in a row, and a third after the file copies are gone, keep one identity (R1, R2).
///
/// # Errors
/// When a part cannot be started.
pub async fn restarts_keep_one_identity(cluster: Cluster) -> Result<()> {
    let (mut lab, id) = Lab::running(cluster).await?;
    let agent = lab.control_plane.cluster(&id).context("registered")?.agent_id;
    for case in ["restart", "pod recreated: every emptyDir is new"] {
        lab.pod.terminate(Part::Core).await?;
        if case != "restart" {
            lab.pod.kill(Part::Proxy).await?;
            lab.pod.kill(Part::Tunnel).await?;
            for folder in [
                "edge-tunnel",
                "edge-proxy",
                "private-core",
                "private-tunnel",
                "private-proxy",
            ] {
                std::fs::remove_dir_all(lab.pod.dir().join(folder))?;
                std::fs::create_dir_all(lab.pod.dir().join(folder))?;
            }
            lab.pod.start_part(Part::Proxy)?;
            lab.pod.start_part(Part::Tunnel)?;
        }
        lab.pod.start_part(Part::Core)?;
        lab.control_plane.wait_heartbeats(&id, 2).await;
        let clusters = lab.control_plane.clusters();
        ensure!(
            clusters.len() == 1,
            "{case}: a second cluster appeared: {clusters:?}\n{}",
            lab.pod.logs()
        );
        ensure!(
            clusters.first().is_some_and(|known| known.agent_id == agent),
            "{case}: {clusters:?}"
        );
    }
    Ok(())
}

/// agent-core restarts while k8s-proxy is away: it beats again from its copy, as the same agent.
///
/// # Errors
/// When a part cannot be started.
pub async fn restarts_from_its_copy(cluster: Cluster) -> Result<()> {
    let (mut lab, id) = Lab::running(cluster).await?;
    let before = lab.control_plane.attempts().len();
    lab.pod.kill(Part::Proxy).await?;
    lab.pod.kill(Part::Core).await?;
    lab.pod.start_part(Part::Core)?;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    ensure!(
        lab.control_plane.attempts().len() == before,
        "a copy is as good as the Secret: no registration"
    );
    ensure!(lab.control_plane.clusters().len() == 1);
    Ok(())
}

/// With neither Secret nor copy within reach nothing is registered; it waits, says so, and goes on when it can.
///
/// # Errors
/// When a part cannot be started.
pub async fn registers_nothing_without_knowing_who_it_is(cluster: Cluster) -> Result<()> {
    let mut lab = Lab::prepare(cluster).await?;
    lab.pod.start_part(Part::Core)?;
    let (text, _) = eventually("the reason in /readyz", || async {
        readyz(&lab, Part::Core)
            .await
            .ok()
            .filter(|text| text.contains("k8s-proxy unreachable"))
    })
    .await;
    ensure!(text.starts_with("not ready"), "{text}");
    ensure!(
        lab.control_plane.attempts().is_empty(),
        "registered without knowing who it is"
    );
    ensure!(
        lab.pod.process(Part::Core)?.running(),
        "it waits, it does not end"
    );
    lab.pod.start_part(Part::Proxy)?;
    lab.control_plane.wait_registered().await;
    Ok(())
}

/// The control plane is down when the pod starts (R1), goes away later, and is redeployed.
///
/// # Errors
/// When a part cannot be started.
pub async fn outlives_outages_of_the_control_plane(cluster: Cluster) -> Result<()> {
    let mut lab = Lab::prepare(cluster).await?;
    lab.control_plane.down().await;
    for part in Part::ALL {
        lab.pod.start_part(part)?;
    }
    eventually("agent-core to say that the control plane is away", || async {
        readyz(&lab, Part::Core)
            .await
            .ok()
            .filter(|text| text.starts_with("not ready"))
    })
    .await;
    lab.control_plane.up().await?;
    let id = lab.control_plane.wait_registered().await;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    lab.control_plane.down().await;
    eventually("agent-core to notice the outage", || async {
        (lab.pod.log(Part::Core).matches("a heartbeat was missed").count() >= 3).then_some(())
    })
    .await;
    lab.control_plane.up().await?;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    lab.control_plane.redeploy();
    lab.control_plane.wait_heartbeats(&id, 2).await;
    lab.control_plane.wait_link(&id).await;
    ensure!(lab.control_plane.clusters().len() == 1);
    for part in Part::ALL {
        ensure!(
            lab.pod.process(part)?.running(),
            "{} did not outlive the outages",
            part.name()
        );
    }
    Ok(())
}

/// A first registration that is refused ends the process with one sentence, exit code 1.
///
/// # Errors
/// When a part cannot be started.
pub async fn first_refusal_ends_the_process(cluster: Cluster) -> Result<()> {
    let mut lab = Lab::prepare(cluster).await?;
    lab.control_plane
        .refuse(Route::Register, Answer::status(401), Times::Always);
    let termination = lab.dir().join("termination-log");
    lab.pod.config_mut().env.entry(Part::Core).or_default().insert(
        "PIPEOPS_TERMINATION_LOG".to_owned(),
        termination.display().to_string(),
    );
    lab.pod.start_part(Part::Proxy)?;
    lab.pod.start_part(Part::Core)?;
    let status = lab.pod.process(Part::Core)?.ended().await?;
    ensure!(status.code() == Some(1), "exit code 1, not {status}");
    let said = std::fs::read_to_string(&termination).context("the termination log")?;
    ensure!(
        said.contains("401") && said.to_lowercase().contains("token"),
        "what to do is missing in: {said}"
    );
    ensure!(
        !lab.pod.log(Part::Core).contains(crate::lab::TOKEN),
        "the token was printed"
    );
    Ok(())
}

/// Registered and then forgotten (R2): it registers once more with its id as a hint and goes on.
///
/// # Errors
/// When a part cannot be started.
pub async fn is_known_again_after_it_was_forgotten(cluster: Cluster) -> Result<()> {
    let (lab, id) = Lab::running(cluster).await?;
    let before = lab.control_plane.attempts().len();
    lab.control_plane.forget(&id)?;
    eventually("a registration with the old id as a hint", || async {
        let attempts = lab.control_plane.attempts();
        attempts
            .get(before..)?
            .iter()
            .find(|attempt| attempt.body["cluster_id"] == id.as_str())
            .map(|_| ())
    })
    .await;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    ensure!(
        lab.control_plane.clusters().len() == 1,
        "no duplicate: {:?}",
        lab.control_plane.clusters()
    );
    Ok(())
}

/// Registered and then refused: it stays up, says so, and comes back at once when the token file changes.
///
/// # Errors
/// When a part cannot be started.
pub async fn a_refused_agent_stays_and_comes_back(cluster: Cluster) -> Result<()> {
    let (mut lab, id) = Lab::running(cluster).await?;
    lab.control_plane.set_token("another-token");
    let (text, _) = eventually("condition Refused", || async {
        readyz(&lab, Part::Core)
            .await
            .ok()
            .filter(|text| text.starts_with("not ready") && text.contains("Refused"))
    })
    .await;
    ensure!(text.starts_with("not ready"), "{text}");
    ensure!(lab.pod.process(Part::Core)?.running());
    lab.pod.write_token("another-token")?;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    ensure!(lab.control_plane.clusters().len() == 1);
    Ok(())
}

/// A clean stop says goodbye: one last heartbeat, `disconnected`.
///
/// # Errors
/// When a part cannot be started.
pub async fn a_clean_stop_says_goodbye(cluster: Cluster) -> Result<()> {
    let (mut lab, id) = Lab::running(cluster).await?;
    let status = lab.pod.terminate(Part::Core).await?;
    ensure!(
        status.success(),
        "exit code 0, not {status}\n{}",
        lab.pod.log(Part::Core)
    );
    let last = lab.control_plane.heartbeats(&id).pop().context("heartbeats")?;
    ensure!(
        last.body["status"] == "disconnected",
        "last heartbeat: {}",
        last.body
    );
    Ok(())
}
