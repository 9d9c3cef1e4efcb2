//! Server-sent events: the whole snapshot at once and after each change, never more than two per second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::HeaderMap;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use crate::page::Page;
use crate::{At, Phase, Sessions, Snapshot, Snapshots};

/// Faster than an eye needs, slow enough that a busy agent does not spend itself on its page.
const MIN_GAP: Duration = Duration::from_millis(500);

/// What the browser gets: the snapshot, and what it needs to show ages and buttons.
#[derive(Serialize)]
pub(crate) struct Envelope<'a> {
    /// The agent's clock, so that ages are right in a browser whose clock is not.
    now: At,
    /// Names of the actions that exist here.
    actions: Vec<&'static str>,
    #[serde(flatten)]
    snapshot: &'a Snapshot,
}

impl<'a> Envelope<'a> {
    pub(crate) fn new(page: &Page, snapshot: &'a Snapshot) -> Self {
        Self {
            now: At::now(),
            actions: page.offered(),
            snapshot,
        }
    }
}

struct Watcher {
    page: Arc<Page>,
    snapshots: Snapshots,
    session: Option<Session>,
    next_allowed: Instant,
    first: bool,
    last: bool,
    _permit: OwnedSemaphorePermit,
}

/// Present when a cookie opened the stream; a bearer has no end.
struct Session {
    sessions: Sessions,
    headers: HeaderMap,
    ends: Instant,
    ended: watch::Receiver<u64>,
}

/// The stream for one browser. It ends when the feed is gone, after a snapshot that says draining, and with the
/// session.
pub(crate) fn stream(
    page: Arc<Page>,
    headers: HeaderMap,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    let session = page.sessions.ends(&headers).map(|ends| Session {
        sessions: page.sessions(),
        headers,
        ends,
        ended: page.sessions.watch_ended(),
    });
    let watcher = Watcher {
        snapshots: page.snapshots.clone(),
        page,
        session,
        next_allowed: Instant::now(),
        first: true,
        last: false,
        _permit: permit,
    };
    unfold(watcher, |mut watcher| async {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    })
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        if self.last {
            return None;
        }
        if !self.first {
            let (snapshots, session) = (&mut self.snapshots, &mut self.session);
            tokio::select! {
                changed = snapshots.changed() => if !changed { return None },
                () = over(session) => return None,
            }
            sleep_until(self.next_allowed).await;
        }
        self.first = false;
        self.next_allowed = Instant::now() + MIN_GAP;
        let snapshot = self.snapshots.take();
        self.last = snapshot.agent.phase == Phase::Draining;
        Event::default()
            .event("snapshot")
            .json_data(Envelope::new(&self.page, &snapshot))
            .ok()
    }
}

/// Resolves when the session has ended, by time or by hand.
async fn over(session: &mut Option<Session>) {
    let Some(session) = session else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            () = sleep_until(session.ends) => return,
            changed = session.ended.changed() => {
                if changed.is_err() || !session.sessions.check(&session.headers) {
                    return;
                }
            }
        }
    }
}
