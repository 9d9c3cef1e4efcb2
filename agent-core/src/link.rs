//! The loop that drives the session: it owns the clock, the calls to the control plane and the goodbye.
//!
//! ```text
//!   identity ─┐                        ┌─► register ─┐
//!   timers   ─┼─► Session ─► actions ──┤             ├─► outcomes ─► Session
//!   people   ─┘     (pure)             └─► beat ─────┘      (no call is ever waited for)
//! ```
//!
//! Calls run side by side as futures in here: a heartbeat without an answer delays neither the next one nor
//! anything else. At the drain the control plane hears of it first; the last beat says `disconnected` when the
//! siblings are gone or the deadline is near.

use std::{
    collections::VecDeque,
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use proto::v1::{HeartbeatResult, ProxyLimits};
use runtime::{
    conditions::Status,
    secret::{ExposeSecret as _, hex, sha256},
    supervise::Supervisor,
};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    config::{TERMINATION_LOG, TokenSource},
    control_plane::{BeatOutcome, ControlPlane, RegisterOutcome},
    events::{EventKind, Events},
    hub::Hub,
    reports::timestamp,
    session::{Action, Event, Phase, Session},
    state::{
        API_URL, CLUSTER_ID, PROXY_TOKEN, PROXY_URL, REGISTRATION, Stored,
        keeper::{Identity, Load},
    },
    wire::{heartbeat::Heartbeat, register::Registration},
};

/// How often the token file is looked at, so that a refused agent uses a new token at once.
const TOKEN_CHECK: Duration = Duration::from_secs(2);
/// A control plane that is redeployed is away for less than this; longer silence makes the agent not ready.
const SILENCE: Duration = Duration::from_secs(60);
/// Beats that may be without an answer at the same time.
const BEATS_IN_FLIGHT: usize = 4;
/// The last word must not use up the drain.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Left of the drain when the last word is said at the latest.
const GOODBYE_RESERVE: Duration = Duration::from_secs(3);
/// Siblings that are asked to stop together with us show it within this time; others are not stopping at all.
const SIBLINGS_REACT: Duration = Duration::from_secs(2);
/// How often a draining process looks whether its siblings are gone.
const LEAVE_LOOK: Duration = Duration::from_millis(100);
/// Callers of the local API that may wait at the same time.
pub(crate) const COMMANDS: usize = 16;

const REGISTERED: &str = "Registered";
const REFUSED: &str = "Refused";
const HEARTBEAT: &str = "Heartbeat";

/// The end of the link that ends the process.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

/// What people ask for.
#[derive(Debug)]
pub(crate) enum Command {
    Beat(oneshot::Sender<HeartbeatResult>),
    Register(oneshot::Sender<Result<String, String>>),
}

/// Everything the link needs.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) session: Session,
    pub(crate) control_plane: Arc<ControlPlane>,
    pub(crate) identity: Identity,
    pub(crate) hub: Hub,
    pub(crate) events: Events,
    /// What is registered, without agent id, cluster and time.
    pub(crate) registration: Registration,
    pub(crate) service_token: Option<TokenSource>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) supervisor: Supervisor,
    pub(crate) drain_timeout: Duration,
    pub(crate) termination_log: PathBuf,
    /// What the control plane asks k8s-proxy's callers to keep to.
    pub(crate) asked_limits: watch::Sender<ProxyLimits>,
    /// Told at the very end: local streams close.
    pub(crate) leaving: CancellationToken,
}

enum Done {
    Registration(RegisterOutcome),
    Beat {
        outcome: BeatOutcome,
        result: HeartbeatResult,
        replies: Vec<oneshot::Sender<HeartbeatResult>>,
    },
}

type InFlight = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>;

/// What the loop holds between two turns.
struct Turn {
    calls: InFlight,
    beats: usize,
    want_beat: Vec<oneshot::Sender<HeartbeatResult>>,
    want_registration: VecDeque<oneshot::Sender<Result<String, String>>>,
    token: [u8; 32],
}

impl Link {
    /// Runs until the drain is over.
    ///
    /// # Errors
    /// A final refusal of the very first registration.
    pub(crate) async fn run(mut self) -> Result<(), Refused> {
        // However this task ends, the local streams end with it: nothing may hold up the end of the process.
        let _leaving = self.leaving.clone().drop_guard();
        let mut load = self.identity.watch();
        let mut turn = Turn {
            calls: FuturesUnordered::new(),
            beats: 0,
            want_beat: Vec::new(),
            want_registration: VecDeque::new(),
            token: self.control_plane.token_digest(),
        };
        let mut token_check = tokio::time::interval(TOKEN_CHECK);
        let started = Instant::now() - self.hub.now();
        self.load(&load.borrow_and_update().clone());
        let mut draining: Option<Instant> = None;
        loop {
            self.act(&mut turn)?;
            self.show();
            if let Some(since) = draining
                && self.may_leave(since.elapsed())
            {
                break;
            }
            let wake = self.session.wake().map(|wake| started + wake);
            let look = (draining.is_some()).then(|| Instant::now() + LEAVE_LOOK);
            let wake = [wake, look].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = self.supervisor.draining(), if draining.is_none() => {
                    draining = Some(Instant::now());
                    self.session.on(self.hub.now(), Event::Drain);
                    // The beat that is due now already says so.
                    self.show();
                }
                Some(done) = turn.calls.next() => self.done(done, &mut turn),
                Ok(()) = load.changed() => {
                    let seen = load.borrow_and_update().clone();
                    self.load(&seen);
                }
                Some(command) = self.commands.recv() => self.command(command, &mut turn),
                _ = token_check.tick() => self.check_token(&mut turn),
                () = async { match wake { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
            }
        }
        self.goodbye().await;
        Ok(())
    }

    fn load(&mut self, load: &Load) {
        let now = self.hub.now();
        match load {
            Load::Waiting(reason) => self.session.on(now, Event::Waiting(reason.clone())),
            Load::Loaded(stored) => {
                let agent_id = stored.get(crate::state::AGENT_ID).unwrap_or_default();
                agent_id.clone_into(&mut self.registration.agent_id);
                let cluster = stored.get(CLUSTER_ID).map(str::to_owned);
                let current = stored.get(REGISTRATION) == Some(self.registration_digest().as_str());
                self.session.on(now, Event::Loaded { cluster, current });
                self.hub.set_identity(agent_id, self.session.cluster());
            }
        }
    }

    fn act(&mut self, turn: &mut Turn) -> Result<(), Refused> {
        for action in self.session.poll(self.hub.now()) {
            match action {
                Action::Register { hint } => turn.calls.push(self.register(hint)),
                Action::Beat { cluster } if turn.beats < BEATS_IN_FLIGHT => {
                    turn.beats += 1;
                    let replies = std::mem::take(&mut turn.want_beat);
                    turn.calls.push(self.beat(cluster, "active", None, replies));
                }
                Action::Beat { .. } => debug!("a beat is skipped: the ones before it are without an answer"),
                Action::Fail(sentence) => {
                    self.show();
                    self.events.emit(EventKind::Refused, &sentence);
                    write_termination_log(&self.termination_log, &sentence);
                    return Err(Refused(sentence));
                }
            }
        }
        Ok(())
    }

    fn done(&mut self, done: Done, turn: &mut Turn) {
        let now = self.hub.now();
        match done {
            Done::Registration(RegisterOutcome::Registered(registered)) => {
                let cluster = registered.cluster_id.clone();
                info!(
                    cluster_id = cluster,
                    name = registered.name,
                    workspace_id = registered.workspace_id,
                    "registered with the control plane"
                );
                self.events
                    .emit(EventKind::Registered, &format!("registered as cluster {cluster}"));
                self.session.on(
                    now,
                    Event::Registered {
                        cluster: cluster.clone(),
                    },
                );
                self.hub.set_identity(&self.registration.agent_id, Some(&cluster));
                for reply in turn.want_registration.drain(..) {
                    reply.send(Ok(cluster.clone())).ok();
                }
            }
            Done::Registration(RegisterOutcome::Refused { sentence }) => {
                warn!("{sentence}");
                for reply in turn.want_registration.drain(..) {
                    reply.send(Err(sentence.clone())).ok();
                }
                self.session.on(now, Event::RegistrationRefused { sentence });
            }
            Done::Registration(RegisterOutcome::Failed { reason, retry_after }) => {
                warn!(reason, "registration failed; trying again");
                for reply in turn.want_registration.drain(..) {
                    reply.send(Err(reason.clone())).ok();
                }
                self.session
                    .on(now, Event::RegistrationFailed { reason, retry_after });
            }
            Done::Beat {
                outcome,
                result,
                replies,
            } => {
                turn.beats = turn.beats.saturating_sub(1);
                for reply in replies {
                    reply.send(result.clone()).ok();
                }
                self.hub.beat_done(result);
                let event = match outcome {
                    BeatOutcome::Accepted { limits } => {
                        self.ask_limits(limits);
                        Event::BeatAccepted
                    }
                    BeatOutcome::Refused { reason } => {
                        warn!(reason, "a heartbeat was refused");
                        Event::BeatRefused { reason }
                    }
                    BeatOutcome::Failed { reason, retry_after } => {
                        warn!(reason, "a heartbeat was missed");
                        Event::BeatFailed { reason, retry_after }
                    }
                };
                self.session.on(now, event);
            }
        }
    }

    fn ask_limits(&self, limits: ProxyLimits) {
        self.asked_limits.send_if_modified(|asked| {
            let changed = *asked != limits;
            if changed {
                info!(
                    ?limits,
                    "the control plane asks for other limits of k8s-proxy's callers"
                );
                *asked = limits;
            }
            changed
        });
    }

    fn command(&mut self, command: Command, turn: &mut Turn) {
        let now = self.hub.now();
        match command {
            Command::Beat(reply) => {
                self.session.on(now, Event::BeatWanted);
                let beats = self.session.cluster().is_some() && self.session.phase() != Phase::Refused;
                if beats {
                    turn.want_beat.push(reply);
                } else {
                    let error = format!("no heartbeat is sent: {}", self.session.reason());
                    let result = HeartbeatResult {
                        error,
                        at: Some(now_wall()),
                        ..HeartbeatResult::default()
                    };
                    reply.send(result).ok();
                }
            }
            Command::Register(reply) => {
                if matches!(self.session.phase(), Phase::Loading | Phase::Draining) {
                    let reason = self.session.reason().to_owned();
                    reply.send(Err(format!("nothing is registered: {reason}"))).ok();
                } else {
                    turn.want_registration.push_back(reply);
                    self.session.on(now, Event::RegistrationWanted);
                }
            }
        }
    }

    fn check_token(&mut self, turn: &mut Turn) {
        let digest = self.control_plane.token_digest();
        if digest != turn.token {
            turn.token = digest;
            info!("the control-plane token has changed");
            self.session.on(self.hub.now(), Event::TokenChanged);
        }
    }

    fn register(&self, hint: Option<String>) -> Pin<Box<dyn Future<Output = Done> + Send>> {
        self.hub.metrics().registration_attempts.inc();
        let registration = Registration {
            cluster_id: hint,
            k8s_version: self.hub.inventory().0,
            timestamp: timestamp(std::time::SystemTime::now()),
            ..self.registration.clone()
        };
        let digest = self.registration_digest();
        let service_token = self.service_token.as_ref().map(TokenSource::read);
        let (control_plane, identity) = (Arc::clone(&self.control_plane), self.identity.clone());
        Box::pin(async move {
            let token = match service_token {
                Some(Err(reason)) => {
                    let reason = format!("kubernetes.service_token_file: {reason}");
                    return Done::Registration(RegisterOutcome::Failed {
                        reason,
                        retry_after: None,
                    });
                }
                Some(Ok(token)) => Some(token),
                None => None,
            };
            let body = registration.to_body(token.as_ref().map(|token| token.expose_secret()));
            let outcome = control_plane.register(&body, token.is_some()).await;
            if let RegisterOutcome::Registered(registered) = &outcome {
                let mut changes = Stored::default()
                    .with(CLUSTER_ID, &registered.cluster_id)
                    .with(REGISTRATION, &digest)
                    .with(API_URL, control_plane.url().as_str());
                if let (Some(url), Some(token)) = (&registered.proxy_url, &registered.proxy_token) {
                    changes.set(PROXY_URL, url);
                    changes.set(PROXY_TOKEN, token.expose_secret());
                }
                if let Err(reason) = identity.update(changes).await {
                    // The registration holds; a restart would ask again with the same agent id.
                    warn!(reason, "the registration could not be kept");
                }
            }
            Done::Registration(outcome)
        })
    }

    fn beat(
        &self,
        cluster: String,
        status: &'static str,
        limit: Option<Duration>,
        replies: Vec<oneshot::Sender<HeartbeatResult>>,
    ) -> Pin<Box<dyn Future<Output = Done> + Send>> {
        self.hub.expire_reports();
        let beat = Heartbeat {
            cluster_id: cluster.clone(),
            agent_id: self.registration.agent_id.clone(),
            status,
            tunnel_status: self.hub.tunnel_word(),
            timestamp: timestamp(std::time::SystemTime::now()),
            metadata: self.hub.heartbeat_metadata(),
            agent: self.hub.agent_state(),
        };
        let body = serde_json::to_value(beat).unwrap_or(Value::Null);
        let control_plane = Arc::clone(&self.control_plane);
        let at = Some(now_wall());
        Box::pin(async move {
            let started = Instant::now();
            let (http_status, outcome) = control_plane.beat(&cluster, &body, limit).await;
            let (accepted, error) = match &outcome {
                BeatOutcome::Accepted { .. } => (true, String::new()),
                BeatOutcome::Refused { reason } | BeatOutcome::Failed { reason, .. } => {
                    (false, reason.clone())
                }
            };
            let duration_ms = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
            let result = HeartbeatResult {
                at,
                accepted,
                http_status: u32::from(http_status),
                duration_ms,
                error,
            };
            Done::Beat {
                outcome,
                result,
                replies,
            }
        })
    }

    /// Puts what the session says where people, kubelet and siblings look.
    fn show(&self) {
        let (phase, reason) = (self.session.phase(), self.session.reason());
        let before = self.hub.set_phase(phase, reason);
        if before != phase {
            info!(?phase, reason, "registration");
            if phase == Phase::Refused {
                self.events.emit(EventKind::Refused, reason);
            }
        }
        let conditions = self.hub.conditions();
        match phase {
            Phase::Active | Phase::Lapsed => {
                let cluster = self.session.cluster().unwrap_or_default();
                conditions.set(REGISTERED, Status::True, format!("as cluster {cluster}"));
            }
            Phase::Draining => {}
            Phase::Loading | Phase::Unregistered | Phase::Registering | Phase::Refused => {
                conditions.set(REGISTERED, Status::False, reason);
            }
        }
        let refused = if phase == Phase::Refused {
            Status::True
        } else {
            Status::NotApplicable
        };
        let words = if phase == Phase::Refused {
            reason
        } else {
            "the control plane does not refuse this agent"
        };
        conditions.set(REFUSED, refused, words);
        let silence = self
            .session
            .last_accepted()
            .map(|at| self.hub.now().saturating_sub(at));
        match silence {
            Some(silence) if silence < SILENCE => conditions.set(HEARTBEAT, Status::True, "accepted"),
            Some(_) => conditions.set(
                HEARTBEAT,
                Status::False,
                format!("none accepted for over a minute: {reason}"),
            ),
            None => conditions.set(HEARTBEAT, Status::False, format!("none accepted yet: {reason}")),
        }
    }

    /// Whether the last word may be said: siblings that stop too are waited for, because the page and the
    /// heartbeats tell how they come along.
    fn may_leave(&self, draining_for: Duration) -> bool {
        let (open, stopping) = self.hub.siblings();
        let latest = self.drain_timeout.saturating_sub(GOODBYE_RESERVE);
        !open
            || draining_for >= latest
            || (!stopping && draining_for >= SIBLINGS_REACT)
            || self.supervisor.is_cut()
    }

    async fn goodbye(&self) {
        let Some(cluster) = self.session.cluster() else {
            return;
        };
        if self.hub.last_accepted().is_none() {
            return;
        }
        let call = self.beat(
            cluster.to_owned(),
            "disconnected",
            Some(GOODBYE_TIMEOUT),
            Vec::new(),
        );
        if let Done::Beat { result, .. } = call.await {
            info!(
                accepted = result.accepted,
                error = result.error,
                "told the control plane goodbye"
            );
            self.hub.beat_done(result);
        }
    }

    /// What the control plane should hear of again when it changes. Host and time are left out: they change with
    /// each pod and mean nothing to it.
    fn registration_digest(&self) -> String {
        let stable = Registration {
            hostname: String::new(),
            cluster_id: None,
            k8s_version: None,
            server_ip: None,
            timestamp: String::new(),
            ..self.registration.clone()
        };
        let token = self.service_token.as_ref().and_then(|token| token.read().ok());
        let body = stable.to_body(token.as_ref().map(|token| token.expose_secret()));
        let text = format!("{}\n{body}", self.control_plane.url());
        hex(&sha256(text.as_bytes())).chars().take(32).collect()
    }
}

fn now_wall() -> prost_types::Timestamp {
    std::time::SystemTime::now().into()
}

/// Kubernetes shows this text in the container's last state. The default path exists only in a pod and is not made
/// elsewhere; one that the owner names is.
fn write_termination_log(path: &Path, sentence: &str) {
    let create = path != Path::new(TERMINATION_LOG);
    let written = OpenOptions::new()
        .write(true)
        .truncate(true)
        .create(create)
        .open(path)
        .and_then(|mut file| file.write_all(sentence.as_bytes()));
    if let Err(error) = written
        && (create || error.kind() != std::io::ErrorKind::NotFound)
    {
        warn!(%error, path = %path.display(), "cannot write the termination log");
    }
}
