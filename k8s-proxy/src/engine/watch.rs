//! A watch that outlives the connection it came on.
//!
//! ```text
//!            connection breaks, or ends by itself where the caller wants more
//!   open ───────────────────────────────────────────────────────────────────► reopening ─► open
//!    │ whole events, unwanted bookmarks left out      from the last version ──┘   │
//!    └─ the apiserver ends it: over                                               └─ it cannot go on: one ERROR
//!                                                                                    event, then over
//! ```

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use runtime::{
    backoff::{Backoff, Policy},
    websocket::retry_after,
};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{Engine, Sendable, body::Inner, ticket::Ticket};
use crate::{
    events::{Event, Framing, Kind, Position, Resume, Splitter, Start},
    path,
    status::Failure,
    streams::{Stream, lock},
    target::{parameter, truthy},
    upstream::{AnswerBody, Class, RequestBody},
};

/// Between tries to open a watch again. Thousands of watches lose their connection at the same moment; the jitter
/// spreads them.
const BACKOFF: Policy = Policy {
    min: Duration::from_millis(100),
    max: Duration::from_secs(5),
    stable: Duration::from_secs(10),
};
/// After so long without an apiserver the caller is told. etcd forgets versions after five minutes anyway.
const GIVE_UP: Duration = Duration::from_secs(600);
/// The head of a reopened watch. Nothing is lost by trying once more, so silence may be cut here.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refusal is read for its sentence.
const MAX_REFUSAL: usize = 64 * 1024;

/// The query of a watch, as the caller wrote it and as it goes on.
#[derive(Clone, Debug)]
struct WatchQuery {
    path: String,
    pairs: Vec<(String, String)>,
    wants_bookmarks: bool,
    start: Start,
    deadline: Option<Instant>,
}

impl WatchQuery {
    fn read(uri: &PathAndQuery) -> Self {
        let query = uri.query().unwrap_or_default();
        let version = parameter(query, "resourceVersion").unwrap_or_default();
        let start = if truthy(query, "sendInitialEvents") {
            Start::StreamingList
        } else if version.is_empty() || version == "0" {
            Start::Existing
        } else {
            Start::Version
        };
        let seconds = parameter(query, "timeoutSeconds").and_then(|text| text.parse::<u32>().ok());
        Self {
            path: uri.path().to_owned(),
            pairs: url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            wants_bookmarks: truthy(query, "allowWatchBookmarks"),
            start,
            deadline: seconds
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Instant::now() + Duration::from_secs(seconds.into())),
        }
    }

    fn version(&self) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(key, _)| key == "resourceVersion")
            .map(|(_, value)| value.as_str())
    }

    /// The caller's query, with bookmarks.
    fn first(&self) -> Result<PathAndQuery, path::PathError> {
        self.build(&["allowWatchBookmarks"], &[("allowWatchBookmarks", "true")])
    }

    /// The query that goes on from `version`.
    fn from(&self, version: &str) -> Result<PathAndQuery, path::PathError> {
        let left = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| left.as_secs().max(1).to_string());
        let mut drop = vec![
            "allowWatchBookmarks",
            "resourceVersion",
            "resourceVersionMatch",
            "sendInitialEvents",
        ];
        let mut add = vec![("allowWatchBookmarks", "true"), ("resourceVersion", version)];
        if let Some(left) = &left {
            drop.push("timeoutSeconds");
            add.push(("timeoutSeconds", left));
        }
        self.build(&drop, &add)
    }

    fn build(&self, drop: &[&str], add: &[(&str, &str)]) -> Result<PathAndQuery, path::PathError> {
        let kept = self
            .pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let kept = kept.filter(|(key, _)| !drop.contains(key));
        path::join(
            &self.path,
            Some(&path::encode_query(kept.chain(add.iter().copied()))),
        )
    }

    fn time_is_up(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

enum State {
    Open(Box<AnswerBody>),
    Reopening(Pin<Box<dyn Future<Output = Result<AnswerBody, Failure>> + Send>>),
    Over,
}

/// The events of one watch, whole and each once.
pub(crate) struct WatchBody {
    engine: Engine,
    call: Sendable,
    query: WatchQuery,
    rewatch_clean_end: bool,
    stream: Option<Arc<Stream>>,
    state: State,
    splitter: Splitter,
    framing: Framing,
    position: Position,
    backoff: Backoff,
    opened: Instant,
    end: &'static str,
}

impl fmt::Debug for WatchBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchBody")
            .field("position", &self.position)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a watch. What cannot be read event by event passes through as it is, and ends when it ends.
    pub(super) async fn open_watch(
        &self,
        mut call: Sendable,
        uri: &PathAndQuery,
        rewatch_clean_end: bool,
        ticket: &Ticket,
    ) -> Result<Response<Inner>, Failure> {
        let readable = asks_for_readable(&call.headers);
        let query = WatchQuery::read(uri);
        // The apiserver compresses no watch; a proxy in front of it that did would keep events back.
        call.headers.remove(header::ACCEPT_ENCODING);
        let first = if readable && !query.wants_bookmarks {
            query.first()
        } else {
            Ok(uri.clone())
        };
        let first =
            first.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, "path", error.to_string()))?;
        let response = self.send(&call, &first, empty(), Class::Endless).await?;
        let framing = framing(response.headers()).filter(|_| readable && response.status() == StatusCode::OK);
        let Some(framing) = framing else {
            return Ok(response.map(|body| Inner::Plain(Box::new(body))));
        };
        Ok(response.map(|body| {
            let version = query.version().map(str::to_owned);
            Inner::Watch(Box::new(WatchBody {
                engine: self.clone(),
                call,
                position: Position::new(query.start, version.as_deref()),
                query,
                rewatch_clean_end,
                stream: ticket.stream().map(Arc::clone),
                state: State::Open(Box::new(body)),
                splitter: Splitter::new(framing),
                framing,
                backoff: Backoff::new(BACKOFF),
                opened: Instant::now(),
                end: "complete",
            }))
        }))
    }
}

impl WatchBody {
    /// Bytes of an event that is not complete yet.
    pub(crate) fn partial(&self) -> usize {
        self.splitter.partial()
    }

    /// How it ended, for audit.
    pub(crate) fn end_word(&self) -> &'static str {
        self.end
    }

    /// The next whole event; `None` when the watch is over.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match &mut self.state {
                State::Over => return Poll::Ready(None),
                State::Reopening(reopening) => match ready!(reopening.as_mut().poll(cx)) {
                    Ok(body) => {
                        self.state = State::Open(Box::new(body));
                        self.splitter = Splitter::new(self.framing);
                        self.opened = Instant::now();
                        self.engine.inner.metrics.rewatched.inc();
                        self.engine.inner.shared.count_rewatch();
                        if let Some(stream) = &self.stream {
                            stream.rewatches.fetch_add(1, Relaxed);
                        }
                    }
                    Err(failure) => return self.give_up(&failure),
                },
                State::Open(body) => {
                    match self.splitter.take() {
                        Ok(Some(event)) => match self.consider(event) {
                            Some(event) => return Poll::Ready(Some(event)),
                            None => continue,
                        },
                        Ok(None) => {}
                        Err(error) => {
                            let failure =
                                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "event", error.to_string());
                            return self.give_up(&failure);
                        }
                    }
                    match ready!(Pin::new(body.as_mut()).poll_frame(cx)) {
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                self.splitter.feed(data);
                            }
                        }
                        Some(Err(error)) => {
                            debug!(%error, "a watch lost its connection to the apiserver");
                            if let Some(failure) = self.go_on(true) {
                                return self.give_up(&failure);
                            }
                        }
                        None => {
                            let broken = self.splitter.is_partial();
                            if !broken && !self.wants_more() {
                                self.state = State::Over;
                            } else if let Some(failure) = self.go_on(broken) {
                                return self.give_up(&failure);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Whether a watch that the apiserver ended in good order is opened again.
    fn wants_more(&self) -> bool {
        self.rewatch_clean_end && self.end == "complete" && self.query.deadline.is_none()
    }

    /// Takes note of an event; `None` when the caller did not ask for its kind.
    fn consider(&mut self, event: Bytes) -> Option<Bytes> {
        let read = match self.framing {
            Framing::JsonLines => Event::read_json(&event),
            Framing::LengthPrefixed => Event::read_protobuf(&event),
        };
        self.position.note(&read);
        match read.kind {
            Kind::Bookmark if !self.query.wants_bookmarks => return None,
            // The apiserver says itself that it is over; nothing of ours may follow.
            Kind::Error => self.end = "error_event",
            Kind::Added | Kind::Changed | Kind::Bookmark | Kind::Unknown => {}
        }
        self.engine.inner.metrics.events.inc();
        if let Some(stream) = &self.stream {
            stream.events.fetch_add(1, Relaxed);
            if let Some(version) = &read.version {
                let mut last = lock(&stream.version);
                last.clear();
                last.push_str(version);
            }
        }
        Some(event)
    }

    /// Starts to open the watch again; returns why not, if it cannot go on.
    fn go_on(&mut self, broken: bool) -> Option<Failure> {
        if self.end != "complete" || (broken && self.query.time_is_up()) {
            self.state = State::Over;
            return None;
        }
        let uri = match self.position.resume() {
            Resume::From(version) => self.query.from(&version),
            Resume::Anew if self.query.wants_bookmarks => self.query.build(&[], &[]),
            Resume::Anew => self.query.first(),
            Resume::Impossible => {
                let sentence = "the connection to the apiserver was lost before the existing objects were all sent: list again";
                return Some(Failure::new(StatusCode::GONE, "expired", sentence));
            }
        };
        let uri = match uri {
            Ok(uri) => uri,
            Err(error) => return Some(Failure::new(StatusCode::GONE, "expired", error.to_string())),
        };
        self.backoff.session_lasted(self.opened.elapsed());
        let (engine, call, backoff) = (self.engine.clone(), self.call.clone(), self.backoff.clone());
        self.backoff.next(None);
        self.state = State::Reopening(Box::pin(reopen(engine, call, uri, backoff)));
        None
    }

    /// Tells the caller in the stream why it is over.
    fn give_up(&mut self, failure: &Failure) -> Poll<Option<Bytes>> {
        self.state = State::Over;
        self.end = failure.cause;
        Poll::Ready(Some(Bytes::from(match self.framing {
            Framing::JsonLines => failure.error_event(),
            Framing::LengthPrefixed => failure.error_frame(),
        })))
    }
}

/// Opens a watch again, as often as it takes.
async fn reopen(
    engine: Engine,
    call: Sendable,
    uri: PathAndQuery,
    mut backoff: Backoff,
) -> Result<AnswerBody, Failure> {
    let started = Instant::now();
    let mut advice = None;
    loop {
        sleep(backoff.next(advice.take())).await;
        let tried = timeout(REOPEN_TIMEOUT, engine.send(&call, &uri, empty(), Class::Endless)).await;
        let why = match tried {
            Err(_) => "no answer".to_owned(),
            Ok(Err(failure)) => failure.message,
            Ok(Ok(response)) if response.status() == StatusCode::OK => return Ok(response.into_body()),
            Ok(Ok(response)) => {
                let status = response.status();
                let later = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
                advice = retry_after(response.headers());
                let sentence = refusal(response).await;
                if !later {
                    let cause = if status == StatusCode::GONE {
                        "expired"
                    } else {
                        "refused"
                    };
                    return Err(Failure::new(status, cause, sentence));
                }
                sentence
            }
        };
        if started.elapsed() > GIVE_UP {
            let sentence = format!("the apiserver cannot be reached for {GIVE_UP:?}: {why}");
            return Err(Failure::new(StatusCode::GONE, "expired", sentence));
        }
    }
}

/// The sentence in the apiserver's `Status`.
async fn refusal(response: Response<AnswerBody>) -> String {
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_REFUSAL);
    let body = timeout(REOPEN_TIMEOUT, body.collect()).await;
    let message = match body {
        Ok(Ok(body)) => serde_json::from_slice::<Status>(&body.to_bytes())
            .map(|status| status.message)
            .ok(),
        Ok(Err(_)) | Err(_) => None,
    };
    message
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| format!("the apiserver answered {status}"))
}

fn empty() -> RequestBody {
    RequestBody::Full(Bytes::new())
}

/// Whether the answer will be one whose events we can read: JSON or protobuf, and nothing else the caller prefers.
fn asks_for_readable(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT);
    accept.iter().all(|value| {
        value
            .to_str()
            .is_ok_and(|text| !text.contains("cbor") && !text.contains("yaml"))
    })
}

/// How the answer is cut into events; `None` when we cannot tell.
fn framing(headers: &HeaderMap) -> Option<Framing> {
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return None;
    }
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => Some(Framing::JsonLines),
        "application/vnd.kubernetes.protobuf" => Some(Framing::LengthPrefixed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(uri: &str) -> WatchQuery {
        WatchQuery::read(&uri.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_goes_on_with_its_own_selectors() {
        let query =
            query("/api/v1/pods?watch=true&labelSelector=a%3Db%2Cc&resourceVersion=5&timeoutSeconds=60");
        assert_eq!(
            query.first().unwrap().as_str(),
            "/api/v1/pods?watch=true&labelSelector=a%3Db%2Cc&resourceVersion=5&timeoutSeconds=60&allowWatchBookmarks=true"
        );
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(
            query.from("77").unwrap().as_str(),
            "/api/v1/pods?watch=true&labelSelector=a%3Db%2Cc&allowWatchBookmarks=true&resourceVersion=77&timeoutSeconds=40"
        );
        assert!(!query.time_is_up());
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(query.time_is_up());
    }

    #[tokio::test]
    async fn initial_events_are_asked_for_once() {
        let query = query(
            "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=",
        );
        assert_eq!((query.start, query.wants_bookmarks), (Start::StreamingList, true));
        assert_eq!(
            query.from("9").unwrap().as_str(),
            "/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion=9"
        );
    }

    #[tokio::test]
    async fn the_start_of_a_watch_is_known() {
        for (uri, expected) in [
            ("/api/v1/pods?watch=1", Start::Existing),
            ("/api/v1/pods?watch=1&resourceVersion=0", Start::Existing),
            ("/api/v1/pods?watch=1&resourceVersion=7", Start::Version),
            (
                "/api/v1/pods?watch=1&sendInitialEvents=false&resourceVersion=7",
                Start::Version,
            ),
        ] {
            assert_eq!(query(uri).start, expected, "{uri}");
        }
    }
}
