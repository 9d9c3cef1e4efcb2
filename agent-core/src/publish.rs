//! Keeps the specification of k8s-proxy up to date: the stored proxy session, and tokens whose files change.

use std::{sync::Arc, time::Duration};

use proto::v1::{ProxyLimits, ProxySpec};
use runtime::supervise::Supervisor;
use tokio::{sync::watch, time::interval};
use tracing::info;

use crate::{
    config::ProxyConfig,
    control_plane::ControlPlane,
    spec::{
        Publisher,
        proxy::{Names, Session, spec},
    },
    state::{
        API_URL, PROXY_TOKEN, PROXY_URL, Stored,
        keeper::{Identity, Load},
    },
};

/// How often files with tokens are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Makes and publishes [`ProxySpec`]s.
#[derive(Debug)]
pub(crate) struct ProxyPublisher {
    pub(crate) config: ProxyConfig,
    pub(crate) names: Names,
    pub(crate) ca_pem: Option<Vec<u8>>,
    pub(crate) control_plane: Arc<ControlPlane>,
    pub(crate) publisher: Publisher<ProxySpec>,
    /// What the control plane asks for; nothing until a heartbeat was answered.
    pub(crate) asked_limits: watch::Receiver<ProxyLimits>,
}

impl ProxyPublisher {
    /// Publishes what follows from the stored state. The names are needed before the state can be read from the
    /// Secret, so the first specification is made from the copy alone: k8s-proxy then keeps its dialled door over
    /// a restart of this container, and in a new pod there is no door to keep.
    pub(crate) fn publish(&self, stored: Option<&Stored>) {
        let session = stored.map(|stored| self.session(stored)).unwrap_or_default();
        let digest = self.control_plane.token_digest();
        let spec = ProxySpec {
            limits: Some(self.config.limits),
            asked_limits: Some(*self.asked_limits.borrow()),
            ..spec(
                &self.config,
                &self.names,
                self.ca_pem.as_deref(),
                digest,
                &session,
            )
        };
        let (accept, dial, reason) = (spec.accept.len(), spec.dial.len(), spec.reason.clone());
        if self.publisher.publish(spec) {
            info!(accept, dial, reason, "proxy decision");
        }
    }

    /// A session that another control plane gave out is none.
    fn session(&self, stored: &Stored) -> Session {
        if stored
            .get(API_URL)
            .is_some_and(|url| url != self.control_plane.url().as_str())
        {
            return Session::default();
        }
        Session {
            url: stored.get(PROXY_URL).map(str::to_owned),
            token: stored.secret(PROXY_TOKEN),
        }
    }

    /// Follows the identity and the token files until the drain.
    pub(crate) async fn follow(self, identity: Identity, supervisor: Supervisor) {
        let mut load = identity.watch();
        // The sender lives in the link, which may end before us; then nothing is asked for any more.
        let mut asked = Some(self.asked_limits.clone());
        let mut look = interval(LOOK);
        loop {
            if let Load::Loaded(stored) = &*load.borrow_and_update() {
                self.publish(Some(stored));
            }
            tokio::select! {
                changed = load.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
                changed = asked_change(&mut asked) => if changed.is_err() { asked = None },
                () = supervisor.draining() => return,
            }
        }
    }
}

async fn asked_change(
    asked: &mut Option<watch::Receiver<ProxyLimits>>,
) -> Result<(), watch::error::RecvError> {
    match asked {
        Some(asked) => asked.changed().await,
        None => std::future::pending().await,
    }
}
