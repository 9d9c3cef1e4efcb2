//! Nodes, pods and version of the cluster, from calls that stay cheap in a cluster of any size.

use std::time::Duration;

use runtime::{
    backoff::{Backoff, Policy},
    supervise::Supervisor,
};
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::{hub::Hub, kubernetes::Door};

/// Heartbeats repeat the counts; this is how old they may be.
const REFRESH: Duration = Duration::from_secs(30);
/// Counts that could not be refreshed for so long are not known any more.
const STALE: Duration = Duration::from_secs(120);
/// The first counts should be in one of the first heartbeats.
const RETRY: Policy = Policy {
    min: Duration::from_millis(200),
    max: Duration::from_secs(5),
    stable: Duration::from_secs(60),
};

/// Refreshes until the drain.
pub(crate) async fn refresh(hub: Hub, door: Door, supervisor: Supervisor) {
    let mut backoff = Backoff::new(RETRY);
    let mut last: Option<Instant> = None;
    loop {
        let (version, nodes, pods) = tokio::join!(door.version(), door.nodes(), door.pods());
        let (old_version, old_nodes, old_pods) = hub.inventory();
        let stale = last.is_none_or(|at| at.elapsed() >= STALE);
        let keep = |old: Option<u64>| if stale { None } else { old };
        let failed = version.is_err() || nodes.is_err() || pods.is_err();
        for error in [version.as_ref().err(), nodes.as_ref().err(), pods.as_ref().err()]
            .into_iter()
            .flatten()
        {
            debug!(%error, "the cluster could not be counted");
        }
        // A cluster's version does not get lost with the connection to it.
        let version = version.map(|info| info.git_version).ok().or(old_version);
        let nodes = nodes.unwrap_or_else(|_| keep(old_nodes));
        let pods = pods.unwrap_or_else(|_| keep(old_pods));
        hub.set_inventory(version, nodes, pods);
        let pause = if failed {
            backoff.next(None)
        } else {
            last = Some(Instant::now());
            backoff.reset();
            REFRESH
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = supervisor.draining() => return,
        }
    }
}
