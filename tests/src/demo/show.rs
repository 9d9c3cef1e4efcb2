//! What is looked for, in the order in which a person understands it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::Instant;

use super::Commands;
use crate::{
    control_plane::ControlPlane,
    scenarios::observer::{front_client, through_forward},
    wait::eventually,
};

/// The watch must have shown so many events before it counts as seen.
const EVENTS: usize = 3;
const ALL: [&str; 4] = [
    "the registered cluster",
    "heartbeats",
    "a byte through each forward",
    "a live watch",
];

/// Prints what is seen, and remembers it.
pub(crate) struct Show<'a> {
    control_plane: &'a ControlPlane,
    start: Instant,
    seen: BTreeSet<&'static str>,
    id: String,
}

impl<'a> Show<'a> {
    pub(crate) fn new(control_plane: &'a ControlPlane) -> Self {
        Self {
            control_plane,
            start: Instant::now(),
            seen: BTreeSet::new(),
            id: String::new(),
        }
    }

    /// What was not seen.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        ALL.into_iter().filter(|what| !self.seen.contains(what)).collect()
    }

    fn say(&self, text: impl std::fmt::Display) {
        println!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// Registered cluster, heartbeats, forwards, watch.
    pub(crate) async fn everything(&mut self) -> Result<()> {
        self.id = self.control_plane.wait_registered().await;
        let cluster = self
            .control_plane
            .cluster(&self.id)
            .context("the cluster is registered")?;
        self.say(format!(
            "registered: cluster {:?}, id {}, agent {}",
            cluster.name, self.id, cluster.agent_id
        ));
        self.seen.insert(ALL[0]);

        for _ in 0..2 {
            let beat = self.control_plane.wait_heartbeats(&self.id, 1).await;
            self.say(format!("heartbeat:  {}", summary(&beat.body)));
        }
        self.seen.insert(ALL[1]);

        let tunnel = self
            .control_plane
            .tunnel(&self.id)
            .context("no tunnel: the chisel server is off")?;
        self.say(format!(
            "tunnel:     {} (fingerprint {})",
            tunnel.server.as_deref().unwrap_or("-"),
            tunnel.fingerprint.as_deref().unwrap_or("-")
        ));
        for forward in &tunnel.forwards {
            let (control_plane, id) = (self.control_plane, &self.id);
            let name = forward.name.as_str();
            let (text, _) = eventually(name, || async {
                let text = through_forward(control_plane, id, name).await.ok()?;
                text.bytes().next().map(|byte| (byte, text.len()))
            })
            .await;
            let (byte, length) = text;
            self.say(format!(
                "forward:    {name:<15} 127.0.0.1:{} answered, first byte {:?} of {length}",
                forward.port,
                char::from(byte)
            ));
        }
        self.seen.insert(ALL[2]);

        self.control_plane.wait_link(&self.id).await;
        self.watch("", Some(EVENTS)).await?;
        self.seen.insert(ALL[3]);
        Ok(())
    }

    /// Prints the commands to try.
    pub(crate) fn next(&self, commands: &Commands) {
        println!("\nTry, in another terminal:");
        for (what, line) in &commands.lines {
            println!("  # {what}\n  {line}");
        }
        println!("\nCtrl-C stops everything. The cluster goes on below:");
    }

    /// The live watch, until somebody stops the demo.
    pub(crate) async fn go_on(&self) -> Result<()> {
        let list: Value = self.events("limit=1").await?.json().await?;
        let position = text(&list["metadata"]["resourceVersion"]);
        self.watch(&format!("&resourceVersion={position}"), None).await
    }

    async fn events(&self, query: &str) -> Result<reqwest::Response> {
        let url = format!("{}/api/v1/events?{query}", self.control_plane.front_url(&self.id));
        let request = front_client(self.control_plane)?
            .get(url)
            .bearer_auth(self.control_plane.front_token());
        Ok(request.send().await?.error_for_status()?)
    }

    async fn watch(&self, from: &str, stop_after: Option<usize>) -> Result<()> {
        let response = self.events(&format!("watch=true{from}")).await?;
        let (mut body, mut buffer, mut events) = (response.bytes_stream(), Vec::new(), 0);
        while let Some(chunk) = body.next().await {
            buffer.extend_from_slice(&chunk?);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line)?;
                let object = &event["object"];
                self.say(format!(
                    "watch:      {} {}/{}: {}",
                    text(&event["type"]),
                    text(&object["involvedObject"]["kind"]),
                    text(&object["involvedObject"]["name"]),
                    text(&object["message"])
                ));
                events += 1;
                if stop_after == Some(events) {
                    return Ok(());
                }
            }
        }
        anyhow::bail!(
            "the watch ended after {:?}",
            Duration::from_secs(self.start.elapsed().as_secs())
        )
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn summary(beat: &Value) -> String {
    let metadata = &beat["metadata"];
    format!(
        "{}, tunnel {}, Kubernetes {}, {} nodes, {} pods",
        text(&beat["status"]),
        text(&beat["tunnel_status"]),
        text(&metadata["k8s_version"]),
        metadata["k8s_nodes"],
        metadata["k8s_pods"]
    )
}
