//! A request body that pays for its bytes as it moves.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::{Book, account::Account};
use crate::{
    streams::lock,
    upstream::{BoxError, RequestBody},
};

/// Pays from a caller's account for one direction of a call; one from [`Pace::default`] pays nothing.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    of: Option<(Book, Arc<Mutex<Account>>)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(book: Book, account: Arc<Mutex<Account>>) -> Self {
        Self {
            of: Some((book, account)),
            sleep: None,
        }
    }

    /// The same purse for another direction.
    pub(crate) fn another(&self) -> Self {
        Self {
            of: self.of.clone(),
            sleep: None,
        }
    }

    /// Pays for bytes that were moved.
    pub(crate) fn pay(&self, bytes: usize) {
        if let Some((book, account)) = &self.of {
            lock(account).pay(&book.limits(), Instant::now(), bytes);
        }
    }

    /// Ready while the caller's bytes are not used up.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            let Some((book, account)) = &self.of else {
                return Poll::Ready(());
            };
            match lock(account).wait_for_bytes(&book.limits(), Instant::now()) {
                None => return Poll::Ready(()),
                Some(wait) => self.sleep = Some(Box::pin(sleep(wait))),
            }
        }
    }
}

/// The body of a request that moves at its caller's pace.
pub(crate) struct Paced {
    body: RequestBody,
    pace: Pace,
}

impl Paced {
    /// `body` as it goes upstream: a streamed one pays as it moves, one that is all here has been paid for.
    pub(crate) fn wrap(body: RequestBody, pace: Pace) -> RequestBody {
        use http_body_util::BodyExt as _;
        match body {
            RequestBody::Full(bytes) => {
                pace.pay(bytes.len());
                RequestBody::Full(bytes)
            }
            RequestBody::Stream(_) => RequestBody::Stream(Self { body, pace }.boxed_unsync()),
        }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        ready!(this.pace.poll_ready(cx));
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(data) = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok())
            .and_then(Frame::data_ref)
        {
            this.pace.pay(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
