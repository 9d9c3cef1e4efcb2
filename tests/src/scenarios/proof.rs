//! A tunnel is proven by bytes that went through it and came back, not by the belief of either side.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    control_plane::{ControlPlaneConfig, Vocabulary},
    lab::{Cluster, Lab},
    pod::Part,
    wait::eventually,
};

/// Between two probes of a forward.
const EVERY: Duration = Duration::from_millis(500);
const FORWARDS: [&str; 3] = ["agent-http", "k8s-proxy", "kubernetes-api"];

/// The control plane proves each forward; both sides say so, and no probe is taken for a connection of a user.
///
/// # Errors
/// When a part cannot be started or says something else.
pub async fn bytes_through_every_forward(cluster: Cluster) -> Result<()> {
    let control_plane = ControlPlaneConfig {
        prove_every: Some(EVERY),
        ..ControlPlaneConfig::new("the-token-of-this-proof")
    };
    let mut lab = Lab::with(cluster, control_plane, |config| config).await?;
    let id = lab.start().await?;
    let (_, took) = eventually("both sides to have seen bytes in every forward", async || {
        let view = lab.control_plane.tunnel(&id)?;
        let proven = view
            .forwards
            .iter()
            .filter(|forward| forward.proof.is_some())
            .count();
        (proven == FORWARDS.len()).then_some(())
    })
    .await;
    let sidecar = lab.pod.process(Part::Tunnel)?.address("http").await?;
    let ready = get(&sidecar, "/readyz").await?;
    ensure!(
        ready.contains("proven by bytes there and back through 3 of 3"),
        "readiness does not say it: {ready}"
    );
    let metrics = get(&sidecar, "/metrics").await?;
    for forward in FORWARDS {
        let age = format!("pipeops_tunnel_proof_age_seconds{{forward=\"{forward}\"}} ");
        let line = metrics.lines().find(|line| line.starts_with(&age));
        let seconds: i64 = line
            .and_then(|line| line.get(age.len()..))
            .context("no age")?
            .parse()?;
        ensure!((0..60).contains(&seconds), "{forward} was proven {seconds} s ago");
    }
    let view = lab.control_plane.tunnel(&id).context("no tunnel")?;
    println!("proven after {took:?}: {:?}", view.forwards);
    Ok(())
}

/// One plain request.
async fn get(address: &str, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A tunnel on demand closes when nothing moves, and a control plane that still wants it gets it back by asking.
///
/// # Errors
/// When a part cannot be started.
pub async fn silence_closes_and_the_next_answer_opens(cluster: Cluster) -> Result<()> {
    let control_plane = ControlPlaneConfig {
        vocabulary: Vocabulary::Older,
        poll_frequency: 1,
        ..ControlPlaneConfig::new("the-token-of-this-silence")
    };
    let mut lab = Lab::with(cluster, control_plane, |config| {
        config.env(Part::Core, "PIPEOPS_TUNNEL_INACTIVITY_TIMEOUT", "3s")
    })
    .await?;
    let id = lab.start().await?;
    let listening = async |wanted: bool| {
        let view = lab.control_plane.tunnel(&id)?;
        view.forwards
            .iter()
            .all(|forward| forward.listening == wanted)
            .then_some(())
    };
    eventually("the forwards", async || listening(true).await).await;
    let (_, closed) = eventually("the tunnel to close", async || listening(false).await).await;
    let (_, opened) = eventually("the tunnel to open", async || listening(true).await).await;
    println!("closed after {closed:?} of silence (3 s), open again {opened:?} later");
    Ok(())
}
