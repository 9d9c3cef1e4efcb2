//! Ends a task from outside while it waits for a reader that takes nothing.
//!
//! hyper pulls at a body only when the connection has room, so a body whose reader is stalled never hears that it is
//! over. The task that carries it does: dropping an HTTP/2 stream's task resets that stream, and dropping an HTTP/1.1
//! connection's task closes it.

use std::future::Future;

use tokio_util::sync::CancellationToken;

tokio::task_local! {
    static STOP: CancellationToken;
}

/// Runs `task` so that calls which begin in it can end it.
pub(crate) async fn stoppable(task: impl Future<Output = ()>) {
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    STOP.scope(stop, async move {
        tokio::select! { () = task => {}, () = stopped => {} }
    })
    .await;
}

/// What ends the task that this runs in, if it can be ended.
pub(crate) fn current() -> Option<CancellationToken> {
    STOP.try_with(Clone::clone).ok()
}
