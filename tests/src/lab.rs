//! A control plane, a cluster and our pod, wired together: what a scenario starts from.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::{
    control_plane::{ControlPlane, ControlPlaneConfig},
    kubernetes::{Simulation, SimulationConfig},
    pod::{Kubernetes, Part, Pod, PodConfig},
};

/// The token that labs register with.
pub const TOKEN: &str = "lab-agent-token";

/// Where they keep it in the simulation, as the chart does.
const NAMESPACE: &str = "pipeops-system";

/// Where labs on a real cluster keep the agent's state: not where a chart may be installed.
const REAL_NAMESPACE: &str = "pipeops-lab";

/// The cluster that a lab manages.
#[derive(Debug)]
pub enum Cluster {
    /// The simulated Kubernetes API, in this process.
    Simulated(Box<Simulation>),
    /// A real kube-apiserver, through its admin's kubeconfig.
    Real(PathBuf),
}

impl Cluster {
    /// A simulated cluster whose workload lives only when it is stepped.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn simulated() -> Result<Self> {
        let config = SimulationConfig {
            seed: 7,
            tick: None,
            ..SimulationConfig::default()
        };
        Ok(Self::Simulated(Box::new(Simulation::start(config).await?)))
    }

    /// The simulation, where it is one.
    ///
    /// # Errors
    /// When the cluster is real.
    pub fn simulation(&self) -> Result<&Simulation> {
        match self {
            Self::Simulated(simulation) => Ok(simulation),
            Self::Real(_) => bail!("this scenario needs the simulated cluster"),
        }
    }

    fn kubeconfig(&self, dir: &Path) -> Result<PathBuf> {
        match self {
            Self::Real(path) => Ok(path.clone()),
            Self::Simulated(simulation) => {
                let path = dir.join("cluster.kubeconfig");
                simulation.kubeconfig(&path)?;
                Ok(path)
            }
        }
    }
}

/// Everything a scenario needs; all of it ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    /// The reference control plane with a real chisel server.
    pub control_plane: ControlPlane,
    /// The cluster.
    pub cluster: Cluster,
    /// Our three processes.
    pub pod: Pod,
    /// The cluster's own kubeconfig, to look at the truth directly.
    pub kubeconfig: PathBuf,
    dir: TempDir,
}

impl Drop for Lab {
    /// A scenario that failed leaves what the processes said: printed when it panicked, and kept as files when
    /// `PIPEOPS_KEEP_LABS` is set.
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.pod.logs());
        }
        if std::env::var_os("PIPEOPS_KEEP_LABS").is_some() {
            self.dir.disable_cleanup(true);
            println!("kept: {}", self.dir.path().display());
        }
    }
}

impl Lab {
    /// Control plane and cluster run, the pod is prepared and not started.
    ///
    /// # Errors
    /// When a peer is missing or cannot be started.
    pub async fn prepare(cluster: Cluster) -> Result<Self> {
        Self::with(cluster, ControlPlaneConfig::new(TOKEN), |config| config).await
    }

    /// The same with a changed control plane and pod.
    ///
    /// # Errors
    /// When a peer is missing or cannot be started.
    pub async fn with(
        cluster: Cluster,
        control_plane: ControlPlaneConfig,
        change: impl FnOnce(PodConfig) -> PodConfig,
    ) -> Result<Self> {
        runtime::tls::install_provider();
        let dir = crate::folder::private("pipeops-lab-")?;
        let kubeconfig = cluster.kubeconfig(dir.path())?;
        if let Cluster::Real(_) = cluster {
            prepare_state(&kubeconfig)?;
        }
        let control_plane = ControlPlane::start(control_plane).await?;
        let mut pod = PodConfig::new(
            control_plane.api_url(),
            control_plane.token(),
            Kubernetes::Kubeconfig(kubeconfig.clone()),
        );
        if let Cluster::Real(_) = cluster {
            for name in ["PIPEOPS_STATE_NAMESPACE", "PIPEOPS_POD_NAMESPACE"] {
                pod = pod.env(Part::Core, name, REAL_NAMESPACE);
            }
        }
        let pod = change(pod);
        let pod = Pod::prepare(pod, &dir.path().join("pod"))?;
        if let Cluster::Simulated(simulation) = &cluster {
            empty_state(simulation)?;
        }
        Ok(Self {
            control_plane,
            cluster,
            pod,
            kubeconfig,
            dir,
        })
    }

    /// Everything runs: registered, beating, proxy dialled in, forwards listening.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub async fn running(cluster: Cluster) -> Result<(Self, String)> {
        let mut lab = Self::prepare(cluster).await?;
        let id = lab.start().await?;
        Ok((lab, id))
    }

    /// Starts the pod and waits until all of it works; returns the cluster's id.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub async fn start(&mut self) -> Result<String> {
        for part in Part::ALL {
            self.pod.start_part(part)?;
        }
        let id = self.control_plane.wait_registered().await;
        self.control_plane.wait_heartbeats(&id, 1).await;
        self.control_plane.wait_link(&id).await;
        self.control_plane.wait_forward(&id, "k8s-proxy").await;
        Ok(id)
    }

    /// A folder for the scenario's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `kubectl` against the front of the control plane, as a person far away would type it.
    ///
    /// # Errors
    /// When kubectl cannot be run or fails; the error holds what it printed.
    pub async fn kubectl(&self, cluster: &str, args: &[&str]) -> Result<String> {
        let path = self.front_kubeconfig(cluster)?;
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        tokio::task::spawn_blocking(move || kubectl(&path, &args)).await?
    }

    /// Writes the kubeconfig of the front.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn front_kubeconfig(&self, cluster: &str) -> Result<PathBuf> {
        let path = self.dir.path().join("front.kubeconfig");
        std::fs::write(&path, self.control_plane.kubeconfig(cluster))?;
        Ok(path)
    }
}

/// Runs kubectl and returns its standard output.
///
/// # Errors
/// When it fails; the error holds what it printed.
pub fn kubectl<S: AsRef<std::ffi::OsStr>>(kubeconfig: &Path, args: &[S]) -> Result<String> {
    let output: Output = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        .output()
        .context("kubectl is not in PATH")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "kubectl failed: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// What the chart creates for the agent: the empty Secret and the Lease.
///
/// # Errors
/// When the simulation refuses them.
pub fn empty_state(simulation: &Simulation) -> Result<()> {
    for (plural, object) in state_objects(NAMESPACE) {
        simulation
            .create(plural, NAMESPACE, object)
            .map_err(|status| anyhow::anyhow!("creating the state {plural}: {status:?}"))?;
    }
    Ok(())
}

/// The same on a real cluster, and nothing that an earlier lab left behind.
fn prepare_state(kubeconfig: &Path) -> Result<()> {
    let namespace = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": REAL_NAMESPACE}
    });
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().display().to_string();
    std::fs::write(&path, namespace.to_string())?;
    kubectl(kubeconfig, &["apply", "-f", &path])?;
    kubectl(
        kubeconfig,
        &["delete", "secret,lease", "--all", "-n", REAL_NAMESPACE],
    )?;
    let ours = "metadata.name!=kube-root-ca.crt";
    kubectl(
        kubeconfig,
        &["delete", "configmap", "-n", "default", "--field-selector", ours],
    )?;
    let objects = state_objects(REAL_NAMESPACE)
        .into_iter()
        .map(|(_, object)| object);
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects.collect::<Vec<_>>()});
    std::fs::write(&path, list.to_string())?;
    kubectl(kubeconfig, &["create", "-f", &path])?;
    Ok(())
}

fn state_objects(namespace: &str) -> [(&'static str, serde_json::Value); 2] {
    let metadata = serde_json::json!({"name": "pipeops-agent-state", "namespace": namespace});
    [
        (
            "secrets",
            serde_json::json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}),
        ),
        (
            "leases",
            serde_json::json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "pipeops-agent", "namespace": namespace}, "spec": {}
            }),
        ),
    ]
}
