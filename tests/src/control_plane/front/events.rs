//! Where a watch stands: the resourceVersion from which it can go on. Pure.
//!
//! ```text
//!  Fresh ── ADDED ──► Initial ── BOOKMARK, MODIFIED, DELETED ──► At(version) ─ every event ─► At(version)
//! ```
//! A watch that was opened without a version begins with the objects that exist, in any order: their versions are no
//! position. One that broke off there cannot go on unseen; what was opened with a version is `At` from its start.

use crate::{
    control_plane::frames::Call,
    events::{Encoding, Event},
};

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
    pub(super) fn see(&mut self, encoding: Encoding, whole: &[u8]) -> Verdict {
        // What is no event is passed on as it came: hiding it would help nobody.
        let Ok(event) = Event::read(encoding, whole) else {
            return Verdict::Pass;
        };
        if event.kind == "ERROR" {
            return Verdict::Last;
        }
        let added = event.kind == "ADDED";
        if !event.version.is_empty() {
            self.place = match self.place {
                Place::Fresh | Place::Initial if added => Place::Initial,
                _ => Place::At(event.version),
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
    fn a_watch_with_a_version_goes_on_from_its_last_event() {
        let mut position = Position::of(&watch("5"));
        assert_eq!(position.resume(), Resume::From("5".to_owned()));
        assert_eq!(position.see(Encoding::Json, &event("ADDED", "7")), Verdict::Pass);
        assert_eq!(
            position.see(Encoding::Json, &event("BOOKMARK", "9")),
            Verdict::Drop
        );
        assert_eq!(position.resume(), Resume::From("9".to_owned()));
        assert_eq!(position.see(Encoding::Json, &event("ERROR", "")), Verdict::Last);
    }

    #[test]
    fn one_without_a_version_cannot_go_on_from_its_initial_objects() {
        for version in ["", "0"] {
            let mut position = Position::of(&watch(version));
            assert_eq!(position.resume(), Resume::AsAsked);
            position.see(Encoding::Json, &event("ADDED", "7"));
            assert_eq!(position.resume(), Resume::Impossible);
            position.see(Encoding::Json, &event("MODIFIED", "8"));
            assert_eq!(position.resume(), Resume::From("8".to_owned()));
        }
    }

    #[test]
    fn initial_events_end_with_a_bookmark() {
        let call = watch("5")
            .query("sendInitialEvents", "true")
            .query("allowWatchBookmarks", "true");
        let mut position = Position::of(&call);
        position.see(Encoding::Json, &event("ADDED", "3"));
        assert_eq!(position.resume(), Resume::Impossible);
        assert_eq!(
            position.see(Encoding::Json, &event("BOOKMARK", "6")),
            Verdict::Pass
        );
        assert_eq!(position.resume(), Resume::From("6".to_owned()));
    }

    #[test]
    fn a_watch_in_protobuf_goes_on_as_well() {
        let object = serde_json::json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "resourceVersion": "8"}});
        let mut position = Position::of(&watch("5"));
        let event = |kind| crate::kubernetes::protobuf::event(kind, &object);
        assert_eq!(
            position.see(Encoding::Protobuf, &event("MODIFIED")),
            Verdict::Pass
        );
        assert_eq!(position.resume(), Resume::From("8".to_owned()));
        assert_eq!(
            position.see(Encoding::Protobuf, &event("BOOKMARK")),
            Verdict::Drop
        );
        assert_eq!(position.see(Encoding::Protobuf, &event("ERROR")), Verdict::Last);
    }

    #[test]
    fn a_table_tells_its_version_in_its_rows() {
        let mut position = Position::of(&watch("1"));
        let table = br#"{"type":"MODIFIED","object":{"kind":"Table","metadata":{},"rows":[{"cells":[],"object":{"metadata":{"resourceVersion":"12"}}}]}}"#;
        position.see(Encoding::Json, table);
        assert_eq!(position.resume(), Resume::From("12".to_owned()));
    }
}
