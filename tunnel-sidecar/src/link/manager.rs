//! Decides which lanes there are and when each tries again.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use proto::v1::ForwardState;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Command, Parts,
    lane::{End, Event, Run},
    open::Endpoint,
    state::{Fate, Lane, LaneState},
};
use crate::{
    carrier::{Leads, Route},
    limits::Limiter,
    metrics::Counters,
    plan::{Kind, LaneId, Step, View, plan},
    remotes::Listen,
    spec::{Desired, Goal, Link, Liveness, Tunnel},
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
    pub(super) clearing: bool,
    pub(super) counters: HashMap<String, Counters>,
    limiters: HashMap<String, Limiter>,
    pub(super) since: HashMap<String, (ForwardState, SystemTime)>,
    pub(super) last_cause: String,
    pub(super) key_changed: Option<String>,
    pub(super) round_trip: Option<(Duration, SystemTime)>,
    pub(super) connects: u64,
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
            limiters: HashMap::new(),
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
        let mut local = self.parts.carrier.locals().changes();
        let mut proven = self.parts.carrier.proofs().changes();
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
                // A listener of ours came up or failed; that is told, and nothing else follows from it.
                _ = local.changed() => {}
                // Published below.
                _ = proven.changed() => {}
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
                let present = self.endpoint.as_ref().map(|endpoint| endpoint.link.clone());
                if present.as_ref() != Some(&tunnel.link) {
                    self.relink(tunnel, present.as_ref());
                } else if self.sessions() != tunnel.sessions {
                    info!(sessions = tunnel.sessions, "the forwards are spread anew");
                    self.clear();
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

    /// Another server or other credentials: all sessions are made anew. Another way of trusting the same server:
    /// sessions that pass go on, and what is about to open does it in the new way.
    fn relink(&mut self, tunnel: &Tunnel, before: Option<&Link>) {
        self.key_changed = None;
        let passes = |lane: &Lane| match &lane.state {
            LaneState::Up { fingerprint, .. } => tunnel.link.accepts(fingerprint),
            LaneState::Waiting(_) | LaneState::Opening => true,
        };
        let same = before.is_some_and(|before| before.same_ends(&tunnel.link));
        if same && self.sessions() == tunnel.sessions && self.lanes.values().all(passes) {
            for lane in self.lanes.values_mut().filter(|lane| !lane.is_up()) {
                if matches!(lane.fate, Fate::Keep) {
                    lane.fate = Fate::Reopen(lane.listens.clone());
                }
                lane.stop.cancel();
            }
        } else {
            self.clear();
        }
        let Parts {
            known,
            outbound,
            timing,
            max_connections,
            ..
        } = &self.parts;
        let endpoint = Endpoint::new(
            tunnel.link.clone(),
            Arc::clone(known),
            Arc::clone(outbound),
            *timing,
            *max_connections,
        );
        self.endpoint = Some(Arc::new(endpoint));
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
        let mut locals = Vec::new();
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
            let limiter = self.limiters.entry(forward.name.clone()).or_default().clone();
            limiter.set(forward.limits);
            let leads = match way.goal {
                Goal::Target(target) => Leads::Target(target.dials),
                Goal::Socks(rules) => Leads::Socks(rules),
                Goal::Server => {
                    locals.push((way.listen, counters));
                    continue;
                }
            };
            let route = Route {
                forward: forward.name,
                leads,
                counters,
                limiter,
            };
            routes.insert(way.listen.channel_target(), route);
        }
        let metrics = &self.parts.metrics;
        self.counters.retain(|name, _| {
            let wanted = routes.values().any(|route: &Route| route.forward == *name)
                || locals.iter().any(|(listen, _)| listen.name == *name);
            if !wanted {
                metrics.forget(name);
            }
            wanted
        });
        let carrier = &self.parts.carrier;
        let wanted = |name: &str| routes.values().any(|route| route.forward == name);
        self.limiters.retain(|name, _| wanted(name));
        carrier.proofs().retain(wanted);
        let echo = self.tunnel().and_then(|tunnel| tunnel.echo.as_ref());
        carrier.set_routes(routes, locals, echo.map(Listen::channel_target));
    }

    /// Sessions that the spec in force wants side by side.
    pub(super) fn sessions(&self) -> usize {
        self.tunnel().map_or(1, |tunnel| tunnel.sessions)
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
        self.tunnel()
            .map_or_else(Vec::new, |tunnel| tunnel.listens().cloned().collect())
    }

    pub(super) fn views(&self) -> Vec<View> {
        let connections = self.parts.carrier.connections();
        let staying = self
            .lanes
            .iter()
            .filter(|(_, lane)| !matches!(lane.fate, Fate::Stop));
        staying
            .map(|(id, lane)| View {
                id: *id,
                kind: lane.kind,
                connected: lane.is_up() && matches!(lane.fate, Fate::Keep),
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
        let wanted = |listen: &Listen| tunnel.listens().any(|wanted| wanted == listen);
        self.lanes.values().any(|lane| !lane.listens.iter().all(wanted))
    }

    pub(super) fn replan(&mut self) {
        if self.parts.supervisor.is_draining() || self.clearing {
            return;
        }
        for step in plan(&self.views(), &self.wanted(), self.sessions()) {
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

    pub(super) fn add(&mut self, kind: Kind, listens: Vec<Listen>, wait: Duration) -> LaneId {
        let id = self.next_lane;
        self.next_lane += 1;
        let lane = Lane::new(kind, listens, &self.parts.timing);
        self.lanes.insert(id, lane);
        self.start(id, wait);
        id
    }

    pub(super) fn start(&mut self, id: LaneId, wait: Duration) {
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

/// One line for each address of the seeds that is read as a name, once.
fn log_readings(before: Option<&Desired>, after: &Desired) {
    let readings = |desired: &Desired| match desired {
        Desired::Tunnel(tunnel) => {
            let read = |forward: &crate::spec::Forward| {
                let name = forward.way.as_ref().ok()?.target()?.read_as?;
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
