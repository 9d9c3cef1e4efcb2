//! The fast side for benches: namespace `bench`, answered from memory before identity, faults and log, so that it is
//! the proxy in front that is measured.
//!
//! ```text
//!  GET  …/namespaces/bench/configmaps/small             one object of 1,000 bytes
//!  GET  …/namespaces/bench/configmaps                   a list of 10.2 MB
//!  GET  …/namespaces/bench/configmaps?watch=…           silent; with sim_rate, sim_size, sim_count: made-up events
//!  GET  …/namespaces/bench/pods/flood/log?follow=true   text without end
//! ```

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body::Frame;
use hyper::body::Incoming;
use serde_json::json;
use tokio::{
    sync::broadcast,
    time::{Instant, Sleep},
};

use super::{bench::Paced, resources, resources::by_plural, route::Query};

/// Where it is.
pub const NAMESPACE: &str = "/api/v1/namespaces/bench/";
/// Bytes of the small object.
const SMALL: usize = 1_000;
/// The large list: so many objects of so many bytes.
const ITEMS: usize = 1_020;
const ITEM: usize = 10_000;
/// One piece of the flood.
const FLOOD: usize = 16 * 1024;
/// Ends that a reader may be late for.
const CLOSED_QUEUE: usize = 16_384;

/// Answers from memory, and what it counts.
#[derive(Debug)]
pub struct Fast {
    small: Bytes,
    list: OnceLock<Bytes>,
    flood: Bytes,
    open: Arc<AtomicUsize>,
    closed: broadcast::Sender<Instant>,
}

impl Default for Fast {
    fn default() -> Self {
        Self {
            small: Bytes::from(object("small", SMALL)),
            list: OnceLock::new(),
            flood: Bytes::from("x".repeat(FLOOD)),
            open: Arc::default(),
            closed: broadcast::channel(CLOSED_QUEUE).0,
        }
    }
}

impl Fast {
    /// Streams that are open at this moment: watches and floods.
    pub fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// When streams are closed, each at its moment.
    pub fn closed(&self) -> broadcast::Receiver<Instant> {
        self.closed.subscribe()
    }

    /// The answer, if the path is one of this side.
    pub(super) fn answer(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let rest = request.uri().path().strip_prefix(NAMESPACE)?;
        if request.method() != Method::GET {
            return None;
        }
        let query = request.uri().query().unwrap_or_default();
        match rest {
            "configmaps/small" => Some(respond("application/json", Body::from(self.small.clone()))),
            "configmaps" if query.contains("watch=") => {
                let query = Query::parse(query);
                let kind = &resources::RESOURCES[by_plural("configmaps")];
                let paced = Paced::from_query(kind, "bench", &query);
                let next = paced.map_or(Next::Silence, |paced| Next::Events(Box::new(paced), None));
                Some(respond("application/json", Body::new(self.stream(next))))
            }
            "configmaps" => {
                let list = self.list.get_or_init(large_list).clone();
                Some(respond("application/json", Body::from(list)))
            }
            "pods/flood/log" => {
                let next = Next::Flood(self.flood.clone());
                Some(respond("text/plain", Body::new(self.stream(next))))
            }
            _ => None,
        }
    }

    fn stream(&self, next: Next) -> Stream {
        self.open.fetch_add(1, SeqCst);
        Stream {
            next,
            open: Arc::clone(&self.open),
            closed: self.closed.clone(),
        }
    }
}

fn respond(media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn object(name: &str, bytes: usize) -> String {
    let render = |filling: &str| {
        json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "bench", "resourceVersion": "1"},
            "data": {"filling": filling}
        })
        .to_string()
    };
    let bare = render("").len();
    render(&"x".repeat(bytes.saturating_sub(bare)))
}

fn large_list() -> Bytes {
    let items: Vec<String> = (0..ITEMS)
        .map(|number| object(&format!("filling-{number:06}"), ITEM))
        .collect();
    let head = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":["#;
    Bytes::from(format!("{head}{}]}}", items.join(",")))
}

enum Next {
    Silence,
    Events(Box<Paced>, Option<Pin<Box<Sleep>>>),
    Flood(Bytes),
}

/// A stream that counts itself while it is open.
struct Stream {
    next: Next,
    open: Arc<AtomicUsize>,
    closed: broadcast::Sender<Instant>,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut self.get_mut().next {
            Next::Silence => return Poll::Pending,
            Next::Flood(piece) => Some(piece.clone()),
            Next::Events(paced, pause) => {
                if let Some(period) = paced.period() {
                    let sleep = pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
                    ready!(sleep.as_mut().poll(cx));
                    let next = sleep.deadline() + period;
                    sleep.as_mut().reset(next);
                }
                paced.event()
            }
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.open.fetch_sub(1, SeqCst);
        self.closed.send(Instant::now()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_the_bench_says() {
        assert_eq!(Fast::default().small.len(), SMALL);
        let list = large_list();
        assert!((10_200_000..10_300_000).contains(&list.len()), "{}", list.len());
        let value: serde_json::Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(value["items"].as_array().unwrap().len(), ITEMS);
    }
}
