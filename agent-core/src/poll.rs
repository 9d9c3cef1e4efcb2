//! Asks the control plane what it wants of the tunnel, and publishes the decision for tunnel-sidecar.

use std::{sync::Arc, time::Duration};

use proto::v1::TunnelSpec;
use rand::Rng as _;
use runtime::supervise::Supervisor;
use tokio::{sync::watch, time::sleep};
use tracing::{debug, info, warn};

use crate::{
    config::TunnelConfig,
    control_plane::ControlPlane,
    hub::Hub,
    session::Phase,
    spec::{
        Publisher,
        tunnel::{self, Demand},
    },
    wire::tunnel::{Answer, Path, parse},
};

/// What the control plane may set the pace to.
const PACE: (u64, u64) = (1, 300);

/// One question and what is known from it.
#[derive(Debug)]
enum Asked {
    Answered(Answer),
    /// Neither path is offered.
    NotOffered,
    Failed {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// Polls until the drain. Before the first answer nothing is published; after it, the last decision holds until
/// another one comes: a control plane that is away takes no tunnel down.
pub(crate) async fn poll(
    config: TunnelConfig,
    control_plane: Arc<ControlPlane>,
    hub: Hub,
    publisher: Publisher<TunnelSpec>,
    supervisor: Supervisor,
) {
    if let Some(spec) = tunnel::fixed(&config) {
        info!(
            enabled = spec.enabled,
            reason = spec.reason,
            "the tunnel needs no control plane"
        );
        publisher.publish(spec);
        return;
    }
    let mut path = Path::Documented;
    let mut pace = config.poll_interval;
    let mut told = String::new();
    let mut demand = Demand::default();
    let mut changes = hub.changes();
    loop {
        if !registered(&hub, &mut changes, &supervisor).await {
            return;
        }
        let mut wait = pace;
        // Before the question: an answer that was given earlier than the tunnel closed asks for nothing.
        let asleep = hub.tunnel_asleep();
        match ask(&control_plane, &hub.agent_id(), &mut path).await {
            Asked::Answered(answer) => {
                told.clear();
                if let Some(seconds) = answer.poll_frequency {
                    pace = Duration::from_secs(seconds.clamp(PACE.0, PACE.1));
                    wait = pace;
                }
                demand.note(&answer.status, asleep);
                let (spec, notes) = tunnel::from_status(&config, &answer.status, demand);
                let (enabled, reason, forwards) = (spec.enabled, spec.reason.clone(), spec.forwards.len());
                if publisher.publish(spec) {
                    info!(enabled, reason, forwards, "tunnel decision");
                    for note in notes {
                        warn!("{note}");
                    }
                }
            }
            Asked::NotOffered if publisher.current().is_none() => {
                info!("the control plane offers no tunnel");
                publisher.publish(tunnel::off(
                    &config,
                    "the control plane offers no tunnel (404)".to_owned(),
                ));
            }
            // A proxy in front of a control plane that is being replaced answers 404 too.
            Asked::NotOffered => {}
            Asked::Failed { reason, retry_after } => {
                wait = wait.max(retry_after.unwrap_or_default());
                if told == reason {
                    debug!(reason, "the tunnel status is not known");
                } else {
                    warn!(reason, "the tunnel status is not known; the last decision holds");
                    told = reason;
                }
            }
        }
        // A tenth of jitter keeps agents that started together from asking together for ever.
        let wait = wait.mul_f64(rand::rng().random_range(0.9..=1.1));
        tokio::select! {
            () = sleep(wait) => {}
            () = supervisor.draining() => return,
        }
    }
}

/// Waits until there is somebody to ask for: only a registered agent has a tunnel.
async fn registered(hub: &Hub, changes: &mut watch::Receiver<u64>, supervisor: &Supervisor) -> bool {
    loop {
        let (phase, _) = hub.phase();
        if matches!(phase, Phase::Active | Phase::Lapsed) && hub.cluster().is_some() {
            return !supervisor.is_draining();
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return false },
            () = supervisor.draining() => return false,
        }
    }
}

/// Asks on the path that answered last, and on the other one after a 404.
async fn ask(control_plane: &ControlPlane, agent_id: &str, path: &mut Path) -> Asked {
    for _ in 0..2 {
        let answer = match control_plane.get(&path.for_agent(agent_id)).await {
            Ok(answer) => answer,
            Err(reason) => {
                return Asked::Failed {
                    reason,
                    retry_after: None,
                };
            }
        };
        match answer.status.as_u16() {
            200 => {
                if let Some(foreign) = answer.foreign() {
                    return Asked::Failed {
                        reason: format!("the tunnel status is answered with 200 {foreign}"),
                        retry_after: answer.retry_after,
                    };
                }
                return match parse(&answer.body) {
                    Ok(answer) => Asked::Answered(answer),
                    Err(reason) => Asked::Failed {
                        reason: format!("tunnel status: {reason}"),
                        retry_after: None,
                    },
                };
            }
            404 => *path = path.other(),
            status => {
                return Asked::Failed {
                    reason: format!("the tunnel status is answered with {status}"),
                    retry_after: answer.retry_after,
                };
            }
        }
    }
    Asked::NotOffered
}
