//! The one task that reads and writes the identity.
//!
//! It loads until it has a definite answer, then takes in changes: first into the copy (or the file), which is what
//! the caller waits for, then into the Secret; each of the two as often as it takes. What is there already is never
//! written again: a full or read-only disk holds up nobody whose identity it holds.

use std::{path::PathBuf, sync::Arc, time::Duration};

use runtime::{
    backoff::{Backoff, Policy},
    conditions::{Conditions, Status},
    supervise::Supervisor,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    AGENT_ID, CLUSTER_ID, Stored, UNSAVED, file,
    identity::{Origin, choose},
    migrate, secret,
};
use crate::{
    config::{PodConfig, StateBackend, StateConfig},
    kubernetes::{Door, DoorError},
};

/// The door opens within milliseconds of k8s-proxy's start; a missing one must not be knocked at all day long.
const RETRY: Policy = Policy {
    min: Duration::from_millis(60),
    max: Duration::from_secs(2),
    stable: Duration::from_secs(60),
};
/// Changes are a registration here and there.
const QUEUE: usize = 8;
const CONDITION: &str = "State";

/// What is known of the identity.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// Not read yet, because …
    Waiting(String),
    Loaded(Arc<Stored>),
}

struct Update {
    changes: Stored,
    reply: oneshot::Sender<Result<(), String>>,
}

/// For everybody who reads or changes the identity.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    updates: mpsc::Sender<Update>,
    current: watch::Receiver<Load>,
}

impl Identity {
    /// Takes in `changes`; returns when a restart of this container would find them.
    pub(crate) async fn update(&self, changes: Stored) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the state keeper has ended".to_owned();
        self.updates
            .send(Update { changes, reply })
            .await
            .map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Load> {
        self.current.clone()
    }
}

/// Owner of the stored identity.
#[derive(Debug)]
pub(crate) struct Keeper {
    config: StateConfig,
    configured_id: Option<String>,
    pod: PodConfig,
    door: Door,
    conditions: Conditions,
    root: PathBuf,
    updates: mpsc::Receiver<Update>,
    current: watch::Sender<Load>,
    stored: Stored,
    /// The Secret lacks something that we have.
    pending: bool,
    /// What the copy (or the file) holds, as far as we know.
    on_disk: Option<Stored>,
    /// Why the copy (or the file) lacks something that we have.
    disk_trouble: Option<String>,
    /// Why the Secret lacks something that we have.
    secret_trouble: Option<String>,
}

impl Keeper {
    pub(crate) fn new(
        config: StateConfig,
        configured_id: Option<String>,
        pod: PodConfig,
        door: Door,
        conditions: Conditions,
        root: PathBuf,
    ) -> (Self, Identity) {
        let (sender, updates) = mpsc::channel(QUEUE);
        let waiting = "state: not read yet".to_owned();
        conditions.set(CONDITION, Status::False, waiting.clone());
        let (current, watch) = watch::channel(Load::Waiting(waiting));
        let identity = Identity {
            updates: sender,
            current: watch,
        };
        let keeper = Self {
            config,
            configured_id,
            pod,
            door,
            conditions,
            root,
            updates,
            current,
            stored: Stored::default(),
            pending: false,
            on_disk: None,
            disk_trouble: None,
            secret_trouble: None,
        };
        (keeper, identity)
    }

    /// What the copy in the private folder (or the file) says right now: known before any peer is asked.
    pub(crate) fn peek(config: &StateConfig) -> Option<Stored> {
        file::read(local_path(config)).ok().flatten()
    }

    pub(crate) async fn run(mut self, supervisor: Supervisor) {
        let mut backoff = Backoff::new(RETRY);
        loop {
            match self.load().await {
                Ok(()) => break,
                Err(reason) => {
                    self.conditions.set(CONDITION, Status::False, reason.clone());
                    if backoff.attempt() == 0 {
                        info!(reason, "waiting for the stored identity");
                    }
                    self.current.send_replace(Load::Waiting(reason));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(None)) => {}
                () = supervisor.draining() => return,
            }
        }
        self.publish();
        info!(
            agent_id = self.stored.get(AGENT_ID),
            cluster_id = self.stored.get(CLUSTER_ID),
            "identity is known"
        );
        self.keep(supervisor).await;
    }

    async fn keep(mut self, supervisor: Supervisor) {
        let (mut backoff, mut disk_backoff) = (Backoff::new(RETRY), Backoff::new(RETRY));
        let mut due = Instant::now();
        loop {
            let draining = supervisor.is_draining();
            if draining {
                // The last chance: nobody is left to be held up.
                self.write_local();
                if !self.pending {
                    return;
                }
            }
            let (door, config, stored) = (self.door.clone(), self.config.clone(), self.stored.clone());
            let pending = self.pending;
            let write = async move {
                if !pending {
                    return std::future::pending().await;
                }
                sleep_until(due).await;
                secret::write(&door, &config, &stored, false).await
            };
            let disk = self.disk_trouble.as_ref().map(|_| disk_backoff.next(None));
            let write_disk = async move {
                match disk {
                    Some(pause) => tokio::time::sleep(pause.max(RETRY.min)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                update = self.updates.recv() => match update {
                    Some(update) => {
                        let result = self.take(&update.changes);
                        update.reply.send(result).ok();
                        due = Instant::now();
                        backoff.reset();
                        disk_backoff.reset();
                    }
                    None => return,
                },
                result = write => {
                    match result {
                        Ok(there) => self.saved(&there),
                        Err(error) => {
                            let reason = self.secret_reason("cannot be written", &error);
                            if backoff.attempt() == 0 {
                                warn!(reason, "the identity is kept in the copy until the Secret can be written");
                            }
                            self.secret_trouble = Some(reason);
                            self.tell();
                            due = Instant::now() + backoff.next(None);
                        }
                    }
                    if draining {
                        return;
                    }
                }
                () = write_disk => self.write_local(),
                () = supervisor.draining(), if !draining => {}
            }
        }
    }

    /// One try. An error is a reason to wait: it never means a fresh install.
    async fn load(&mut self) -> Result<(), String> {
        let path = local_path(&self.config).to_path_buf();
        let local = file::read(&path).map_err(|error| format!("state: {}: {error}", path.display()));
        self.on_disk = local.as_ref().ok().cloned().flatten();
        let (mut stored, reachable) = match self.config.backend {
            StateBackend::File => (local?.unwrap_or_default(), true),
            StateBackend::Secret => {
                // A copy that cannot be read is a missing copy: the Secret decides.
                let copy = local.ok().flatten();
                match self
                    .door
                    .secret(&self.config.namespace, &self.config.secret_name)
                    .await
                {
                    Ok(secret) => (unite(secret.as_ref().map(secret::read), copy), true),
                    Err(error) => match copy.filter(|copy| copy.get(CLUSTER_ID).is_some()) {
                        Some(copy) => {
                            warn!(%error, "the Secret cannot be read; going on with the copy of the identity");
                            (copy, false)
                        }
                        None => return Err(self.secret_reason("cannot be read", &error)),
                    },
                }
            }
        };
        let before = stored.clone();
        if !stored.has_identity() {
            let door = (self.config.backend == StateBackend::Secret).then_some(&self.door);
            if let Some(earlier) = migrate::find(&self.config, door, &self.root).await {
                stored.merge(&earlier);
            }
        }
        let (id, note) = choose(self.configured_id.as_deref(), stored.get(AGENT_ID), &self.pod);
        if let Some(note) = note {
            warn!("{note}");
        }
        let made = id.is_none();
        stored.set(
            AGENT_ID,
            &id.unwrap_or_else(|| Origin::of(&self.pod, &self.root).agent_id()),
        );
        self.stored = stored;
        let unsaved = self.stored.remove(UNSAVED);
        self.pending =
            self.config.backend == StateBackend::Secret && (!reachable || unsaved || self.stored != before);
        if self.pending && self.stored.get(CLUSTER_ID).is_none() {
            // The id must be where the next pod finds it before anybody hears of it.
            let written = secret::write(&self.door, &self.config, &self.stored, made).await;
            let there = written.map_err(|error| self.secret_reason("cannot be written", &error))?;
            self.stored.merge(&there);
            self.pending = false;
        }
        self.secret_trouble = (!reachable).then(|| "the Secret cannot be read yet".to_owned());
        self.write_local();
        match &self.disk_trouble {
            // Nothing of this identity would be left after a restart: nobody may hear of it yet.
            Some(reason) if !self.is_kept() => Err(reason.clone()),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a restart would find the agent's id.
    fn is_kept(&self) -> bool {
        let id = self.stored.get(AGENT_ID);
        let in_secret = self.config.backend == StateBackend::Secret && !self.pending;
        in_secret
            || self
                .on_disk
                .as_ref()
                .is_some_and(|there| there.get(AGENT_ID) == id)
    }

    fn take(&mut self, changes: &Stored) -> Result<(), String> {
        let mut merged = self.stored.clone();
        merged.merge(changes);
        if merged == self.stored {
            return Ok(());
        }
        self.stored = merged;
        self.pending |= self.config.backend == StateBackend::Secret;
        self.write_local();
        self.publish();
        self.disk_trouble.clone().map_or(Ok(()), Err)
    }

    fn saved(&mut self, there: &Stored) {
        self.pending = false;
        self.secret_trouble = None;
        let mut merged = there.clone();
        merged.merge(&self.stored);
        let changed = merged != self.stored;
        self.stored = merged;
        self.write_local();
        if changed {
            self.publish();
        }
    }

    /// Brings the copy (or the file) up to date, and notes why if it cannot.
    fn write_local(&mut self) {
        let mut wanted = self.stored.clone();
        if self.pending {
            wanted.set(UNSAVED, "true");
        }
        if self.on_disk.as_ref() != Some(&wanted) {
            let path = local_path(&self.config);
            let written = file::write(path, &wanted);
            let trouble = written.map_err(|error| {
                let setting = match self.config.backend {
                    StateBackend::File => "state.file (PIPEOPS_STATE_FILE)",
                    StateBackend::Secret => "process.private_dir (PIPEOPS_PRIVATE_DIR)",
                };
                format!(
                    "state: {} cannot be written: {error}; see {setting}",
                    path.display()
                )
            });
            match trouble {
                Ok(()) => {
                    if self.disk_trouble.take().is_some() {
                        info!(path = %path.display(), "the identity could be written at last");
                    }
                    self.on_disk = Some(wanted);
                }
                Err(reason) => {
                    if self.disk_trouble.is_none() {
                        warn!(reason, "writing is tried again until it succeeds");
                    }
                    self.disk_trouble = Some(reason);
                }
            }
        } else {
            self.disk_trouble = None;
        }
        self.tell();
    }

    fn publish(&self) {
        self.current
            .send_replace(Load::Loaded(Arc::new(self.stored.clone())));
    }

    fn tell(&self) {
        let place = match self.config.backend {
            StateBackend::File => format!("file {}", self.config.file.display()),
            StateBackend::Secret => {
                format!("Secret {}/{}", self.config.namespace, self.config.secret_name)
            }
        };
        let secret_trouble = self.secret_trouble.as_ref().filter(|_| self.pending);
        let (status, text) = match (secret_trouble, &self.disk_trouble) {
            (None, None) => (Status::True, format!("kept in {place}")),
            // One of the two is enough as long as this pod lives; that is no reason to take the agent out of service.
            (Some(reason), None) => (Status::True, format!("kept in the copy only: {reason}")),
            (None, Some(reason)) if self.config.backend == StateBackend::Secret && !self.pending => {
                (Status::True, format!("kept in {place} only: {reason}"))
            }
            (None, Some(reason)) => (Status::False, reason.clone()),
            (Some(secret), Some(disk)) => (Status::False, format!("{disk}; {secret}")),
        };
        self.conditions.set(CONDITION, status, text);
    }

    fn secret_reason(&self, what: &str, error: &DoorError) -> String {
        match error {
            DoorError::Unreachable(_) => format!("state: {error}"),
            DoorError::Refused { .. } | DoorError::Conflict => {
                let (namespace, name) = (&self.config.namespace, &self.config.secret_name);
                format!("state: Secret {namespace}/{name} {what}: {error}")
            }
        }
    }
}

fn local_path(config: &StateConfig) -> &std::path::Path {
    match config.backend {
        StateBackend::File => &config.file,
        StateBackend::Secret => &config.copy,
    }
}

/// The Secret's word counts, except for what the copy holds and the Secret was not told yet.
pub(super) fn unite(secret: Option<Stored>, copy: Option<Stored>) -> Stored {
    let (secret, copy) = (secret.unwrap_or_default(), copy.unwrap_or_default());
    let (mut weaker, stronger) = if copy.get(UNSAVED).is_some() {
        (secret, copy)
    } else {
        (copy, secret)
    };
    weaker.merge(&stronger);
    weaker
}
