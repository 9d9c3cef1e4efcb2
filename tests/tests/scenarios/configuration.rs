//! Bad configuration is told all at once; a secret is never printed.

use anyhow::{Result, ensure};
use harness::{
    lab::{Cluster, Lab, TOKEN},
    pod::Part,
    process::Launch,
};

const CANARY: &str = "canary-5f1f0b1e-do-not-print";

async fn check(launch: Launch) -> Result<(Option<i32>, String)> {
    let mut process = launch.start()?;
    let status = process.ended().await?;
    Ok((status.code(), process.log()))
}

/// Three faults at once are three lines and exit code 64, in every binary.
#[tokio::test]
async fn three_faults_are_three_lines() -> Result<()> {
    for part in Part::ALL {
        let dir = tempfile::tempdir()?;
        let launch = Launch::new(part.name(), dir.path())
            .arg("check-config")
            .env("PIPEOPS_API_URL", "http://127.0.0.1:1")
            .env("PIPEOPS_TOKEN", CANARY)
            .env("PIPEOPS_CLUSTER_NAME", "lab")
            .env("PIPEOPS_KUBE_API", "https://127.0.0.1:1")
            .env("PIPEOPS_HTTP_LISTEN", "not an address")
            .env("PIPEOPS_DRAIN_TIMEOUT", "soon")
            .env("PIPEOPS_LOG_FORMAT", "xml");
        let (code, text) = check(launch).await?;
        ensure!(code == Some(64), "{}: exit code {code:?}\n{text}", part.name());
        for (name, value) in [
            ("HTTP_LISTEN", "not an address"),
            ("DRAIN_TIMEOUT", "soon"),
            ("LOG_FORMAT", "xml"),
        ] {
            let lines: Vec<_> = text
                .lines()
                .filter(|line| line.contains(name) && line.contains(value))
                .collect();
            ensure!(
                lines.len() == 1,
                "{}: {name} is told {} times in:\n{text}",
                part.name(),
                lines.len()
            );
        }
        ensure!(!text.contains(CANARY), "{} printed a secret", part.name());
    }
    Ok(())
}

/// A variable nobody knows is refused with the nearest name.
#[tokio::test]
async fn an_unknown_variable_names_the_nearest() -> Result<()> {
    for (part, wrong, near) in [
        (Part::Core, "PIPEOPS_CLUSTR_NAME", "PIPEOPS_CLUSTER_NAME"),
        (Part::Tunnel, "PIPEOPS_EDGE_DRI", "PIPEOPS_EDGE_DIR"),
        (Part::Proxy, "PIPEOPS_KUBECONFG", "PIPEOPS_KUBECONFIG"),
    ] {
        let dir = tempfile::tempdir()?;
        let launch = Launch::new(part.name(), dir.path())
            .arg("check-config")
            .env(wrong, "x");
        let (code, text) = check(launch).await?;
        ensure!(
            code == Some(64) && text.contains(wrong) && text.contains(near),
            "{}: {text}",
            part.name()
        );
    }
    Ok(())
}

/// `version` says what it is; nothing secret is in any log, file of addresses or answer, at level debug.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_printed() -> Result<()> {
    let (lab, id) = Lab::running(Cluster::simulated().await?).await?;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    let view = lab
        .control_plane
        .tunnel(&id)
        .map(|tunnel| format!("{tunnel:?}"))
        .unwrap_or_default();
    ensure!(!view.is_empty());
    let mut secrets = vec![TOKEN.to_owned()];
    for part in Part::ALL {
        secrets.push(lab.pod.operator_token(part)?);
    }
    for edge in ["edge-tunnel", "edge-proxy"] {
        secrets.push(std::fs::read_to_string(lab.pod.dir().join(edge).join("token"))?);
    }
    if let Ok(simulation) = lab.cluster.simulation() {
        secrets.push(simulation.admin_token().to_owned());
    }
    for part in Part::ALL {
        let http = lab.pod.ports.of(part).0;
        let mut texts = vec![lab.pod.log(part)];
        for path in ["/readyz", "/metrics", "/version"] {
            texts.push(reqwest::get(format!("http://{http}{path}")).await?.text().await?);
        }
        ensure!(
            texts.iter().all(|text| !text.is_empty()),
            "{} says nothing",
            part.name()
        );
        for secret in &secrets {
            let leak = texts
                .iter()
                .flat_map(|text| text.lines())
                .find(|line| line.contains(secret));
            ensure!(leak.is_none(), "{} printed a secret: {leak:?}", part.name());
        }
    }
    for part in Part::ALL {
        let dir = tempfile::tempdir()?;
        let (code, text) = check(Launch::new(part.name(), dir.path()).arg("version")).await?;
        ensure!(code == Some(0) && text.contains(part.name()), "{text}");
    }
    Ok(())
}
