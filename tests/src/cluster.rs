//! The real single-node Kubernetes of `make cluster-up`, and the chart installed on it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{control_plane::ControlPlane, lab::kubectl, peers};

/// Namespace of every installation of the chart in tests and demo.
pub const NAMESPACE: &str = "pipeops-system";

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
    pub fn running() -> Result<Self> {
        let output = script("cluster/status", &["--env"])?;
        ensure!(output.status.success(), "no real cluster runs: `make cluster-up` starts one");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let env = pairs.map(|(name, value)| (name.to_owned(), value.trim_matches(['"', '\'']).to_owned()));
        Ok(Self { env: env.collect() })
    }

    fn get(&self, name: &str) -> Result<&str> {
        self.env.get(name).map(String::as_str).with_context(|| format!("the cluster has no {name}"))
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
    pub fn host_address(&self) -> Result<&str> {
        self.get("CLUSTER_HOST_ADDRESS")
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

    /// The agent's pods that are not being deleted.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn pods(&self) -> Result<Vec<Value>> {
        let selector = "app.kubernetes.io/name=pipeops-agent";
        let text = self.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json"]).await?;
        let list: Value = serde_json::from_str(&text)?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
    }

    /// `kill -9` of the main process of one container.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn kill_container(&self, pod: &str, container: &str) -> Result<()> {
        let (pod, container) = (pod.to_owned(), container.to_owned());
        let kill = move || script("cluster/kill-container", &[NAMESPACE, &pod, &container]);
        let output = tokio::task::spawn_blocking(kill).await??;
        ensure!(output.status.success(), "kill-container: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// helm against this cluster.
    ///
    /// # Errors
    /// When it fails; the error holds what it printed.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let (binary, config) = (peers::path("helm")?, self.kubeconfig()?);
        let output = tokio::process::Command::new(binary)
            .arg("--kubeconfig")
            .arg(config)
            .args(args)
            .output()
            .await
            .context("running helm")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "helm: {text}\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// Installs the chart for one control plane, with the images of `make images`; `more` are further `helm`
    /// arguments.
    ///
    /// # Errors
    /// When helm refuses, or the namespace cannot be made.
    pub async fn install(&self, control_plane: &ControlPlane, dir: &Path, more: &[&str]) -> Result<String> {
        let namespace = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        });
        let file = dir.join("namespace.json");
        std::fs::write(&file, namespace.to_string())?;
        self.kubectl(&["apply", "-f", &file.display().to_string()]).await?;
        let values = dir.join("values.yaml");
        std::fs::write(&values, values_for(control_plane)?)?;
        let chart = root().join("helm/pipeops-agent").display().to_string();
        let values = values.display().to_string();
        let mut args = vec!["upgrade", "--install", "pipeops-agent", chart.as_str(), "-n", NAMESPACE, "-f", &values];
        args.extend_from_slice(more);
        self.helm(&args).await
    }

    /// Uninstalls the chart and removes its namespace with everything in it.
    ///
    /// # Errors
    /// When helm or kubectl fail.
    pub async fn uninstall(&self) -> Result<()> {
        self.helm(&["uninstall", "pipeops-agent", "-n", NAMESPACE, "--ignore-not-found", "--wait"]).await?;
        self.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true"]).await?;
        Ok(())
    }
}

fn values_for(control_plane: &ControlPlane) -> Result<String> {
    let values = serde_json::json!({
        "image": {"tag": "dev", "pullPolicy": "Never"},
        "config": {
            "pipeops": {"api_url": control_plane.api_url(), "token": control_plane.token()},
            "agent": {"cluster_name": "real-lab"},
        },
        "ca": {"pem": control_plane.ca_pem()},
    });
    Ok(serde_json::to_string_pretty(&values)?)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

fn script(name: &str, args: &[&str]) -> Result<Output> {
    let path = root().join("tests").join(name);
    Command::new(&path).args(args).output().with_context(|| format!("running {}", path.display()))
}
