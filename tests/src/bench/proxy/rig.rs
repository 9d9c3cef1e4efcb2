//! What is measured: an apiserver, `kubectl proxy` in front of it, and our agent with everything switched on.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use tokio::process::Child;

use super::ways::{Door, Way};
use crate::{
    bench::{self, as_installed},
    control_plane::{ControlPlaneConfig, ProxyLink},
    kubernetes::{Fast, Simulation, SimulationConfig},
    lab::{Cluster, Lab, TOKEN, kubectl},
    pod::Part,
    wait::eventually,
    wire::Target,
};

/// Objects of the large list on a real cluster: so many of so many bytes.
const ITEMS: usize = 102;
const ITEM: usize = 100_000;

/// One apiserver and the ways to it.
pub(super) struct Rig {
    pub(super) lab: Lab,
    /// Before the names of figures.
    pub(super) name: &'static str,
    id: String,
    direct: Target,
    kubectl: Child,
    kubectl_address: SocketAddr,
}

impl Rig {
    /// The simulated apiserver, whose fast side is not the bottleneck.
    pub(super) async fn simulated() -> Result<Self> {
        let config = SimulationConfig {
            seed: 7,
            tick: None,
            fast: true,
            ..SimulationConfig::default()
        };
        let cluster = Cluster::Simulated(Box::new(Simulation::start(config).await?));
        Self::over("sim", cluster).await
    }

    /// A real apiserver, with namespace `bench` filled.
    pub(super) async fn real(kubeconfig: PathBuf) -> Result<Self> {
        let path = kubeconfig.clone();
        tokio::task::spawn_blocking(move || fill(&path)).await??;
        Self::over("real", Cluster::Real(kubeconfig)).await
    }

    async fn over(name: &'static str, cluster: Cluster) -> Result<Self> {
        let mut lab = Lab::with(cluster, ControlPlaneConfig::new(TOKEN), as_installed).await?;
        let id = lab.start().await?;
        let direct = Target::kubeconfig(&lab.kubeconfig)?;
        let (kubectl, port) = bench::kubectl::proxy(&lab).await?;
        Ok(Self {
            lab,
            name,
            id,
            direct,
            kubectl,
            kubectl_address: SocketAddr::from(([127, 0, 0, 1], port)),
        })
    }

    /// The fast side of the simulated apiserver.
    pub(super) fn fast(&self) -> Result<&Fast> {
        self.lab.cluster.simulation()?.fast()
    }

    /// An open link in one of the two languages. k8s-proxy dials for HTTP/2 by itself; for frames it is dialled once
    /// they are asked for, so that nothing is in its memory that is not measured.
    async fn link(&self, http2: bool) -> Result<Arc<ProxyLink>> {
        let open = || {
            let links = self.lab.control_plane.links(&self.id);
            links.into_iter().rev().find(|link| link.is_http2() == http2)
        };
        if !http2 && open().is_none() {
            let url = format!("ws://{}/ws/k8s", self.lab.pod.ports.door_http);
            self.lab.control_plane.dial_frames(&self.id, &url, TOKEN).await?;
        }
        Ok(eventually("a link", || async { open() }).await.0)
    }

    /// The way through one door.
    pub(super) async fn way(&self, door: Door) -> Result<Way> {
        Ok(match door {
            Door::Direct => Way::Target(self.direct.clone()),
            Door::Kubectl => Way::Target(Target::plain(self.kubectl_address, None)?),
            Door::Http => Way::Target(Target::plain(self.lab.pod.ports.door_http, Some(TOKEN))?),
            Door::V2 => Way::Link(self.link(true).await?),
            Door::V1 => Way::Link(self.link(false).await?),
        })
    }

    /// The process that a door belongs to.
    pub(super) fn pid(&mut self, door: Door) -> Result<Option<u32>> {
        match door {
            Door::Direct => Ok(None),
            Door::Kubectl => Ok(Some(self.kubectl.id().context("kubectl proxy runs")?)),
            Door::Http | Door::V2 | Door::V1 => self.proxy_pid().map(Some),
        }
    }

    /// k8s-proxy's process.
    pub(super) fn proxy_pid(&mut self) -> Result<u32> {
        self.lab.pod.process(Part::Proxy)?.pid().context("k8s-proxy runs")
    }

    /// A new k8s-proxy, so that nothing of what was measured before is in its memory.
    pub(super) async fn fresh(&mut self) -> Result<()> {
        let before = self.lab.control_plane.links(&self.id);
        self.lab.pod.kill(Part::Proxy).await?;
        for link in before {
            link.closed().await;
        }
        self.lab.pod.start_part(Part::Proxy)?;
        self.link(true).await?;
        let way = self.way(Door::Http).await?;
        eventually("the fresh k8s-proxy to serve", || async {
            let mut session = way.session().await.ok()?;
            session.get("/version").await.ok()
        })
        .await;
        Ok(())
    }
}

/// What the fast side has from the start.
fn fill(kubeconfig: &std::path::Path) -> Result<()> {
    let object = |name: String, bytes: usize| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "bench"}, "data": {"filling": "x".repeat(bytes)}
        })
    };
    kubectl(
        kubeconfig,
        &[
            "delete",
            "namespace",
            "bench",
            "--ignore-not-found",
            "--wait=true",
        ],
    )?;
    kubectl(kubeconfig, &["create", "namespace", "bench"])?;
    let mut items: Vec<_> = (0..ITEMS)
        .map(|number| object(format!("filling-{number:06}"), ITEM))
        .collect();
    items.push(object("small".to_owned(), 700));
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), list.to_string())?;
    kubectl(kubeconfig, &["create", "-f", &file.path().display().to_string()])?;
    Ok(())
}
