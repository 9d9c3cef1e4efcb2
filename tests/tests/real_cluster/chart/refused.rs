//! A first registration that is refused: the sentence that says what to do is where `kubectl describe` shows it.

use anyhow::{Context as _, Result, ensure};
use harness::{cluster::restarts, pod::Part, wait::eventually};

use super::{Installed, told};

const WRONG: &str = "not-the-token-of-this-control-plane";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_ends_with_the_sentence_in_the_pod() -> Result<()> {
    told(async {
        let (cluster, control_plane) = Installed::prepare().await?;
        cluster
            .install(
                &control_plane,
                &["--set-string", &format!("config.pipeops.token={WRONG}")],
            )
            .await?;
        let name = Part::Core.name();
        let ((status, pod), _) = eventually("CrashLoopBackOff of agent-core", || async {
            let pods = cluster.pods().await.ok()?;
            let pod = pods.first()?;
            let all = pod["status"]["containerStatuses"].as_array()?;
            let status = all.iter().find(|status| status["name"] == name)?;
            (status["state"]["waiting"]["reason"] == "CrashLoopBackOff")
                .then(|| (status.clone(), pod.clone()))
        })
        .await;
        let ended = &status["lastState"]["terminated"];
        let said = ended["message"].as_str().context("no termination message")?;
        println!("refused: {}", said.trim());
        ensure!(ended["exitCode"] == 1, "exit code 1, not {ended}");
        ensure!(
            said.contains("401") && said.to_lowercase().contains("token"),
            "what to do is missing in: {said}"
        );
        ensure!(!said.contains(WRONG), "the token was printed");
        for part in [Part::Tunnel, Part::Proxy] {
            let count = restarts(&pod).get(part.name()).copied();
            ensure!(count == Some(0), "{} was restarted {count:?} times", part.name());
        }
        ensure!(control_plane.clusters().is_empty(), "nothing is registered");
        Ok(())
    })
    .await
}
