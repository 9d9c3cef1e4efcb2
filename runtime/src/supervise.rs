//! Every task of a process, from the first to the last, and the one way it ends.
//!
//! ```text
//!   running ── drain("SIGTERM") ──► draining ── all tasks ended ──► finished
//!      │                              │
//!      └─ a critical task ended,      └─ deadline or second signal ─► cut ─► the rest is aborted
//!         or any task panicked
//! ```
//!
//! Stop accepting when [`Supervisor::draining`] resolves, tell the peer, let open streams finish; what still runs
//! when [`Supervisor::cut`] resolves has to go at once.

use std::{
    any::Any,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::task::AbortHandle;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{Instrument as _, error, info, info_span, warn};

/// After the cut, tasks get this long to notice before they are aborted.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// Owns the tasks of one process; clones share them.
#[derive(Clone, Debug)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    deadline: Duration,
    draining: CancellationToken,
    cut: CancellationToken,
    abort: CancellationToken,
    failed: AtomicBool,
    tasks: TaskTracker,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to end, and did.
    Clean,
    /// A task failed or panicked.
    Failed,
}

impl Outcome {
    /// 0 or 1.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Clean => ExitCode::SUCCESS,
            Self::Failed => ExitCode::FAILURE,
        }
    }
}

/// A task that may be ended early. Dropping the handle leaves it running.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    abort: AbortHandle,
}

impl TaskHandle {
    /// Ends the task at its next await.
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.abort.is_finished()
    }

    /// Ends the task when the returned guard is dropped.
    #[must_use]
    pub fn abort_on_drop(self) -> TaskGuard {
        TaskGuard { task: self }
    }
}

/// Ends its task when dropped.
#[derive(Debug)]
pub struct TaskGuard {
    task: TaskHandle,
}

impl TaskGuard {
    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Supervisor {
    /// `drain_deadline` is how long open streams may finish after a drain began.
    pub fn new(drain_deadline: Duration) -> Self {
        let inner = Inner {
            deadline: drain_deadline,
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
            abort: CancellationToken::new(),
            failed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Starts a task that lasts as long as the process. Any end before the drain (return, error, panic) drains
    /// the process and makes it fail.
    pub fn spawn_critical<E>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: std::error::Error + Send + 'static,
    {
        let (name, supervisor) = (name.into(), self.clone());
        let span = info_span!("task", name = %name);
        let watched = async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            match ended {
                Ok(Ok(())) if supervisor.is_draining() => {}
                Ok(Ok(())) => supervisor.fail(&name, "ended although the process still runs"),
                Ok(Err(error)) => supervisor.fail(&name, &chain(&error)),
                Err(panic) => supervisor.fail(&name, &format!("panicked: {}", panic_text(panic.as_ref()))),
            }
        };
        self.start(watched.instrument(span));
    }

    /// Starts a task that may end when it likes: a connection, a stream. A panic drains the process and makes it
    /// fail, because a broken invariant is not survivable quietly.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle {
        TaskHandle {
            abort: self.start(self.watched(name.into(), task).in_current_span()),
        }
    }

    /// The same for one of thousands of short tasks. It is in no span but its own: that of who starts it would be entered
    /// and left at each of its steps, which costs more than most of them do.
    pub fn spawn_apart(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle {
        TaskHandle {
            abort: self.start(self.watched(name, task)),
        }
    }

    fn watched<N, T>(&self, name: N, task: T) -> impl Future<Output = ()> + Send + use<N, T>
    where
        N: AsRef<str> + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let supervisor = self.clone();
        // Boxed: each of the wrappers around it would hold room for it once more, and there are thousands of tasks.
        let task = Box::pin(task);
        async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                supervisor.fail(
                    name.as_ref(),
                    &format!("panicked: {}", panic_text(panic.as_ref())),
                );
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where a task begins")]
    fn start(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let abort = self.inner.abort.clone();
        let tracked = self.inner.tasks.track_future(async move {
            tokio::select! { biased; () = task => {}, () = abort.cancelled() => {} }
        });
        tokio::spawn(tracked).abort_handle()
    }

    fn fail(&self, name: &str, why: &str) {
        error!(task = name, "{why}");
        self.inner.failed.store(true, Ordering::Relaxed);
        self.drain(format!("task {name} failed"));
    }

    /// Begins the drain; later calls change nothing.
    pub fn drain(&self, reason: impl Into<String>) {
        if !self.is_draining() {
            info!(reason = reason.into(), deadline = ?self.inner.deadline, "draining");
            self.inner.draining.cancel();
        }
    }

    /// Resolves when the drain begins.
    pub async fn draining(&self) {
        self.inner.draining.cancelled().await;
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    /// Resolves when everything has to go at once: at the deadline, or at a second signal.
    pub async fn cut(&self) {
        self.inner.cut.cancelled().await;
    }

    /// Whether everything has to go at once.
    pub fn is_cut(&self) -> bool {
        self.inner.cut.is_cancelled()
    }

    /// Drains on SIGTERM and SIGINT; a second one cuts.
    ///
    /// # Errors
    /// When the signals cannot be listened to.
    pub fn watch_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let supervisor = self.clone();
        // Not tracked: it listens from the first moment to the last, also while nothing else is left.
        #[expect(clippy::disallowed_methods, reason = "must outlive every tracked task")]
        tokio::spawn(async move {
            loop {
                let name = tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
                if supervisor.is_draining() {
                    warn!(signal = name, "second signal: stopping at once");
                    supervisor.inner.cut.cancel();
                } else {
                    supervisor.drain(name);
                }
            }
        });
        Ok(())
    }

    /// Waits for the drain to begin, then for every task or the deadline, then ends what is left.
    pub async fn finish(&self) -> Outcome {
        self.draining().await;
        let inner = &self.inner;
        inner.tasks.close();
        tokio::select! {
            () = inner.tasks.wait() => {}
            () = inner.cut.cancelled() => {}
            () = tokio::time::sleep(inner.deadline) => {
                warn!(tasks = inner.tasks.len(), "drain deadline reached: cutting what is left");
            }
        }
        inner.cut.cancel();
        if tokio::time::timeout(CUT_GRACE, inner.tasks.wait()).await.is_err() {
            inner.abort.cancel();
            tokio::time::timeout(CUT_GRACE, inner.tasks.wait()).await.ok();
        }
        if inner.failed.load(Ordering::Relaxed) {
            Outcome::Failed
        } else {
            Outcome::Clean
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Ends a task together with the value that holds this, for tasks started by libraries.
pub type AbortOnDrop = AbortOnDropHandle<()>;

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, io};

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_open_streams() {
        let supervisor = Supervisor::new(Duration::from_secs(20));
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        supervisor.spawn("stream", async {
            ended.await.ok();
        });
        supervisor.drain("test");
        let finish = supervisor.finish();
        tokio::pin!(finish);
        assert!(finish.as_mut().now_or_never().is_none());
        end.send(()).unwrap();
        assert_eq!(finish.await, Outcome::Clean);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_cuts_what_does_not_end() {
        let supervisor = Supervisor::new(Duration::from_secs(20));
        let task = supervisor.spawn("stuck", std::future::pending());
        supervisor.drain("test");
        assert_eq!(supervisor.finish().await, Outcome::Clean);
        assert!(task.is_finished());
    }

    #[tokio::test]
    async fn a_critical_task_that_ends_fails_the_process() {
        for result in [Ok(()), Err(io::Error::other("broken"))] {
            let supervisor = Supervisor::new(Duration::from_secs(1));
            supervisor.spawn_critical("link", async { result });
            assert_eq!(supervisor.finish().await, Outcome::Failed);
        }
    }

    #[tokio::test]
    async fn a_critical_task_may_end_once_the_drain_has_begun() {
        let supervisor = Supervisor::new(Duration::from_secs(1));
        let watched = supervisor.clone();
        supervisor.spawn_critical("link", async move {
            watched.draining().await;
            Ok::<_, Infallible>(())
        });
        supervisor.drain("test");
        assert_eq!(supervisor.finish().await, Outcome::Clean);
    }

    #[tokio::test]
    async fn a_panic_fails_the_process() {
        let supervisor = Supervisor::new(Duration::from_secs(1));
        supervisor.spawn("stream", async { panic!("on purpose") });
        assert_eq!(supervisor.finish().await, Outcome::Failed);
    }

    #[test]
    fn causes_are_chained_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the file")]
        struct Outer(#[source] io::Error);
        assert_eq!(
            chain(&Outer(io::Error::other("disk on fire"))),
            "cannot read the file: disk on fire"
        );
    }
}
