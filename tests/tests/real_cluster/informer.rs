//! What client-go does, in small: list, watch from there, list again only when the position is gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use harness::{control_plane::ControlPlane, scenarios::observer::front_client, wait::eventually};
use serde_json::Value;
use tokio::task::JoinSet;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often each configmap was added: by a list that had it for the first time, or by an event.
    pub added: BTreeMap<String, u32>,
    /// How often it was told that its position is gone.
    pub gone: u32,
    /// How often a watch ended without a word.
    pub ended: u32,
    /// Why it gave up, if it did.
    pub failed: String,
}

/// An informer on the configmaps of namespace `default`, through the front.
#[derive(Debug)]
pub struct Informer {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

impl Informer {
    /// Starts; the first list is there when it returns.
    pub async fn start(control_plane: &ControlPlane, cluster: &str) -> Result<Self> {
        let front = Front {
            client: front_client(control_plane)?,
            url: format!("{}{PATH}", control_plane.front_url(cluster)),
            token: control_plane.front_token().to_owned(),
        };
        let (seen, mut task) = (Arc::<Mutex<Seen>>::default(), JoinSet::new());
        let position = front.list(&seen).await?;
        let noted = Arc::clone(&seen);
        task.spawn(async move {
            if let Err(error) = front.follow(position, &noted).await {
                lock(&noted).failed = format!("{error:#}");
            }
        });
        Ok(Self { seen, _task: task })
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until it knows a configmap.
    pub async fn knows(&self, name: &str) {
        eventually(&format!("the informer to know {name}"), || async {
            let seen = self.seen();
            assert!(seen.failed.is_empty(), "the informer gave up: {}", seen.failed);
            seen.added.contains_key(name).then_some(())
        })
        .await;
    }
}

struct Front {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Front {
    async fn get(&self, query: &str) -> Result<reqwest::Response> {
        Ok(self
            .client
            .get(format!("{}?{query}", self.url))
            .bearer_auth(&self.token)
            .send()
            .await?)
    }

    /// Lists, patiently: the apiserver may be away.
    async fn list(&self, seen: &Mutex<Seen>) -> Result<String> {
        let (list, _) = eventually("a list through the front", || async {
            let response = self.get("").await.ok()?;
            if response.status().is_success() {
                response.json::<Value>().await.ok()
            } else {
                None
            }
        })
        .await;
        for item in list["items"].as_array().context("a list")? {
            let name = item["metadata"]["name"].as_str().context("a name")?;
            lock(seen).added.entry(name.to_owned()).or_insert(1);
        }
        Ok(list["metadata"]["resourceVersion"]
            .as_str()
            .context("a position")?
            .to_owned())
    }

    async fn follow(&self, mut position: String, seen: &Mutex<Seen>) -> Result<()> {
        loop {
            let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={position}");
            let response = self.get(&query).await?;
            if response.status().as_u16() == 410 {
                lock(seen).gone += 1;
                position = self.list(seen).await?;
                continue;
            }
            ensure!(
                response.status().is_success(),
                "the watch was refused: {}",
                response.status()
            );
            let (mut body, mut buffer, mut gone) = (response.bytes_stream(), Vec::new(), false);
            while let Some(chunk) = body.next().await {
                buffer.extend_from_slice(&chunk?);
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    let event: Value =
                        serde_json::from_slice(&line).context("each line is one whole event")?;
                    let object = &event["object"];
                    if event["type"] == "ERROR" {
                        ensure!(object["code"] == 410, "an error that is no 410: {event}");
                        gone = true;
                        continue;
                    }
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    if event["type"] == "ADDED" {
                        *lock(seen).added.entry(name.to_owned()).or_default() += 1;
                    }
                    position = object["metadata"]["resourceVersion"]
                        .as_str()
                        .context("a position")?
                        .to_owned();
                }
            }
            ensure!(
                buffer.is_empty(),
                "half an event: {}",
                String::from_utf8_lossy(&buffer)
            );
            if gone {
                lock(seen).gone += 1;
                position = self.list(seen).await?;
            } else {
                lock(seen).ended += 1;
            }
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
