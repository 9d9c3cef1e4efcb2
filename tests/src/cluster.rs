//! The real single-node Kubernetes of `make cluster-up`, and the chart installed on it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    control_plane::{ControlPlane, ControlPlaneConfig},
    lab::kubectl,
    peers,
    wait::eventually,
};

/// Namespace of every installation of the chart in tests and demo.
pub const NAMESPACE: &str = "pipeops-system";
/// Name of the release, and so of its Deployment.
pub const RELEASE: &str = "pipeops-agent";
/// Secret that holds the agent's identity.
pub const STATE_SECRET: &str = "pipeops-agent-state";

/// A running cluster, known by its state folder.
#[derive(Clone, Debug)]
pub struct RealCluster {
    env: BTreeMap<String, String>,
}

impl RealCluster {
    /// The cluster that runs.
    ///
    /// # Errors
    /// When none runs; the error says what to type.
    pub async fn running() -> Result<Self> {
        let output = script("cluster/status", &["--env"]).await?;
        ensure!(
            output.status.success(),
            "no real cluster runs: `make cluster-up` starts one"
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let env = pairs.map(|(name, value)| (name.to_owned(), value.trim_matches(['"', '\'']).to_owned()));
        Ok(Self { env: env.collect() })
    }

    fn get(&self, name: &str) -> Result<&str> {
        self.env
            .get(name)
            .map(String::as_str)
            .with_context(|| format!("the cluster has no {name}"))
    }

    /// The admin's kubeconfig.
    ///
    /// # Errors
    /// When the state folder is not complete.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        self.get("KUBECONFIG").map(PathBuf::from)
    }

    /// Address of this machine that pods can dial.
    ///
    /// # Errors
    /// When the state folder is not complete.
    pub fn host_address(&self) -> Result<IpAddr> {
        Ok(self.get("CLUSTER_HOST_ADDRESS")?.parse()?)
    }

    /// A control plane that pods of the cluster can dial: API and chisel with TLS by an authority of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn control_plane(&self, token: &str) -> Result<ControlPlane> {
        let host = self.host_address()?;
        let mut config = ControlPlaneConfig::new(token);
        config.listen = (host, 0).into();
        config.front_listen = Some((host, 0).into());
        config.public_host = host.to_string();
        config.tls = true;
        config.chisel_tls = true;
        ControlPlane::start(config).await
    }

    /// kubectl as the admin.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let path = self.kubeconfig()?;
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        tokio::task::spawn_blocking(move || kubectl(&path, &args)).await?
    }

    /// kubectl as the admin, in the namespace of the chart.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn here(&self, args: &[&str]) -> Result<String> {
        self.kubectl(&[&["-n", NAMESPACE], args].concat()).await
    }

    /// One or more objects as JSON.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.here(&[&["get", "-o", "json"], args].concat()).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Creates or changes one object.
    ///
    /// # Errors
    /// When the cluster refuses it.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), object.to_string())?;
        self.here(&["apply", "-f", &file.path().display().to_string()])
            .await
            .map(drop)
    }

    /// `kill -9` of the main process of one container.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn kill_container(&self, pod: &str, container: &str) -> Result<()> {
        run("cluster/kill-container", &[NAMESPACE, pod, container])
            .await
            .map(drop)
    }

    /// Ends the apiserver and starts it again; returns when it is ready.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart_apiserver(&self, args: &[&str]) -> Result<()> {
        run("cluster/restart-apiserver", args).await.map(drop)
    }

    /// What a command prints that runs on the node.
    ///
    /// # Errors
    /// When it fails.
    pub async fn inside(&self, args: &[&str]) -> Result<String> {
        run("cluster/inside", args).await
    }

    /// helm against this cluster.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(peers::path("helm")?);
        command.arg("--kubeconfig").arg(self.kubeconfig()?).args(args);
        let output = command.output().await.context("running helm")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "helm: {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }
}

// === The chart ===

impl RealCluster {
    /// Installs the chart for one control plane, with the images of `make images`, or changes what is installed;
    /// `more` are further `helm` arguments.
    ///
    /// # Errors
    /// When helm refuses, or the namespace cannot be made.
    pub async fn install(&self, control_plane: &ControlPlane, more: &[&str]) -> Result<String> {
        self.make_namespace().await?;
        let values = tempfile::NamedTempFile::new()?;
        std::fs::write(values.path(), values_for(control_plane).to_string())?;
        let chart = root().join("helm/pipeops-agent").display().to_string();
        let values = values.path().display().to_string();
        let mut args = vec![
            "upgrade",
            "--install",
            RELEASE,
            chart.as_str(),
            "-n",
            NAMESPACE,
            "-f",
            &values,
        ];
        args.extend_from_slice(more);
        self.helm(&args).await
    }

    /// The namespace, as strict as Kubernetes knows.
    ///
    /// # Errors
    /// When the cluster refuses it.
    pub async fn make_namespace(&self) -> Result<()> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let metadata = json!({"name": NAMESPACE, "labels": labels});
        self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
            .await
    }

    /// Uninstalls the chart and waits until its pods are gone; what the chart keeps stays.
    ///
    /// # Errors
    /// When helm or kubectl fail.
    pub async fn uninstall(&self) -> Result<()> {
        self.helm(&[
            "uninstall",
            RELEASE,
            "-n",
            NAMESPACE,
            "--ignore-not-found",
            "--wait",
        ])
        .await?;
        let wait = [
            "wait",
            "--for=delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=pipeops-agent",
            "--timeout=60s",
        ];
        self.here(&wait).await.map(drop)
    }

    /// Uninstalls the chart and removes its namespace with everything in it.
    ///
    /// # Errors
    /// When helm or kubectl fail.
    pub async fn remove(&self) -> Result<()> {
        self.uninstall().await?;
        self.kubectl(&[
            "delete",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--wait=true",
        ])
        .await?;
        Ok(())
    }

    /// The agent's pods that are not being deleted.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn pods(&self) -> Result<Vec<Value>> {
        let list = self
            .json(&["pods", "-l", "app.kubernetes.io/name=pipeops-agent"])
            .await?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        Ok(pods
            .into_iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .collect())
    }

    /// Waits for the agent's one pod with all its containers ready, other than the pod named `not`.
    ///
    /// # Panics
    /// When the patience of the tests runs out.
    pub async fn ready_pod(&self, not: &str) -> Value {
        let ready = || async {
            let pods = self.pods().await.ok()?;
            let [pod] = pods.as_slice() else { return None };
            let containers = pod["status"]["containerStatuses"].as_array()?;
            let ready = containers.len() == 3 && containers.iter().all(|one| one["ready"] == true);
            (ready && pod["metadata"]["name"] != not).then(|| pod.clone())
        };
        eventually("the agent's pod to be ready", ready).await.0
    }

    /// What every container of the agent's pods says, for the message of a failed assertion.
    pub async fn story(&self) -> String {
        let pods = self
            .here(&["get", "pods", "-o", "wide"])
            .await
            .unwrap_or_default();
        let selector = "app.kubernetes.io/name=pipeops-agent";
        let logs = [
            "logs",
            "-l",
            selector,
            "--all-containers",
            "--prefix",
            "--tail=60",
            "--ignore-errors",
        ];
        format!(
            "{pods}\n{}",
            self.here(&logs).await.unwrap_or_else(|error| error.to_string())
        )
    }
}

/// Name of an object.
///
/// # Errors
/// When it has none.
pub fn name(object: &Value) -> Result<&str> {
    object["metadata"]["name"]
        .as_str()
        .context("an object without a name")
}

/// How often each container of a pod was restarted.
pub fn restarts(pod: &Value) -> BTreeMap<String, u64> {
    let statuses = pod["status"]["containerStatuses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let pair = |status: &Value| {
        Some((
            status["name"].as_str()?.to_owned(),
            status["restartCount"].as_u64()?,
        ))
    };
    statuses.iter().filter_map(pair).collect()
}

fn values_for(control_plane: &ControlPlane) -> Value {
    json!({
        "image": {"tag": "dev", "pullPolicy": "Never"},
        "caBundle": control_plane.ca_pem(),
        "config": {
            "pipeops": {"api_url": control_plane.api_url(), "token": control_plane.token()},
            "agent": {"cluster_name": "real-lab", "heartbeat_interval": "1s"},
            "tunnel": {"poll_interval": "1s"},
        },
    })
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_owned)
}

async fn script(name: &str, args: &[&str]) -> Result<Output> {
    let path = root().join("tests").join(name);
    Command::new(&path)
        .args(args)
        .output()
        .await
        .with_context(|| format!("running {}", path.display()))
}

async fn run(name: &str, args: &[&str]) -> Result<String> {
    let output = script(name, args).await?;
    if !output.status.success() {
        bail!(
            "{name} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
