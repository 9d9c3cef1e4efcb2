//! Looks at a lab from outside, all the time: a watch through the front, bytes through the forwards.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{control_plane::ControlPlane, lab::kubectl, wait::eventually};

/// A person's watch on the configmaps of namespace `default`, through the HTTPS front.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    truth: PathBuf,
    task: JoinSet<()>,
}

impl Observer {
    /// Opens the watch; `truth` is the cluster's own kubeconfig.
    ///
    /// # Errors
    /// When the front refuses the watch.
    pub async fn start(control_plane: &ControlPlane, cluster: &str, truth: PathBuf) -> Result<Self> {
        let client = front_client(control_plane)?;
        // List, then watch from the list's position, as kubectl and every informer do.
        let path = format!(
            "{}/api/v1/namespaces/default/configmaps",
            control_plane.front_url(cluster)
        );
        let list = client
            .get(format!("{path}?limit=1"))
            .bearer_auth(control_plane.front_token());
        let list: Value = list.send().await?.error_for_status()?.json().await?;
        let version = list["metadata"]["resourceVersion"]
            .as_str()
            .context("a list has a resourceVersion")?;
        let url = format!("{path}?watch=true&resourceVersion={version}");
        let response = client
            .get(url)
            .bearer_auth(control_plane.front_token())
            .send()
            .await?;
        ensure!(
            response.status().is_success(),
            "the watch was refused: {}",
            response.status()
        );
        let seen: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
        let (noted, mut task) = (Arc::clone(&seen), JoinSet::new());
        task.spawn(async move {
            let (mut body, mut buffer) = (response.bytes_stream(), Vec::new());
            while let Some(Ok(chunk)) = body.next().await {
                buffer.extend_from_slice(&chunk);
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line).expect("each line is one whole event");
                    if event["type"] == "ADDED" {
                        let name = event["object"]["metadata"]["name"]
                            .as_str()
                            .unwrap_or_default()
                            .to_owned();
                        *noted
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .entry(name)
                            .or_default() += 1;
                    }
                }
            }
        });
        Ok(Self { seen, truth, task })
    }

    /// Creates a configmap in the cluster itself and waits until the watch shows it.
    ///
    /// # Errors
    /// When it cannot be created or the watch has ended.
    pub async fn sees(&mut self, name: &str) -> Result<Duration> {
        self.create(name).await?;
        let (seen, task) = (Arc::clone(&self.seen), &mut self.task);
        let what = format!("the watch to show {name}");
        let (open, took) = eventually(&what, || {
            let known = seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains_key(name);
            let ended = task.try_join_next().is_some();
            async move { if known { Some(true) } else { ended.then_some(false) } }
        })
        .await;
        ensure!(open, "the person's watch ended before it showed {name}");
        Ok(took)
    }

    /// Creates a configmap in the cluster itself.
    ///
    /// # Errors
    /// When it cannot be created.
    pub async fn create(&self, name: &str) -> Result<()> {
        let (truth, name) = (self.truth.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || {
            kubectl(&truth, &["create", "configmap", &name, "-n", "default"]).map(drop)
        })
        .await?
    }

    /// How often the watch showed each configmap that was added.
    pub fn counts(&self) -> BTreeMap<String, u32> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An HTTP client that trusts the control plane's CA.
///
/// # Errors
/// When the CA is not readable.
pub fn front_client(control_plane: &ControlPlane) -> Result<reqwest::Client> {
    let ca = reqwest::Certificate::from_pem(control_plane.ca_pem().as_bytes())?;
    reqwest::Client::builder()
        .tls_certs_only([ca])
        .build()
        .context("an HTTP client for the front")
}

/// A byte through one forward: who listens behind it answers a request that comes in at the far end.
///
/// # Errors
/// When nothing comes back.
pub async fn through_forward(control_plane: &ControlPlane, cluster: &str, forward: &str) -> Result<String> {
    let view = control_plane.tunnel(cluster).context("no tunnel")?;
    let port = view
        .forwards
        .iter()
        .find(|known| known.name == forward)
        .context("no such forward")?
        .port;
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .tls_danger_accept_invalid_certs(true);
    let client = client.pool_max_idle_per_host(0).build()?;
    let token = control_plane.token();
    let url = match forward {
        "agent-http" => format!("http://127.0.0.1:{port}/livez"),
        "k8s-proxy" => format!("http://127.0.0.1:{port}/version"),
        "kubernetes-api" => format!("https://127.0.0.1:{port}/version"),
        other => anyhow::bail!("no request is known for forward {other}"),
    };
    let response = client
        .get(url)
        .bearer_auth(token)
        .send()
        .await?
        .error_for_status()?;
    Ok(response.text().await?)
}
