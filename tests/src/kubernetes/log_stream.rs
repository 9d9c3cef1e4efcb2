//! `pods/<name>/log`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    body::Source,
    cluster::Cluster,
    logs::Line,
    object,
    resources::{RESOURCES, by_plural},
    route::Query,
    status::Status,
    store::Key,
};

/// One read of a log, followed or not.
#[derive(Debug)]
pub(super) struct LogStream {
    cluster: Arc<Cluster>,
    pod: Key,
    timestamps: bool,
    follow: bool,
    pending: Option<Bytes>,
    next_line: u64,
    left: Option<u64>,
    wake: watch::Receiver<u64>,
}

impl LogStream {
    /// Opens the log of a pod that runs.
    ///
    /// # Errors
    /// 404 without the pod, 400 without the container or before it started.
    pub(super) fn open(
        cluster: &Arc<Cluster>,
        namespace: &str,
        name: &str,
        query: &Query,
    ) -> Result<Self, Status> {
        let pod = Key::new(by_plural("pods"), namespace, name);
        let stored = cluster
            .store
            .get(&pod)
            .ok_or_else(|| Status::not_found(&RESOURCES[pod.resource], name))?;
        let containers: Vec<&str> = object::at(&stored.value, "spec.containers")
            .and_then(|containers| containers.as_array())
            .map(|containers| {
                containers
                    .iter()
                    .map(|container| object::text(container, "name"))
                    .collect()
            })
            .unwrap_or_default();
        let asked = query.get("container");
        if asked.is_empty() && containers.len() > 1 {
            return Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                containers.join(" ")
            )));
        }
        if !asked.is_empty() && !containers.contains(&asked) {
            return Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {name}"
            )));
        }
        if query.flag("previous") {
            let container = containers.first().copied().unwrap_or_default();
            return Err(Status::bad_request(format!(
                "previous terminated container \"{container}\" in pod \"{name}\" not found"
            )));
        }
        if object::text(&stored.value, "status.phase") == "Pending" {
            let container = containers.first().copied().unwrap_or_default();
            return Err(Status::bad_request(format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: ContainerCreating"
            )));
        }
        let wake = cluster.logs.subscribe();
        let (lines, next_line) = cluster.logs.after(namespace, name, 0);
        let skip = query.number("tailLines").map_or(0, |tail| {
            lines
                .len()
                .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX))
        });
        let mut stream = Self {
            cluster: cluster.clone(),
            pod,
            timestamps: query.flag("timestamps"),
            follow: query.flag("follow"),
            pending: None,
            next_line,
            left: query.number("limitBytes"),
            wake,
        };
        stream.pending = stream.render(&lines[skip..]);
        Ok(stream)
    }

    /// All that is there, for an answer that is not followed.
    pub(super) fn whole(mut self) -> Bytes {
        self.pending.take().unwrap_or_default()
    }

    fn render(&mut self, lines: &[Line]) -> Option<Bytes> {
        let mut text = String::new();
        for line in lines {
            if self.timestamps {
                text.push_str(&line.time);
                text.push(' ');
            }
            text.push_str(&line.text);
            text.push('\n');
        }
        let mut bytes = Bytes::from(text);
        if let Some(left) = &mut self.left {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        Some(bytes).filter(|bytes| !bytes.is_empty())
    }
}

impl Source for LogStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.pending.take() {
                return Some(bytes);
            }
            if !self.follow || self.left == Some(0) {
                return None;
            }
            let (lines, next_line) =
                self.cluster
                    .logs
                    .after(&self.pod.namespace, &self.pod.name, self.next_line);
            self.next_line = next_line;
            self.pending = self.render(&lines);
            if self.pending.is_none() {
                // The log of a pod that is gone ends; everything it wrote has been sent.
                self.cluster.store.get(&self.pod)?;
                self.wake.changed().await.ok()?;
            }
        }
    }
}
