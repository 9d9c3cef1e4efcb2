//! `kubectl proxy`, the peer of k8s-proxy.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::lab::Lab;

/// Starts it on a port of its own choice, which it tells; it ends when dropped.
pub(super) async fn proxy(lab: &Lab) -> Result<(Child, u16)> {
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(&lab.kubeconfig)
        .args(["proxy", "--port", "0"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("kubectl is not in PATH")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??;
    let line = line.context("kubectl proxy said nothing")?;
    let port = line.rsplit(':').next().and_then(|port| port.trim().parse().ok());
    Ok((child, port.with_context(|| format!("no port in {line:?}"))?))
}
