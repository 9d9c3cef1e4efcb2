//! Setting a session up, step by step, each with its own timeout.

use crate::{
    client::{Client, Phase},
    config::{ClientConfig, Timeouts},
    driver::{Driver, Stop},
    error::{ConnectError, Step},
    fingerprint::Fingerprint,
    msg,
    session::{Session, SessionEvents},
    shared::Shared,
};
use std::{future::poll_fn, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};

const STEPS: [Step; 5] = [
    Step::Upgrade,
    Step::Version,
    Step::KeyExchange,
    Step::Auth,
    Step::Config,
];
/// How long a good-bye after a refusal may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Sets up a session over a connection that is already established: TCP, TLS over it, or a proxy's tunnel.
///
/// The driver must be run from then on; nothing moves without it. The password leaves only after the host key was verified and found trustworthy.
///
/// # Errors
/// [`ConnectError`] says what failed; its [`ConnectError::advice`] says whether to try again.
pub async fn connect<S>(
    io: S,
    config: ClientConfig,
) -> Result<(Session, SessionEvents, Driver<S>), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (timeouts, start) = (config.timeouts, Instant::now());
    let user = config.user.clone();
    let shared = Shared::new(Client::new(config)?);
    let mut driver = Driver::new(io, shared.clone(), timeouts.kex);
    for step in STEPS {
        let limit = timeouts.of(step);
        let outcome = timeout(limit, poll_fn(|cx| driver.poll_step(cx, step))).await;
        // What is wrong may belong to a later step, when several arrived together.
        let step = match shared.lock().client.phase() {
            Phase::SettingUp(reached) => reached.max(step),
            Phase::Open => step,
        };
        let error = match outcome {
            Ok(Ok(())) => continue,
            Err(_) => ConnectError::Timeout { step, after: limit },
            Ok(Err(Stop::Eof)) => ConnectError::Closed { step },
            Ok(Err(Stop::Io(source))) => ConnectError::Io { step, source },
            Ok(Err(Stop::Fault(fault))) => fault.during(step, &user),
        };
        tracing::debug!(%step, %error, "connecting to the chisel server failed");
        shared
            .lock()
            .client
            .disconnect(msg::DISCONNECT_BY_APPLICATION, "giving up");
        // After a refusal the server keeps the session open until the client leaves.
        let _ = timeout(GOODBYE, driver).await;
        return Err(error);
    }
    shared.lock().handshake = start.elapsed();
    let fingerprint = Fingerprint::of(shared.lock().client.transport().host_key().unwrap_or_default());
    let session = Session {
        shared: shared.clone(),
        fingerprint,
    };
    tracing::debug!(algorithms = ?session.algorithms(), "chisel session established");
    Ok((session, SessionEvents { shared }, driver))
}

impl Timeouts {
    fn of(self, step: Step) -> Duration {
        match step {
            Step::Upgrade => self.upgrade,
            Step::Version => self.version,
            Step::KeyExchange => self.kex,
            Step::Auth => self.auth,
            Step::Config => self.config,
        }
    }
}
