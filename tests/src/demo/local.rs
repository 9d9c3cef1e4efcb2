//! The three processes on this machine, with the cluster in `KUBECONFIG` or a simulated one.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::Commands;
use crate::{
    control_plane::{ControlPlane, ControlPlaneConfig},
    kubernetes::{Simulation, SimulationConfig},
    lab::empty_state,
    peers,
    pod::{Kubernetes, Part, Pod, PodConfig},
};

/// Bytes go through every forward this often, so that the agent's page shows it.
const PROVE_EVERY: Duration = Duration::from_secs(5);

/// The workload of the simulated cluster moves this often.
const TICK: Duration = Duration::from_secs(1);

/// Everything that runs for the demo.
pub(crate) struct Stage {
    pub(crate) control_plane: ControlPlane,
    pod: Pod,
    dir: TempDir,
    _simulation: Option<Simulation>,
}

impl Stage {
    pub(crate) async fn start() -> Result<Self> {
        let dir = crate::folder::private("pipeops-demo-")?;
        let given = std::env::var_os("KUBECONFIG")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        let (kubeconfig, simulation) = match given {
            Some(path) => {
                println!("cluster:       the one in KUBECONFIG ({})", path.display());
                (path, None)
            }
            None => {
                let config = SimulationConfig {
                    tick: Some(TICK),
                    ..SimulationConfig::default()
                };
                let simulation = Simulation::start(config).await?;
                empty_state(&simulation)?;
                let path = dir.path().join("cluster.kubeconfig");
                simulation.kubeconfig(&path)?;
                println!("cluster:       simulated, at {}", simulation.url());
                (path, Some(simulation))
            }
        };
        let token = runtime::secret::hex(&rand::random::<[u8; 16]>());
        let control_plane = ControlPlane::start(ControlPlaneConfig {
            prove_every: Some(PROVE_EVERY),
            ..ControlPlaneConfig::new(&token)
        })
        .await?;
        println!(
            "control plane: {} (its front for kubectl is https)",
            control_plane.api_url()
        );
        let mut config = PodConfig::new(control_plane.api_url(), token, Kubernetes::Kubeconfig(kubeconfig));
        config.cluster_name = "demo".to_owned();
        // Somebody's own cluster is left as it is: the identity then stays in a file.
        config.state_in_secret = simulation.is_some();
        let config = config
            .env(Part::Core, "PIPEOPS_HEARTBEAT_INTERVAL", "5s")
            .env(Part::Core, "PIPEOPS_TUNNEL_POLL_INTERVAL", "5s")
            .env(Part::Core, "PIPEOPS_LOG_LEVEL", "info")
            .env(Part::Tunnel, "PIPEOPS_LOG_LEVEL", "info")
            .env(Part::Proxy, "PIPEOPS_LOG_LEVEL", "info");
        let pod = Pod::start(config, &dir.path().join("pod"))?;
        println!(
            "agent:         agent-core, tunnel-sidecar, k8s-proxy; logs in {}\n",
            pod.dir().display()
        );
        Ok(Self {
            control_plane,
            pod,
            dir,
            _simulation: simulation,
        })
    }

    /// Waits for the first registered cluster.
    pub(crate) async fn registered(&self) -> String {
        self.control_plane.wait_registered().await
    }

    pub(crate) fn commands(&self, id: &str) -> Result<Commands> {
        let front = self.dir.path().join("kubeconfig");
        std::fs::write(&front, self.control_plane.kubeconfig(id))?;
        let kubectl = format!("kubectl --kubeconfig {}", front.display());
        let (ports, private) = (self.pod.ports, self.pod.dir().join("private-core/operator-token"));
        let mut lines = vec![
            ("the cluster, from outside", format!("{kubectl} get pods -A")),
            (
                "a live watch through the proxy",
                format!("{kubectl} get pods -A -w"),
            ),
            (
                "what the control plane was told",
                format!("curl -s {}/clusters", self.control_plane.api_url()),
            ),
            (
                "is it ready, and why not",
                format!("curl -s http://{}/readyz", ports.core_http),
            ),
            (
                "the page (sign in with the token below)",
                format!("http://{}/dashboard", ports.core_http),
            ),
            ("the operator's token", format!("cat {}", private.display())),
        ];
        let grpcurl = peers::path("grpcurl").context("grpcurl")?;
        let call = format!(
            "{} -plaintext -H \"authorization: Bearer $(cat {})\" {} pipeops.agent.v1.Core/GetAgent",
            grpcurl.display(),
            private.display(),
            ports.core_grpc
        );
        lines.push(("the local control API", call));
        Ok(Commands { lines })
    }

    /// Ends the processes as a kubelet would.
    pub(crate) async fn end(&mut self) {
        for part in Part::ALL {
            if let Err(error) = self.pod.terminate(part).await {
                println!("{} did not end well: {error:#}", part.name());
            }
        }
    }
}
