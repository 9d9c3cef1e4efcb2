//! Decides which lanes there are and when each tries again.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use chisel_ssh::Advice;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use proto::v1::ForwardState;
use runtime::backoff::Backoff;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Command, Parts,
    lane::{End, Event, Run, Up},
    open::{Endpoint, Failure, Rejected, asked_wait},
};
use crate::{
    carrier::Route,
    metrics::Counters,
    plan::{Kind, LaneId, Step, View, absorbed, plan},
    remotes::Listen,
    spec::{Desired, Liveness, Tunnel},
};

/// Lane events wait here while the manager is between two awaits; it reads them before anything else.
const EVENTS: usize = 64;

/// Owns the lanes.
#[derive(Debug)]
pub struct Manager {
    pub(super) parts: Parts,
    commands: mpsc::Receiver<Command>,
    pub(super) desired: Option<Desired>,
    /// Set while the tunnel is closed because nothing moved.
    pub(super) asleep: Option<String>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) lanes: BTreeMap<LaneId, Lane>,
    running: FuturesUnordered<BoxFuture<'static, (LaneId, End)>>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    liveness: watch::Sender<Liveness>,
    next_lane: LaneId,
    /// Old sessions must end before new ones ask for the same ports.
    clearing: bool,
    pub(super) counters: HashMap<String, Counters>,
    pub(super) since: HashMap<String, (ForwardState, SystemTime)>,
    pub(super) last_cause: String,
    pub(super) key_changed: Option<String>,
    pub(super) round_trip: Option<(Duration, SystemTime)>,
    pub(super) connects: u64,
}

/// One lane as the manager keeps it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) kind: Kind,
    pub(super) listens: Vec<Listen>,
    pub(super) state: LaneState,
    /// Why its last try failed; empty when it did not.
    pub(super) failure: String,
    /// What the server said about single forwards in the last try.
    pub(super) refusals: HashMap<String, String>,
    fate: Fate,
    stop: CancellationToken,
    retry: Backoff,
    port_taken: Backoff,
    slow: Backoff,
}

#[derive(Debug)]
pub(super) enum LaneState {
    Waiting(SystemTime),
    Opening,
    Up {
        since: SystemTime,
        fingerprint: String,
        algorithms: String,
    },
}

/// What happens to a lane when its run ends.
#[derive(Debug)]
enum Fate {
    Keep,
    Reopen(Vec<Listen>),
    Stop,
}

impl Manager {
    pub(super) fn new(parts: Parts, commands: mpsc::Receiver<Command>) -> Self {
        let nothing = Liveness {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
        };
        Self {
            parts,
            commands,
            desired: None,
            asleep: None,
            endpoint: None,
            lanes: BTreeMap::new(),
            running: FuturesUnordered::new(),
            events: mpsc::channel(EVENTS),
            liveness: watch::Sender::new(nothing),
            next_lane: 1,
            clearing: false,
            counters: HashMap::new(),
            since: HashMap::new(),
            last_cause: String::new(),
            key_changed: None,
            round_trip: None,
            connects: 0,
        }
    }

    /// Keeps the link until the process drains and the last session has said goodbye.
    ///
    /// # Errors
    /// Never.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let supervisor = self.parts.supervisor.clone();
        let mut ended = self.parts.carrier.connections().ended();
        self.publish();
        loop {
            let draining = supervisor.is_draining();
            if draining && self.running.is_empty() {
                return Ok(());
            }
            let silence = self.silence_ends();
            tokio::select! {
                // Events come first: what a lane said before it ended is read before its end.
                biased;
                Some(event) = self.events.1.recv() => self.on_event(event),
                Some((id, end)) = self.running.next(), if !self.running.is_empty() => self.on_end(id, end),
                Some(command) = self.commands.recv(), if !draining => self.on_command(command),
                _ = ended.changed(), if self.has_removed_forwards() => self.replan(),
                () = sleep_until(silence.unwrap_or_else(Instant::now)), if silence.is_some() => self.on_silence(),
                () = supervisor.draining(), if !draining => info!("no new sessions or connections from here on"),
            }
            self.publish();
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Apply(desired) => self.apply(desired),
            Command::Reconnect(reason) => {
                info!(reason, "reconnecting because somebody asked");
                self.last_cause = if reason.is_empty() {
                    "asked to reconnect".to_owned()
                } else {
                    reason
                };
                self.wake();
                self.clear();
                self.replan();
            }
        }
    }

    fn apply(&mut self, desired: Desired) {
        let slept = self.wake();
        if self.desired.as_ref() == Some(&desired) && !slept {
            return;
        }
        log_readings(self.desired.as_ref(), &desired);
        match &desired {
            Desired::Tunnel(tunnel) => {
                if self
                    .endpoint
                    .as_ref()
                    .is_none_or(|endpoint| endpoint.link != tunnel.link)
                {
                    self.relink(tunnel);
                }
                self.liveness.send_replace(tunnel.liveness);
            }
            Desired::Idle { reason } => {
                info!(reason, "the tunnel is idle");
                self.endpoint = None;
            }
            Desired::Refused { reason, .. } => {
                warn!(reason, "the spec cannot be carried out");
                self.endpoint = None;
            }
        }
        self.desired = Some(desired);
        self.set_routes();
        self.replan();
    }

    /// Another server, other credentials or another trust: all sessions are made anew.
    fn relink(&mut self, tunnel: &Tunnel) {
        self.clear();
        self.key_changed = None;
        let Parts {
            known,
            timing,
            max_connections,
            ..
        } = &self.parts;
        self.endpoint = match Endpoint::new(tunnel.link.clone(), Arc::clone(known), *timing, *max_connections)
        {
            Ok(endpoint) => Some(Arc::new(endpoint)),
            Err(error) => {
                self.last_cause = format!("tunnel.ca_file: {error}");
                warn!("{}", self.last_cause);
                None
            }
        };
    }

    /// Ends every session; the next ones start when all have ended, so that the ports are free.
    fn clear(&mut self) {
        for lane in self.lanes.values_mut() {
            lane.fate = Fate::Stop;
            lane.stop.cancel();
        }
        self.clearing = !self.lanes.is_empty();
    }

    fn wake(&mut self) -> bool {
        self.parts.carrier.connections().active();
        self.asleep.take().is_some()
    }

    fn set_routes(&mut self) {
        let mut routes = HashMap::new();
        for forward in self
            .tunnel()
            .map(|tunnel| tunnel.forwards.clone())
            .unwrap_or_default()
        {
            let Ok(way) = forward.way else { continue };
            let metrics = &self.parts.metrics;
            let counters = self
                .counters
                .entry(forward.name.clone())
                .or_insert_with(|| metrics.forward(&forward.name))
                .clone();
            let route = Route {
                forward: forward.name,
                dials: way.target.dials,
                counters,
            };
            routes.insert(way.listen.channel_target(), route);
        }
        self.parts.carrier.set_routes(routes);
    }

    pub(super) fn tunnel(&self) -> Option<&Tunnel> {
        match &self.desired {
            Some(Desired::Tunnel(tunnel)) => Some(tunnel),
            Some(Desired::Idle { .. } | Desired::Refused { .. }) | None => None,
        }
    }

    fn wanted(&self) -> Vec<Listen> {
        if self.asleep.is_some() || self.endpoint.is_none() {
            return Vec::new();
        }
        let forwards = self.tunnel().map_or(&[][..], |tunnel| &tunnel.forwards);
        forwards
            .iter()
            .filter_map(|forward| forward.way.as_ref().ok())
            .map(|way| way.listen.clone())
            .collect()
    }

    fn views(&self) -> Vec<View> {
        let connections = self.parts.carrier.connections();
        let staying = self
            .lanes
            .iter()
            .filter(|(_, lane)| !matches!(lane.fate, Fate::Stop));
        staying
            .map(|(id, lane)| View {
                id: *id,
                kind: lane.kind,
                connected: matches!(lane.state, LaneState::Up { .. }) && matches!(lane.fate, Fate::Keep),
                listens: match &lane.fate {
                    Fate::Reopen(listens) => listens.clone(),
                    Fate::Keep | Fate::Stop => lane.listens.clone(),
                },
                busy: connections.busy(*id),
            })
            .collect()
    }

    fn has_removed_forwards(&self) -> bool {
        let Some(tunnel) = self.tunnel() else { return false };
        let wanted = |listen: &Listen| {
            tunnel
                .forwards
                .iter()
                .any(|forward| forward.way.as_ref().is_ok_and(|way| way.listen == *listen))
        };
        self.lanes.values().any(|lane| !lane.listens.iter().all(wanted))
    }

    fn replan(&mut self) {
        if self.parts.supervisor.is_draining() || self.clearing {
            return;
        }
        for step in plan(&self.views(), &self.wanted()) {
            match step {
                Step::Start(listens) => {
                    self.add(Kind::Common, listens, Duration::ZERO);
                }
                Step::Stop(id) => self.end(id, Fate::Stop),
                Step::Reopen(id, listens) => self.end(id, Fate::Reopen(listens)),
            }
        }
    }

    fn end(&mut self, id: LaneId, fate: Fate) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.fate = fate;
            lane.stop.cancel();
        }
    }

    fn add(&mut self, kind: Kind, listens: Vec<Listen>, wait: Duration) -> LaneId {
        let id = self.next_lane;
        self.next_lane += 1;
        let timing = &self.parts.timing;
        let lane = Lane {
            kind,
            listens,
            state: LaneState::Opening,
            failure: String::new(),
            refusals: HashMap::new(),
            fate: Fate::Keep,
            stop: CancellationToken::new(),
            retry: Backoff::new(timing.retry),
            port_taken: Backoff::new(timing.port_taken),
            slow: Backoff::new(timing.slow),
        };
        self.lanes.insert(id, lane);
        self.start(id, wait);
        id
    }

    fn start(&mut self, id: LaneId, wait: Duration) {
        let (Some(lane), Some(endpoint)) = (self.lanes.get_mut(&id), &self.endpoint) else {
            self.lanes.remove(&id);
            return;
        };
        lane.fate = Fate::Keep;
        lane.stop = CancellationToken::new();
        lane.state = if wait.is_zero() {
            LaneState::Opening
        } else {
            LaneState::Waiting(SystemTime::now() + wait)
        };
        let run = Run {
            id,
            listens: lane.listens.clone(),
            wait,
            stop: lane.stop.clone(),
            endpoint: Arc::clone(endpoint),
            liveness: self.liveness.subscribe(),
            carrier: self.parts.carrier.clone(),
            metrics: self.parts.metrics.clone(),
            supervisor: self.parts.supervisor.clone(),
            events: self.events.0.clone(),
            timing: self.parts.timing,
        };
        self.running.push(Box::pin(run.run()));
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opening(id) => {
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.state = LaneState::Opening;
                }
            }
            Event::Up(id, up) => self.on_up(id, *up),
            Event::Pong(round_trip) => {
                self.round_trip = Some((round_trip, SystemTime::now()));
            }
        }
    }

    fn on_up(&mut self, id: LaneId, up: Up) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        if !matches!(lane.fate, Fate::Keep) {
            // It ends in a moment, and its forwards are spoken for.
            return;
        }
        let names: Vec<_> = up.listens.iter().map(|listen| listen.name.as_str()).collect();
        info!(lane = id, fingerprint = %up.fingerprint, forwards = names.join(","), "session open");
        let algorithms = up.algorithms;
        lane.listens = up.listens;
        lane.kind = Kind::Common;
        lane.failure.clear();
        lane.refusals.clear();
        lane.state = LaneState::Up {
            since: SystemTime::now(),
            fingerprint: up.fingerprint.to_string(),
            algorithms: format!(
                "{}, {}, {} out, {} in",
                algorithms.kex, algorithms.host_key, algorithms.cipher_out, algorithms.cipher_in
            ),
        };
        self.connects += 1;
        self.key_changed = up.key_changed;
        self.parts.carrier.connections().active();
        let (denied, taken): (Vec<_>, Vec<_>) = up.rejected.into_iter().partition(|rejected| rejected.denied);
        self.set_apart(Kind::Denied, &denied);
        self.set_apart(Kind::PortTaken, &taken);
        self.replan();
    }

    /// Forwards that the server refused wait in a lane of their own.
    fn set_apart(&mut self, kind: Kind, rejected: &[Rejected]) {
        if rejected.is_empty() {
            return;
        }
        for rejected in rejected {
            warn!(
                forward = rejected.listen.name,
                "the server refused this forward, the others go on: {}", rejected.text
            );
        }
        let mut listens: Vec<_> = rejected.iter().map(|rejected| rejected.listen.clone()).collect();
        let mut refusals = texts(rejected);
        // Those that wait for the same reason wait together, so that they come back as one session.
        let waiting = |(_, lane): &(&LaneId, &mut Lane)| {
            lane.kind == kind
                && matches!(lane.fate, Fate::Keep)
                && !matches!(lane.state, LaneState::Up { .. })
        };
        for (_, other) in self.lanes.iter_mut().filter(waiting) {
            listens.append(&mut other.listens);
            refusals.extend(std::mem::take(&mut other.refusals));
            other.fate = Fate::Stop;
            other.stop.cancel();
        }
        let timing = &self.parts.timing;
        let wait = match kind {
            Kind::Denied => Backoff::new(timing.slow).next(Some(timing.slow_least)),
            Kind::Common | Kind::PortTaken => Backoff::new(timing.port_taken).next(None),
        };
        let id = self.add(kind, listens, wait);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.refusals = refusals;
        }
    }

    fn on_end(&mut self, id: LaneId, end: End) {
        match &end {
            End::Stopped => {}
            End::Failed(failure) => self.parts.metrics.ends.with_label_values(&[failure.cause]).inc(),
            End::Lost { cause, .. } => self.parts.metrics.ends.with_label_values(&[*cause]).inc(),
        }
        let draining = self.parts.supervisor.is_draining();
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        match (std::mem::replace(&mut lane.fate, Fate::Keep), end) {
            (Fate::Stop, _) | (Fate::Keep, End::Stopped) => {
                self.lanes.remove(&id);
            }
            (Fate::Reopen(_) | Fate::Keep, _) if draining => {
                self.lanes.remove(&id);
            }
            (Fate::Reopen(listens), _) => {
                lane.listens = listens;
                self.start(id, Duration::ZERO);
            }
            (Fate::Keep, End::Failed(failure)) => self.on_failure(id, failure),
            (Fate::Keep, End::Lost { text, after, .. }) => self.on_loss(id, text, after),
        }
        if self.clearing && self.lanes.is_empty() {
            self.clearing = false;
        }
        self.replan();
    }

    fn on_failure(&mut self, id: LaneId, failure: Failure) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        let least = self.parts.timing.slow_least;
        let port_taken = failure.rejected.iter().any(|rejected| !rejected.denied);
        let wait = match failure.advice {
            _ if port_taken => lane.port_taken.next(None),
            Advice::RetrySlowly | Advice::Fix => lane.slow.next(Some(least)),
            Advice::Retry | Advice::RetryAfter(_) => lane.retry.next(asked_wait(failure.advice)),
        };
        warn!(lane = id, retry_in = ?wait, "no session: {}", failure.text);
        if failure.key_changed {
            self.key_changed = Some(failure.text.clone());
        }
        lane.refusals = texts(&failure.rejected);
        self.last_cause.clone_from(&failure.text);
        lane.failure = failure.text;
        self.retry(id, wait);
    }

    fn on_loss(&mut self, id: LaneId, text: String, after: Duration) {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        // "Connected and dropped at once" is a failure like any other: only a real session starts the series anew.
        for series in [&mut lane.retry, &mut lane.port_taken, &mut lane.slow] {
            series.session_lasted(after);
        }
        let wait = lane.retry.next(None);
        warn!(lane = id, ?after, retry_in = ?wait, "session lost: {text}");
        lane.failure.clone_from(&text);
        self.last_cause = text;
        self.retry(id, wait);
    }

    /// Tries a lane again, together with those that are down anyway.
    fn retry(&mut self, id: LaneId, wait: Duration) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.state = LaneState::Waiting(SystemTime::now() + wait);
            if lane.kind == Kind::Common {
                for other in absorbed(&self.views(), id) {
                    self.absorb(id, other);
                }
            }
        }
        self.start(id, wait);
    }

    fn absorb(&mut self, id: LaneId, other: LaneId) {
        let Some(absorbed) = self.lanes.get_mut(&other) else {
            return;
        };
        let listens = match std::mem::replace(&mut absorbed.fate, Fate::Stop) {
            Fate::Reopen(listens) => listens,
            Fate::Keep | Fate::Stop => std::mem::take(&mut absorbed.listens),
        };
        absorbed.listens.clear();
        absorbed.stop.cancel();
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.listens.extend(listens);
        }
    }

    fn silence_ends(&self) -> Option<Instant> {
        let inactivity = self.tunnel()?.inactivity?;
        let open = self.asleep.is_none() && !self.lanes.is_empty();
        open.then(|| self.parts.carrier.connections().last_active() + inactivity)
    }

    fn on_silence(&mut self) {
        let Some(inactivity) = self.tunnel().and_then(|tunnel| tunnel.inactivity) else {
            return;
        };
        info!(
            ?inactivity,
            "nothing moved: closing the tunnel until the spec or somebody asks again"
        );
        self.asleep = Some(format!(
            "closed because nothing moved for {inactivity:?}; opens again when asked"
        ));
        self.replan();
    }
}

fn texts(rejected: &[Rejected]) -> HashMap<String, String> {
    rejected
        .iter()
        .map(|rejected| (rejected.listen.name.clone(), rejected.text.clone()))
        .collect()
}

/// One line for each address of the seeds that is read as a name, once.
fn log_readings(before: Option<&Desired>, after: &Desired) {
    let readings = |desired: &Desired| match desired {
        Desired::Tunnel(tunnel) => {
            let read = |forward: &crate::spec::Forward| {
                let name = forward.way.as_ref().ok()?.target.read_as?;
                Some((forward.target.clone(), name))
            };
            tunnel.forwards.iter().filter_map(read).collect()
        }
        Desired::Idle { .. } | Desired::Refused { .. } => Vec::new(),
    };
    let known = before.map(readings).unwrap_or_default();
    for (written, name) in readings(after)
        .into_iter()
        .filter(|reading| !known.contains(reading))
    {
        info!("in a cluster {written} answers nobody: read as the target {name}");
    }
}
