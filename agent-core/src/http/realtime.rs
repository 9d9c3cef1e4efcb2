//! The event stream for people and tools, and the honest answer about logs.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, stream};
use prometheus::IntGauge;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{App, status};

/// A quiet stream repeats its state this often (as the Go agent did).
const UPDATE: Duration = Duration::from_secs(10);
/// Changes of one moment are told together.
const GATHER: Duration = Duration::from_millis(200);

pub(super) async fn logs() -> Response {
    let error = "this agent keeps no log lines of its own; read them with `kubectl logs <pod> -c agent-core -f` or \
                 `journalctl -u agent-core -f`";
    (StatusCode::NOT_IMPLEMENTED, Json(json!({ "error": error }))).into_response()
}

/// A place among the streams for people, counted while it is held.
pub(super) struct Seat {
    gauge: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    pub(super) fn take(app: &App, gauge: &IntGauge) -> Result<Self, Box<Response>> {
        let Ok(permit) = app.realtime.clone().try_acquire_owned() else {
            let error = "all streams are taken; see realtime.max_connections";
            let full = (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error })));
            return Err(Box::new(full.into_response()));
        };
        gauge.inc();
        Ok(Self {
            gauge: gauge.clone(),
            _permit: permit,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

pub(super) async fn events(State(app): State<App>) -> Response {
    let seat = match Seat::take(&app, &app.web.hub.metrics().sse) {
        Ok(seat) => seat,
        Err(full) => return *full,
    };
    let keep_alive = KeepAlive::new().interval(app.web.config.sse_heartbeat);
    Sse::new(updates(app, seat))
        .keep_alive(keep_alive)
        .into_response()
}

struct Feed {
    app: App,
    changes: watch::Receiver<u64>,
    first: bool,
    due: Instant,
    _seat: Seat,
}

fn updates(app: App, seat: Seat) -> impl Stream<Item = Result<Event, Infallible>> {
    let changes = app.web.hub.changes();
    let feed = Feed {
        app,
        changes,
        first: true,
        due: Instant::now(),
        _seat: seat,
    };
    stream::unfold(feed, |mut feed| async move {
        let name = if feed.first {
            "connected"
        } else {
            tokio::select! {
                changed = feed.changes.changed() => {
                    changed.ok()?;
                    sleep(GATHER).await;
                    feed.changes.mark_unchanged();
                }
                () = sleep_until(feed.due) => {}
                () = feed.app.web.supervisor.draining() => return None,
            }
            "health_update"
        };
        feed.first = false;
        feed.due = Instant::now() + UPDATE;
        let event = Event::default()
            .event(name)
            .data(status::health_value(&feed.app.web.hub).to_string());
        Some((Ok(event), feed))
    })
}
