//! The three may start in any order.

use anyhow::{Result, ensure};
use tokio::time::Instant;

use crate::{
    lab::{Cluster, Lab},
    pod::Part::{self, Core, Proxy, Tunnel},
};

/// Every order in which a kubelet may start three containers.
pub const ORDERS: [[Part; 3]; 6] = [
    [Core, Tunnel, Proxy],
    [Core, Proxy, Tunnel],
    [Tunnel, Core, Proxy],
    [Tunnel, Proxy, Core],
    [Proxy, Core, Tunnel],
    [Proxy, Tunnel, Core],
];

/// Starts in one order, each only when the one before serves its probes; then all of it must work.
///
/// # Errors
/// When a part cannot be started.
pub async fn in_order(cluster: Cluster, order: [Part; 3]) -> Result<()> {
    let mut lab = Lab::prepare(cluster).await?;
    let start = Instant::now();
    for part in order {
        lab.pod.start_part(part)?;
        lab.pod.process(part)?.address("http").await?;
    }
    let id = lab.control_plane.wait_registered().await;
    lab.control_plane.wait_heartbeats(&id, 2).await;
    let link = lab.control_plane.wait_link(&id).await;
    for forward in ["kubernetes-api", "k8s-proxy", "agent-http"] {
        lab.control_plane.wait_forward(&id, forward).await;
    }
    let response = link.request(&crate::control_plane::Call::get("/version")).await?;
    ensure!(
        response.status == 200,
        "GET /version through the proxy: {response:?}"
    );
    let names: Vec<_> = order.iter().map(|part| part.name()).collect();
    println!(
        "start order {}: all of it works after {:?}",
        names.join(", "),
        start.elapsed()
    );
    ensure!(lab.control_plane.clusters().len() == 1, "one pod is one cluster");
    Ok(())
}
