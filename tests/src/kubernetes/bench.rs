//! Load for benches, on paths that every proxy lets through.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::{
    body::Source,
    cluster::Cluster,
    object,
    resources::{Resource, by_plural},
    route::Query,
    status::Status,
    store::event_line,
};

/// One piece of the flood.
const FLOOD_PIECE: usize = 16 * 1024;

/// Annotation with the time of sending, in nanoseconds since 1970.
const SENT: &str = "sim/sent-nanos";

/// A watch whose events are made at a rate, whatever the store does.
#[derive(Debug)]
pub(super) struct Paced {
    head: String,
    middle: String,
    tail: String,
    period: Option<Duration>,
    next: Instant,
    sent: u64,
    count: u64,
}

impl Paced {
    /// A paced watch, if the query asks for one with `sim_rate`.
    pub(super) fn from_query(kind: &Resource, namespace: &str, query: &Query) -> Option<Self> {
        let rate = query.number("sim_rate")?;
        let size = usize::try_from(query.number("sim_size").unwrap_or(1000))
            .unwrap_or(usize::MAX)
            .min(1 << 20);
        let object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": {
                "annotations": {SENT: "%SENT%"},
                "name": "paced", "namespace": namespace, "resourceVersion": "%REVISION%"
            },
            "data": {"filling": "%FILLING%"}
        });
        let line = event_line("MODIFIED", object.to_string().as_bytes());
        let text = String::from_utf8_lossy(&line).into_owned();
        // Nineteen digits of nanoseconds and ten of the revision take the places of the marks.
        let bare = text.len() - "%REVISION%%SENT%%FILLING%".len() + 29;
        let text = text.replace("%FILLING%", &"x".repeat(size.saturating_sub(bare)));
        // Annotations come first, in the order of writing as in that of the alphabet.
        let (head, rest) = text.split_once("%SENT%")?;
        let (middle, tail) = rest.split_once("%REVISION%")?;
        let period = (rate > 0).then(|| Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX));
        Some(Self {
            head: head.to_owned(),
            middle: middle.to_owned(),
            tail: tail.to_owned(),
            period,
            next: Instant::now(),
            sent: 0,
            count: query.number("sim_count").unwrap_or(u64::MAX),
        })
    }
}

impl Paced {
    /// Time between two events; none for as fast as they are taken.
    pub(super) fn period(&self) -> Option<Duration> {
        self.period
    }

    /// The next event, at once; none after the last.
    pub(super) fn event(&mut self) -> Option<Bytes> {
        if self.sent == self.count {
            return None;
        }
        self.sent += 1;
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let mut line = String::with_capacity(self.head.len() + self.middle.len() + self.tail.len() + 29);
        let sent = self.sent;
        let parts = (&self.head, &self.middle, &self.tail);
        write!(line, "{}{nanos:019}{}{sent:010}{}", parts.0, parts.1, parts.2).ok()?;
        Some(Bytes::from(line))
    }
}

impl Source for Paced {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(period) = self.period.filter(|_| self.sent != self.count) {
            tokio::time::sleep_until(self.next).await;
            self.next += period;
        }
        self.event()
    }
}

/// Bytes without end, as fast as they are taken.
#[derive(Debug)]
pub(super) struct Flood(Bytes);

impl Flood {
    /// Lines of text.
    pub(super) fn new() -> Self {
        Self(Bytes::from(
            "flood of the simulated cluster\n".repeat(FLOOD_PIECE / 31),
        ))
    }
}

impl Source for Flood {
    async fn next(&mut self) -> Option<Bytes> {
        // Other tasks of the same thread must live beside a reader that is never full.
        tokio::task::yield_now().await;
        Some(self.0.clone())
    }
}

/// Fills a namespace with configmaps of a size.
///
/// # Errors
/// When an object is refused, for example because it is there already.
pub fn fill(cluster: &Arc<Cluster>, namespace: &str, count: usize, bytes: usize) -> Result<(), Status> {
    let options = super::write::WriteOptions::default();
    match cluster.create(
        by_plural("namespaces"),
        "",
        json!({"metadata": {"name": namespace}}),
        &options,
    ) {
        Err(status) if status.code != 409 => return Err(status),
        _ => {}
    }
    let filling = "x".repeat(bytes);
    for number in 0..count {
        let mut value = json!({"data": {"filling": filling}});
        object::stamp(&mut value, "name", format!("filling-{number:06}"));
        cluster.create(by_plural("configmaps"), namespace, value, &options)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::resources::RESOURCES, *};

    #[tokio::test]
    async fn a_paced_event_has_the_size_it_was_asked_for() {
        let kind = &RESOURCES[by_plural("configmaps")];
        let query = Query::parse("sim_rate=0&sim_size=1000&sim_count=2");
        let mut paced = Paced::from_query(kind, "n", &query).unwrap();
        let line = paced.next().await.unwrap();
        assert_eq!(line.len(), 1000);
        let event: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(event["object"]["metadata"]["resourceVersion"], "0000000001");
        assert!(paced.next().await.is_some());
        assert!(paced.next().await.is_none());
        assert!(Paced::from_query(kind, "n", &Query::parse("watch=1")).is_none());
    }
}
