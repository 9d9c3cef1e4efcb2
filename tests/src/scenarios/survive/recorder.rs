//! What client-go does, in small, with a memory: list, watch from there, watch again from the last event, list again
//! only when told that the position is gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    events::{Encoding, Event, Reader},
    wire::{Answer, Target},
};

/// Between two attempts, as long as nothing answers.
const PAUSE: Duration = Duration::from_millis(100);
/// A head that does not come is asked for again.
const HEAD: Duration = Duration::from_secs(20);

/// What a recorder noted.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Every change that came as an event, in its order: name, version, when.
    pub events: Vec<(String, String, Instant)>,
    /// After a 410: events that were noted by then, and the version of the new list.
    pub relists: Vec<(usize, u64)>,
    /// Objects of the newest list.
    pub listed: BTreeMap<String, String>,
    /// Honest 410s.
    pub gone: u32,
    /// Watches that ended without an error.
    pub ended: u32,
    /// Watches that broke off.
    pub broken: u32,
    /// Bookmarks that came.
    pub bookmarks: u32,
    /// Half events at the end of a watch that was not broken off.
    pub halves: u32,
    /// Why it gave up, if it did.
    pub failed: String,
}

/// One informer with its memory; it ends when it is dropped.
#[derive(Debug)]
pub struct Recorder {
    /// Through what it looks.
    pub door: &'static str,
    /// How its watches are encoded.
    pub encoding: Encoding,
    /// Whether it asks for bookmarks.
    pub wants_bookmarks: bool,
    notes: Arc<Mutex<Notes>>,
    _task: JoinSet<()>,
}

impl Recorder {
    /// Starts on the configmaps below `path`; the first list is there when it returns.
    ///
    /// # Errors
    /// When the first list does not come.
    pub async fn start(door: &'static str, target: Target, path: &str, encoding: Encoding) -> Result<Self> {
        // One half asks for bookmarks, so that the other shows that none come unasked.
        let wants_bookmarks = encoding == Encoding::Json;
        let notes = Arc::<Mutex<Notes>>::default();
        let mut worker = Worker {
            target,
            path: path.to_owned(),
            encoding,
            wants_bookmarks,
            position: String::new(),
            notes: Arc::clone(&notes),
        };
        worker.list().await.context("the first list")?;
        let (mut task, noted) = (JoinSet::new(), Arc::clone(&notes));
        task.spawn(async move {
            if let Err(error) = worker.follow().await {
                lock(&noted).failed = format!("{error:#}");
            }
        });
        Ok(Self {
            door,
            encoding,
            wants_bookmarks,
            notes,
            _task: task,
        })
    }

    /// What it noted so far.
    pub fn notes(&self) -> Notes {
        lock(&self.notes).clone()
    }

    /// Whether it knows a version of an object, by an event or by its newest list.
    pub fn knows(&self, name: &str, version: &str) -> bool {
        let notes = lock(&self.notes);
        let seen = notes
            .events
            .iter()
            .rev()
            .any(|(one, at, _)| one == name && at == version);
        seen || notes.listed.get(name).is_some_and(|at| at == version)
    }
}

struct Worker {
    target: Target,
    path: String,
    encoding: Encoding,
    wants_bookmarks: bool,
    position: String,
    notes: Arc<Mutex<Notes>>,
}

impl Worker {
    async fn ask(&self, query: &str, accept: &str) -> Result<Answer> {
        let path = format!("{}?{query}", self.path);
        let headers = [("accept", accept)];
        tokio::time::timeout(HEAD, self.target.get(&path, &headers)).await?
    }

    async fn list(&mut self) -> Result<()> {
        let body = self.ask("", "application/json").await?.good().await?;
        let list: Value = serde_json::from_slice(&body)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&list["metadata"]["resourceVersion"]);
        ensure!(!version.is_empty(), "a list without a position");
        let items = list["items"].as_array().context("a list")?;
        let pair = |item: &Value| {
            (
                text(&item["metadata"]["name"]),
                text(&item["metadata"]["resourceVersion"]),
            )
        };
        let mut notes = lock(&self.notes);
        notes.listed = items.iter().map(pair).collect();
        let events = notes.events.len();
        notes.relists.push((events, version.parse()?));
        self.position = version;
        Ok(())
    }

    async fn list_patiently(&mut self) {
        while self.list().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self) -> Result<()> {
        loop {
            let bookmarks = if self.wants_bookmarks {
                "&allowWatchBookmarks=true"
            } else {
                ""
            };
            let query = format!("watch=true&resourceVersion={}{bookmarks}", self.position);
            let Ok(answer) = self.ask(&query, self.encoding.accept()).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            match answer.status().as_u16() {
                200 => {
                    let kind = answer
                        .headers()
                        .get("content-type")
                        .map(|kind| kind.to_str().unwrap_or_default());
                    let right = kind.is_some_and(|kind| kind.starts_with(self.encoding.accept()));
                    ensure!(right, "asked for {}, got {kind:?}", self.encoding.name());
                    if self.read(answer).await? {
                        lock(&self.notes).gone += 1;
                        self.list_patiently().await;
                    }
                }
                410 => {
                    lock(&self.notes).gone += 1;
                    self.list_patiently().await;
                }
                // The apiserver, the proxy or the way there is away.
                429 | 500.. => tokio::time::sleep(PAUSE).await,
                status => bail!("the watch was refused: {status}"),
            }
        }
    }

    /// Reads one watch to its end; whether it was told that its position is gone.
    async fn read(&mut self, mut answer: Answer) -> Result<bool> {
        let mut reader = Reader::new(self.encoding);
        loop {
            match answer.piece().await {
                Ok(Some(piece)) => {
                    for event in reader.push(&piece)? {
                        if self.note(event)? {
                            return Ok(true);
                        }
                    }
                }
                Ok(None) => {
                    let mut notes = lock(&self.notes);
                    notes.ended += 1;
                    notes.halves += u32::from(reader.left() > 0);
                    return Ok(false);
                }
                Err(_) => {
                    lock(&self.notes).broken += 1;
                    return Ok(false);
                }
            }
        }
    }

    fn note(&mut self, event: Event) -> Result<bool> {
        if event.kind == "ERROR" {
            ensure!(event.code == 410, "an error that is no 410: {event:?}");
            return Ok(true);
        }
        ensure!(
            !event.version.is_empty(),
            "an event without a position: {event:?}"
        );
        let mut notes = lock(&self.notes);
        if event.kind == "BOOKMARK" {
            notes.bookmarks += 1;
        } else {
            notes
                .events
                .push((event.name, event.version.clone(), Instant::now()));
        }
        drop(notes);
        self.position = event.version;
        Ok(false)
    }
}

fn lock(notes: &Mutex<Notes>) -> std::sync::MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}
