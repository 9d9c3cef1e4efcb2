//! Watches: what was, a border, what changes.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{
    body::Source,
    cluster::Cluster,
    list,
    negotiate::{self, Form},
    protobuf,
    resources::RESOURCES,
    route::{Query, Target},
    selector::Selector,
    status::Status,
    store::{Change, ChangeKind, Stored, event_line},
    table,
};

/// Changes taken from the store at once.
const BATCH: usize = 256;

/// One open watch.
#[derive(Debug)]
pub(super) struct Watch {
    cluster: Arc<Cluster>,
    target: Target,
    selector: Selector,
    form: Form,
    queue: VecDeque<Bytes>,
    /// Everything up to this revision has been queued.
    cursor: u64,
    ended: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    changed: watch::Receiver<u64>,
    end: watch::Receiver<u64>,
    bookmark: watch::Receiver<u64>,
}

impl Watch {
    /// Opens a watch. What is too old is no error here: the stream itself says so, as the real one does.
    ///
    /// # Errors
    /// 400 and 422 for options that make no sense, 504 for a revision that is not there yet.
    pub(super) fn open(
        cluster: &Arc<Cluster>,
        target: Target,
        query: &Query,
        form: Form,
        gone: bool,
    ) -> Result<Self, Status> {
        let mut selector = list::selector(&target, query)?;
        if !target.name.is_empty() {
            let fields = format!("metadata.name={}", target.name);
            selector = Selector::parse(&RESOURCES[target.resource], query.get("labelSelector"), &fields)?;
        }
        let asked = list::revision(query).map_err(|status| Status::plain_500(status.message))?;
        let initial = initial_events(query)?;
        let timeout = query.number("timeoutSeconds").filter(|seconds| *seconds > 0);
        let timeout = timeout.map_or(cluster.watch_timeout, Duration::from_secs);
        let now = Instant::now();
        let mut watch = Self {
            changed: cluster.store.subscribe(target.resource),
            end: cluster.end_watches.subscribe(),
            bookmark: cluster.bookmark.subscribe(),
            cluster: cluster.clone(),
            target,
            selector,
            form,
            queue: VecDeque::new(),
            cursor: asked.unwrap_or_default(),
            ended: false,
            bookmarks: query.flag("allowWatchBookmarks"),
            next_bookmark: now + cluster.bookmark_interval,
            deadline: now + timeout,
        };
        let from_now = asked.is_none_or(|asked| asked == 0);
        if gone && !from_now {
            watch.fail(&Status::too_old(watch.cursor, cluster.store.revision()));
        } else if initial.unwrap_or(from_now) {
            watch.queue_initial(asked, initial.is_some())?;
        } else if from_now {
            watch.cursor = cluster.store.revision();
        } else if let Err(expired) = cluster
            .store
            .changes_after(watch.target.resource, watch.cursor, 0)
        {
            watch.fail(&Status::too_old(watch.cursor, expired.oldest));
        }
        Ok(watch)
    }

    fn queue_initial(&mut self, asked: Option<u64>, announced: bool) -> Result<(), Status> {
        let current = self.cluster.store.revision();
        if let Some(asked) = asked.filter(|asked| *asked > current) {
            return Err(Status::too_large_revision(asked, current));
        }
        let namespace = self.namespace().map(str::to_owned);
        let snapshot = self
            .cluster
            .store
            .snapshot(self.target.resource, namespace.as_deref(), None);
        let (revision, objects) = snapshot.map_err(|expired| Status::too_old(current, expired.oldest))?;
        for stored in objects
            .iter()
            .filter(|stored| self.selector.matches(&stored.value))
        {
            self.queue.push_back(self.line("ADDED", stored));
        }
        self.cursor = revision;
        if announced && self.bookmarks {
            self.queue.push_back(self.bookmark_line(true));
        }
        Ok(())
    }

    fn namespace(&self) -> Option<&str> {
        Some(self.target.namespace.as_str()).filter(|namespace| !namespace.is_empty())
    }

    fn fail(&mut self, status: &Status) {
        let object = status.to_value();
        self.queue.push_back(match self.form {
            Form::Protobuf => protobuf::event("ERROR", &object).into(),
            Form::Json | Form::Table | Form::Metadata => event_line("ERROR", object.to_string().as_bytes()),
        });
        self.ended = true;
    }

    /// The media type of the stream.
    pub(super) fn media(&self) -> &'static str {
        match self.form {
            Form::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Form::Json | Form::Table | Form::Metadata => "application/json",
        }
    }

    fn line(&self, kind: &str, stored: &Stored) -> Bytes {
        match self.form {
            Form::Json => event_line(kind, &stored.json()),
            Form::Protobuf => protobuf::event(kind, &stored.value).into(),
            Form::Metadata => {
                let reduced = negotiate::metadata_only(&stored.json());
                event_line(kind, reduced.to_string().as_bytes())
            }
            Form::Table => {
                let table = table::of_one(&RESOURCES[self.target.resource], stored, self.cluster.clock.now());
                event_line(kind, table.to_string().as_bytes())
            }
        }
    }

    fn bookmark_line(&self, initial_end: bool) -> Bytes {
        let kind = &RESOURCES[self.target.resource];
        let mut metadata = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        match self.form {
            Form::Json => event_line("BOOKMARK", object.to_string().as_bytes()),
            Form::Protobuf => protobuf::event("BOOKMARK", &object).into(),
            Form::Metadata => {
                let reduced = negotiate::metadata_only(object.to_string().as_bytes());
                event_line("BOOKMARK", reduced.to_string().as_bytes())
            }
            Form::Table => {
                let table = table::bookmark(kind, &object, self.cursor);
                event_line("BOOKMARK", table.to_string().as_bytes())
            }
        }
    }

    /// Queues what changed; a watch that fell too far behind ends cleanly and comes back to a 410.
    fn take_changes(&mut self) {
        match self
            .cluster
            .store
            .changes_after(self.target.resource, self.cursor, BATCH)
        {
            Ok((changes, upto)) => {
                self.cursor = upto;
                for change in changes {
                    if let Some(line) = self.translate(&change) {
                        self.queue.push_back(line);
                    }
                }
            }
            Err(_) => self.ended = true,
        }
    }

    /// What a change is for a watch that sees only some objects.
    fn translate(&self, change: &Change) -> Option<Bytes> {
        if self
            .namespace()
            .is_some_and(|namespace| namespace != change.key.namespace)
        {
            return None;
        }
        let before = change
            .previous
            .as_ref()
            .is_some_and(|previous| self.selector.matches(&previous.value));
        let after = change.kind != ChangeKind::Deleted && self.selector.matches(&change.object.value);
        let kind = match (before, after) {
            (false, false) => return None,
            (false, true) => ChangeKind::Added,
            (true, true) => ChangeKind::Modified,
            (true, false) => ChangeKind::Deleted,
        };
        if self.form == Form::Json && kind == change.kind {
            return Some(change.line());
        }
        let name = match kind {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        };
        Some(self.line(name, &change.object))
    }
}

impl Source for Watch {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.take_changes();
            if !self.queue.is_empty() || self.ended {
                continue;
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                _ = self.end.changed() => self.ended = true,
                _ = self.bookmark.changed() => self.push_bookmark(),
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => self.push_bookmark(),
                () = tokio::time::sleep_until(self.deadline) => {
                    self.push_bookmark();
                    self.ended = true;
                }
            }
        }
    }
}

impl Watch {
    /// Queues a bookmark, if they were asked for. The position is right because the queue was empty.
    fn push_bookmark(&mut self) {
        self.next_bookmark = Instant::now() + self.cluster.bookmark_interval;
        if self.bookmarks {
            self.queue.push_back(self.bookmark_line(false));
        }
    }
}

/// `sendInitialEvents` with the rules that bind it to `resourceVersionMatch`.
fn initial_events(query: &Query) -> Result<Option<bool>, Status> {
    let text = query.get("sendInitialEvents");
    let matching = query.get("resourceVersionMatch");
    if text.is_empty() {
        if matching.is_empty() {
            return Ok(None);
        }
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        return Err(Status::invalid_options("resourceVersionMatch", why));
    }
    if matching != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Status::invalid_options("resourceVersionMatch", why));
    }
    Ok(Some(query.flag("sendInitialEvents")))
}
