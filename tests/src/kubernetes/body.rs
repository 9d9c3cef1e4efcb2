//! Answers that take their time: streams of events, slowed and broken bodies.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{
    cluster::Cluster,
    connection::Connection,
    faults::{Asked, FaultKind},
    requests::Guard,
};

/// How often a slowed body sends a piece.
const SLOW_PIECES_PER_SECOND: u64 = 20;

/// Where the pieces of a stream come from.
pub(super) trait Source: Send + 'static {
    /// The next whole event, or the clean end.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// The way out of one answer, with the faults that lie on it.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) cluster: Arc<Cluster>,
    pub(super) connection: Arc<Connection>,
    pub(super) guard: Guard,
    pub(super) path: String,
    pub(super) verb: &'static str,
    pub(super) user: String,
}

impl Outlet {
    /// What faults look at.
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            path: &self.path,
            verb: self.verb,
            user: &self.user,
        }
    }

    fn take_cut(&self) -> bool {
        self.cluster
            .faults
            .take(self.asked(), |kind| (*kind == FaultKind::Cut).then_some(()))
            .is_some()
    }

    /// Breaks the connection once what was sent is out, and never returns.
    async fn cut(&self) -> ! {
        self.connection.break_after_flush();
        std::future::pending().await
    }

    /// A stream of events as a body.
    pub(super) fn stream(self, source: impl Source) -> Body {
        Body::from_stream(stream::unfold(
            (self, source, false),
            |(outlet, mut source, cut)| async move {
                if cut {
                    outlet.cut().await;
                }
                let event = source.next().await?;
                outlet
                    .cluster
                    .faults
                    .wait_while(outlet.asked(), &FaultKind::StallStreams)
                    .await;
                let cut = outlet.take_cut();
                let event = if cut {
                    event.slice(..event.len() / 2)
                } else {
                    event
                };
                Some((Ok::<_, Infallible>(event), (outlet, source, cut)))
            },
        ))
    }

    /// A whole body, unless it is to be cut.
    pub(super) fn whole(self, bytes: Bytes) -> Body {
        if !self.take_cut() {
            return Body::from(bytes);
        }
        let half = bytes.slice(..bytes.len() / 2);
        Body::from_stream(stream::unfold((self, Some(half)), |(outlet, half)| async move {
            match half {
                Some(half) => Some((Ok::<_, Infallible>(half), (outlet, None))),
                None => outlet.cut().await,
            }
        }))
    }
}

/// The same body at this pace.
pub(super) fn slow(body: Body, bytes_per_second: u64) -> Body {
    let piece = usize::try_from(bytes_per_second / SLOW_PIECES_PER_SECOND)
        .unwrap_or(usize::MAX)
        .max(1);
    let pieces = body.into_data_stream().flat_map(move |chunk| {
        let chunk = chunk.unwrap_or_default();
        stream::unfold(chunk, move |mut left| async move {
            if left.is_empty() {
                return None;
            }
            let now = left.split_to(piece.min(left.len()));
            let seconds = now.len() as f64 / bytes_per_second.max(1) as f64;
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            Some((Ok::<_, Infallible>(now), left))
        })
    });
    Body::from_stream(pieces)
}
