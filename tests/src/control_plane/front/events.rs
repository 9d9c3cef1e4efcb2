//! Where a watch stands: whole events out of pieces, and the resourceVersion from which it can go on. Pure.
//!
//! ```text
//!  Fresh ── ADDED ──► Initial ── BOOKMARK, MODIFIED, DELETED ──► At(version) ─ every event ─► At(version)
//! ```
//! A watch that was opened without a version begins with the objects that exist, in any order: their versions are no
//! position. One that broke off there cannot go on unseen; what was opened with a version is `At` from its start.

use serde::Deserialize;

use crate::control_plane::frames::Call;

/// The largest event; the largest object is below 2 MiB in etcd and grows as JSON.
const MAX_EVENT: usize = 16 * 1024 * 1024;

/// Cuts pieces into lines, one event each.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

/// A line that is longer than any event.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a watch event is larger than {MAX_EVENT} bytes")]
pub(super) struct TooLong;

impl Lines {
    /// The events that this piece completes, each with its line end.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut lines = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if part.ends_with(b"\n") {
                lines.push(std::mem::take(&mut self.rest));
            } else if self.rest.len() > MAX_EVENT {
                return Err(TooLong);
            }
        }
        Ok(lines)
    }
}

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The caller gets it.
    Pass,
    /// The caller did not ask for bookmarks.
    Drop,
    /// The caller gets it, and it is the last.
    Last,
}

/// How a watch that broke off goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Nothing was passed on: ask as the caller asked.
    AsAsked,
    /// From this version.
    From(String),
    /// Not unseen by the caller.
    Impossible,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Fresh,
    Initial,
    At(String),
}

/// Where one watch stands.
#[derive(Debug)]
pub(super) struct Position {
    place: Place,
    bookmarks_wanted: bool,
}

impl Position {
    /// The start of a watch, as its caller asked for it.
    pub(super) fn of(call: &Call) -> Self {
        let first = |name: &str| {
            call.query
                .get(name)
                .and_then(|values| values.first())
                .map(String::as_str)
        };
        let on = |name: &str| matches!(first(name), Some("true" | "1"));
        let place = match first("resourceVersion") {
            Some(version) if !version.is_empty() && version != "0" && !on("sendInitialEvents") => {
                Place::At(version.to_owned())
            }
            _ => Place::Fresh,
        };
        Self {
            place,
            bookmarks_wanted: on("allowWatchBookmarks"),
        }
    }

    /// Notes one event.
    pub(super) fn see(&mut self, line: &[u8]) -> Verdict {
        // What is no event is passed on as it came: hiding it would help nobody.
        let Ok(event) = serde_json::from_slice::<Event>(line) else {
            return Verdict::Pass;
        };
        if event.kind == "ERROR" {
            return Verdict::Last;
        }
        let added = event.kind == "ADDED";
        if let Some(version) = event.object.version() {
            self.place = match self.place {
                Place::Fresh | Place::Initial if added => Place::Initial,
                _ => Place::At(version.to_owned()),
            };
        }
        if event.kind == "BOOKMARK" && !self.bookmarks_wanted {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    }

    /// How to go on.
    pub(super) fn resume(&self) -> Resume {
        match &self.place {
            Place::Fresh => Resume::AsAsked,
            Place::Initial => Resume::Impossible,
            Place::At(version) => Resume::From(version.clone()),
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

#[derive(Default, Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    /// A `Table`, which is what kubectl asks for, has its objects in rows.
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    object: RowObject,
}

#[derive(Default, Deserialize)]
struct RowObject {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    resource_version: String,
}

impl Object {
    fn version(&self) -> Option<&str> {
        let rows = self.rows.iter().map(|row| &row.object.metadata);
        let mut all = std::iter::once(&self.metadata)
            .chain(rows)
            .map(|metadata| metadata.resource_version.as_str());
        all.find(|version| !version.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, version: &str) -> Vec<u8> {
        format!(r#"{{"type":"{kind}","object":{{"metadata":{{"resourceVersion":"{version}"}}}}}}"#)
            .into_bytes()
    }

    fn watch(version: &str) -> Call {
        Call::get("/api/v1/pods")
            .query("watch", "true")
            .query("resourceVersion", version)
    }

    #[test]
    fn events_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"{\"a\"").unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(
            lines.push(b":1}\n{}\n{").unwrap(),
            [b"{\"a\":1}\n".to_vec(), b"{}\n".to_vec()]
        );
        assert_eq!(lines.push(&vec![b'x'; MAX_EVENT + 1]), Err(TooLong));
    }

    #[test]
    fn a_watch_with_a_version_goes_on_from_its_last_event() {
        let mut position = Position::of(&watch("5"));
        assert_eq!(position.resume(), Resume::From("5".to_owned()));
        assert_eq!(position.see(&event("ADDED", "7")), Verdict::Pass);
        assert_eq!(position.see(&event("BOOKMARK", "9")), Verdict::Drop);
        assert_eq!(position.resume(), Resume::From("9".to_owned()));
        assert_eq!(position.see(&event("ERROR", "")), Verdict::Last);
    }

    #[test]
    fn one_without_a_version_cannot_go_on_from_its_initial_objects() {
        for version in ["", "0"] {
            let mut position = Position::of(&watch(version));
            assert_eq!(position.resume(), Resume::AsAsked);
            position.see(&event("ADDED", "7"));
            assert_eq!(position.resume(), Resume::Impossible);
            position.see(&event("MODIFIED", "8"));
            assert_eq!(position.resume(), Resume::From("8".to_owned()));
        }
    }

    #[test]
    fn initial_events_end_with_a_bookmark() {
        let call = watch("5")
            .query("sendInitialEvents", "true")
            .query("allowWatchBookmarks", "true");
        let mut position = Position::of(&call);
        position.see(&event("ADDED", "3"));
        assert_eq!(position.resume(), Resume::Impossible);
        assert_eq!(position.see(&event("BOOKMARK", "6")), Verdict::Pass);
        assert_eq!(position.resume(), Resume::From("6".to_owned()));
    }

    #[test]
    fn a_table_tells_its_version_in_its_rows() {
        let mut position = Position::of(&watch("1"));
        let table = br#"{"type":"MODIFIED","object":{"kind":"Table","metadata":{},"rows":[{"cells":[],"object":{"metadata":{"resourceVersion":"12"}}}]}}"#;
        position.see(table);
        assert_eq!(position.resume(), Resume::From("12".to_owned()));
    }
}
