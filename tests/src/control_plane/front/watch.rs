//! A watch that lives across broken links: its caller sees each change once, or one 410.
//!
//! ```text
//!  link ─► pieces ─► Reader ─► Position::see ─► body
//!    └ broken ─► wait for a link ─► open again from the position ─┐
//!        ▲────────────────────────────────────────────────────────┘   cannot go on: ERROR 410 in the stream
//! ```

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use rand::Rng;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    BodySender,
    events::{Position, Resume, Verdict},
    status::{error_event, status},
};
use crate::{
    control_plane::{
        frames::Call,
        link::{LinkError, ResponseStream},
        state::State,
    },
    events::{Encoding, Reader},
    kubernetes::protobuf,
};

/// First and longest wait between two attempts to open a watch again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One watch of a caller of the front.
pub(super) struct Watch {
    state: Arc<State>,
    cluster: String,
    /// The caller's own, with bookmarks asked for.
    call: Call,
    position: Position,
    /// The caller's `timeoutSeconds`. Kept here too: a proxy opens a v1 watch again when the apiserver ends it.
    deadline: Option<Instant>,
}

/// How a stretch of the watch over one link ended.
enum Stretch {
    /// The caller has all it will get.
    Over,
    /// It goes on over the next link.
    Broken,
}

impl Watch {
    pub(super) fn new(state: Arc<State>, cluster: &str, asked: &Call) -> Self {
        let position = Position::of(asked);
        let mut call = asked.clone();
        call.query
            .insert("allowWatchBookmarks".to_owned(), vec!["true".to_owned()]);
        let seconds = asked
            .query
            .get("timeoutSeconds")
            .and_then(|values| values.first()?.parse().ok());
        let deadline = seconds.map(|seconds: u32| Instant::now() + Duration::from_secs(seconds.into()));
        Self {
            state,
            cluster: cluster.to_owned(),
            call,
            position,
            deadline,
        }
    }

    /// What is asked for at first.
    pub(super) fn call(&self) -> &Call {
        &self.call
    }

    /// Feeds the caller until it goes, the watch ends, or it cannot go on.
    pub(super) async fn run(mut self, link: u64, first: ResponseStream, body: BodySender) {
        // An error is a plain answer, and events in another encoding cannot be told apart.
        let ok = first.status() == StatusCode::OK.as_u16();
        let Some(encoding) = encoding(&first).filter(|_| ok) else {
            return super::follow(first, body).await;
        };
        let (mut link, mut stream) = (link, first);
        loop {
            match self.stretch(stream, encoding, &body).await {
                Stretch::Over => return,
                Stretch::Broken => {}
            }
            let again = tokio::select! {
                again = self.again(link, encoding) => again,
                () = body.closed() => return,
            };
            (link, stream) = match again {
                Ok(Some(again)) => again,
                Ok(None) => return,
                Err(End::Event(event)) => {
                    let _ = body.send(Ok(event)).await;
                    return;
                }
                Err(End::Abort(reason)) => {
                    let _ = body.send(Err(io::Error::other(reason))).await;
                    return;
                }
            };
        }
    }

    async fn stretch(
        &mut self,
        mut stream: ResponseStream,
        encoding: Encoding,
        body: &BodySender,
    ) -> Stretch {
        let mut reader = Reader::new(encoding);
        loop {
            let piece = tokio::select! {
                piece = stream.next() => piece,
                () = body.closed() => return Stretch::Over,
                () = until(self.deadline) => return Stretch::Over,
            };
            let piece = match piece {
                None => return Stretch::Over,
                Some(Ok(piece)) => piece,
                Some(Err(error)) => {
                    tracing::debug!(cluster = self.cluster, %error, "watch broken, opening it again");
                    return Stretch::Broken;
                }
            };
            let events = match reader.cut(&piece) {
                Ok(events) => events,
                Err(error) => {
                    let _ = body.send(Err(io::Error::other(error))).await;
                    return Stretch::Over;
                }
            };
            for event in events {
                let verdict = self.position.see(encoding, &event);
                if verdict != Verdict::Drop && body.send(Ok(event.into())).await.is_err() {
                    return Stretch::Over;
                }
                if verdict == Verdict::Last {
                    return Stretch::Over;
                }
            }
        }
    }

    /// Opens the watch again; `None` when the caller's own time is up first.
    async fn again(&self, broken: u64, encoding: Encoding) -> Result<Option<(u64, ResponseStream)>, End> {
        let call = self.next_call(encoding)?;
        let (mut wait, longest) = BACKOFF;
        let patience = Instant::now() + self.state.config.resume_patience;
        let until = self.deadline.map_or(patience, |deadline| deadline.min(patience));
        // Before the first attempt too: a link that breaks every stream at once must not make this a busy loop.
        sleep(jitter(wait)).await;
        loop {
            // Any open link will do: the one that broke only the stream may be the only one.
            let link = match timeout_at(until, self.state.links.wait(&self.cluster, 0)).await {
                Ok(link) => link,
                Err(_) if self.deadline == Some(until) => return Ok(None),
                Err(_) => {
                    return Err(End::Abort(LinkError::Lost(
                        "no link came back in time".to_owned(),
                    )));
                }
            };
            match link.stream(&call).await {
                Ok(stream) if stream.status() == StatusCode::OK.as_u16() => {
                    tracing::debug!(
                        cluster = self.cluster,
                        broken,
                        link = link.id(),
                        "watch open again"
                    );
                    return Ok(Some((link.id(), stream)));
                }
                Ok(stream) if final_status(stream.status()) => {
                    let code = StatusCode::from_u16(stream.status()).unwrap_or(StatusCode::BAD_GATEWAY);
                    let body = stream.collect().await.unwrap_or_default();
                    let object = serde_json::from_slice(&body);
                    let object = object.unwrap_or_else(|_| status(code, &String::from_utf8_lossy(&body)));
                    return Err(End::Event(last_event(encoding, &object)));
                }
                Ok(_) | Err(_) => {}
            }
            if Instant::now() >= until {
                return Err(End::Abort(LinkError::Timeout));
            }
            sleep(jitter(wait)).await;
            wait = (wait * 2).min(longest);
        }
    }

    fn next_call(&self, encoding: Encoding) -> Result<Call, End> {
        let mut call = self.call.clone();
        if let Some(deadline) = self.deadline {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .as_secs()
                .max(1);
            call.query
                .insert("timeoutSeconds".to_owned(), vec![left.to_string()]);
        }
        match self.position.resume() {
            Resume::AsAsked => {}
            Resume::From(version) => {
                call.query.insert("resourceVersion".to_owned(), vec![version]);
                call.query.remove("resourceVersionMatch");
                call.query.remove("sendInitialEvents");
            }
            Resume::Impossible => {
                let gone = status(
                    StatusCode::GONE,
                    "too old resource version: the link broke while the first objects were on their way",
                );
                return Err(End::Event(last_event(encoding, &gone)));
            }
        }
        Ok(call)
    }
}

/// Why a watch cannot go on.
enum End {
    /// The caller is told by a last event.
    Event(Bytes),
    /// The body breaks off.
    Abort(LinkError),
}

/// Answers that another attempt would not change.
fn final_status(status: u16) -> bool {
    (400..500).contains(&status) && status != StatusCode::TOO_MANY_REQUESTS.as_u16()
}

fn encoding(stream: &ResponseStream) -> Option<Encoding> {
    let kind = stream
        .headers()
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let (_, kind) = kind?;
    [Encoding::Json, Encoding::Protobuf]
        .into_iter()
        .find(|encoding| kind.starts_with(encoding.accept()))
}

fn last_event(encoding: Encoding, status: &serde_json::Value) -> Bytes {
    match encoding {
        Encoding::Json => error_event(status).into(),
        Encoding::Protobuf => protobuf::event("ERROR", status).into(),
    }
}

/// Full jitter.
fn jitter(longest: Duration) -> Duration {
    rand::rng().random_range(Duration::ZERO..=longest)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
