//! Watch streams cut into whole events, and where a watch stands. Pure: bytes in, events out.
//!
//! ```text
//!  chunks from the apiserver ─► Splitter ─► whole events ─► Position::note ─► pass on, or drop
//!  (cut anywhere)                (a cut never leaves half an event)   └─► the resourceVersion to go on from
//! ```

use std::borrow::Cow;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;

/// Longest event; etcd refuses objects beyond 1.5 MiB, JSON and table columns add to that.
pub const MAX_EVENT: usize = 8 * 1024 * 1024;

/// An event is longer than [`MAX_EVENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a watch event is longer than 8 MiB")]
pub struct EventTooLong;

/// How a watch stream is cut into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON object a line.
    JsonLines,
    /// A length of four bytes, big-endian, before each event (`application/vnd.kubernetes.protobuf;stream=watch`).
    LengthPrefixed,
}

/// Cuts a byte stream into whole events without copying those that arrive whole.
#[derive(Debug)]
pub struct Splitter {
    framing: Framing,
    /// Bytes of events that are not complete yet.
    partial: BytesMut,
    /// How much of `partial` was searched for the end of its event.
    searched: usize,
    chunk: Bytes,
}

impl Splitter {
    /// A splitter at the border of an event.
    pub fn new(framing: Framing) -> Self {
        Self {
            framing,
            partial: BytesMut::new(),
            searched: 0,
            chunk: Bytes::new(),
        }
    }

    /// Hands in the next bytes; call [`Splitter::take`] until it returns `None` before the next call.
    pub fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "events are left");
        self.chunk = chunk;
    }

    /// The next whole event, its line end or length included.
    ///
    /// # Errors
    /// When an event is too long to hold.
    pub fn take(&mut self) -> Result<Option<Bytes>, EventTooLong> {
        if self.partial.is_empty() {
            if let Some(end) = self.end(&self.chunk, 0)? {
                return Ok(Some(self.chunk.split_to(end)));
            }
            self.searched = self.chunk.len();
        } else {
            self.partial.extend_from_slice(&self.chunk);
            self.chunk.clear();
            if let Some(end) = self.end(&self.partial, self.searched)? {
                let event = self.partial.split_to(end).freeze();
                // What follows goes on as a chunk, so that whole events in it are not copied again.
                self.chunk = std::mem::take(&mut self.partial).freeze();
                self.searched = 0;
                return Ok(Some(event));
            }
            self.searched = self.partial.len();
        }
        if self.partial.len() + self.chunk.len() > MAX_EVENT {
            return Err(EventTooLong);
        }
        if self.partial.is_empty() && !self.chunk.is_empty() {
            self.partial.extend_from_slice(&self.chunk);
            self.chunk.clear();
        }
        Ok(None)
    }

    /// How many bytes of an event that is not complete are kept.
    pub fn partial(&self) -> usize {
        self.partial.len() + self.chunk.len()
    }

    /// Whether the stream ended inside an event.
    pub fn is_partial(&self) -> bool {
        !self
            .partial
            .iter()
            .chain(self.chunk.iter())
            .all(u8::is_ascii_whitespace)
    }

    fn end(&self, data: &[u8], searched: usize) -> Result<Option<usize>, EventTooLong> {
        match self.framing {
            Framing::JsonLines => {
                let rest = data.get(searched..).unwrap_or_default();
                Ok(memchr::memchr(b'\n', rest).map(|at| searched + at + 1))
            }
            Framing::LengthPrefixed => {
                if data.len() < 4 {
                    return Ok(None);
                }
                let length = usize::try_from((&mut &*data).get_u32()).map_err(|_| EventTooLong)?;
                if length > MAX_EVENT {
                    return Err(EventTooLong);
                }
                Ok((data.len() >= length + 4).then_some(length + 4))
            }
        }
    }
}

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object appeared, or was there when the watch began.
    Added,
    /// A change that was no `ADDED`.
    Changed,
    /// Only a position.
    Bookmark,
    /// The watch is over, with a `Status`.
    Error,
    /// Not readable as an event.
    Unknown,
}

/// One event as far as a position needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its type.
    pub kind: Kind,
    /// `object.metadata.resourceVersion`.
    pub version: Option<Cow<'a, str>>,
    /// It ends the initial list of a streaming list (`k8s.io/initial-events-end`).
    pub initial_end: bool,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    object: RawObject<'a>,
}

#[derive(Deserialize, Default)]
struct RawObject<'a> {
    #[serde(borrow, default)]
    metadata: RawMetadata<'a>,
}

#[derive(Deserialize, Default)]
struct RawMetadata<'a> {
    #[serde(borrow, default, rename = "resourceVersion")]
    version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    annotations: Option<RawAnnotations<'a>>,
}

#[derive(Deserialize, Default)]
struct RawAnnotations<'a> {
    #[serde(borrow, default, rename = "k8s.io/initial-events-end")]
    initial_end: Option<Cow<'a, str>>,
}

impl<'a> Event<'a> {
    /// Reads one line of a JSON watch. What is no event is [`Kind::Unknown`], and is passed on as it is.
    pub fn read_json(line: &'a [u8]) -> Self {
        let Ok(raw) = serde_json::from_slice::<RawEvent<'a>>(line) else {
            return Self {
                kind: Kind::Unknown,
                version: None,
                initial_end: false,
            };
        };
        let kind = match raw.kind.as_ref() {
            "ADDED" => Kind::Added,
            "MODIFIED" | "DELETED" => Kind::Changed,
            "BOOKMARK" => Kind::Bookmark,
            "ERROR" => Kind::Error,
            _ => Kind::Unknown,
        };
        let metadata = raw.object.metadata;
        let initial_end = metadata
            .annotations
            .and_then(|annotations| annotations.initial_end)
            .is_some_and(|value| value == "true");
        Self {
            kind,
            version: metadata.version.filter(|version| !version.is_empty()),
            initial_end,
        }
    }
}

impl Event<'_> {
    /// Reads one length-prefixed protobuf event: `WatchEvent{type, object: RawExtension{raw}}`, where `raw` is
    /// `k8s\0` and an `Unknown{typeMeta, raw}` around the object, whose first field is its metadata.
    pub fn read_protobuf(frame: &[u8]) -> Self {
        const RESOURCE_VERSION: u64 = 6;
        const ANNOTATIONS: u64 = 12;
        let unknown = Self {
            kind: Kind::Unknown,
            version: None,
            initial_end: false,
        };
        let Some(event) = frame.get(4..) else {
            return unknown;
        };
        let kind = match wire::field(event, 1) {
            Some(b"ADDED") => Kind::Added,
            Some(b"MODIFIED" | b"DELETED") => Kind::Changed,
            Some(b"BOOKMARK") => Kind::Bookmark,
            Some(b"ERROR") => Kind::Error,
            Some(_) | None => return unknown,
        };
        let metadata = wire::field(event, 2)
            .and_then(|extension| wire::field(extension, 1))
            .and_then(|raw| raw.strip_prefix(b"k8s\0"))
            .and_then(|envelope| wire::field(envelope, 2))
            .and_then(|object| wire::field(object, 1))
            .unwrap_or_default();
        let version = wire::field(metadata, RESOURCE_VERSION).and_then(|text| std::str::from_utf8(text).ok());
        let initial_end = wire::fields(metadata, ANNOTATIONS).any(|entry| {
            wire::field(entry, 1) == Some(b"k8s.io/initial-events-end")
                && wire::field(entry, 2) == Some(b"true")
        });
        let version = version.filter(|version| !version.is_empty() && kind != Kind::Error);
        Self {
            kind,
            version: version.map(|version| Cow::Owned(version.to_owned())),
            initial_end,
        }
    }
}

/// Just enough of the protobuf wire format to walk to a field.
mod wire {
    /// The first length-delimited field `number`.
    pub(super) fn field(message: &[u8], number: u64) -> Option<&[u8]> {
        fields(message, number).next()
    }

    /// Every length-delimited field `number`; ends at the first thing that does not read.
    pub(super) fn fields(mut rest: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
        std::iter::from_fn(move || {
            loop {
                let (tag, after) = varint(rest)?;
                let (value, after) = match tag & 7 {
                    0 => (None, varint(after)?.1),
                    1 => (None, after.get(8..)?),
                    2 => {
                        let (length, after) = varint(after)?;
                        let (value, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
                        (Some(value), after)
                    }
                    5 => (None, after.get(4..)?),
                    _ => return None,
                };
                rest = after;
                if let Some(value) = value.filter(|_| tag >> 3 == number) {
                    return Some(value);
                }
            }
        })
    }

    fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
        let mut value = 0_u64;
        for (index, byte) in bytes.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index).ok()? * 7)?;
            if byte & 0x80 == 0 {
                return Some((value, bytes.get(index + 1..)?));
            }
        }
        None
    }
}

/// How a watch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From a resourceVersion the caller named: every event is a change and a position.
    Version,
    /// Without one (or `0`): the existing objects come first, as `ADDED`, in no order of version.
    Existing,
    /// `sendInitialEvents=true`: the existing objects come first, and a bookmark ends them.
    StreamingList,
}

/// Where a watch stands, and whether it can go on from there on another connection.
#[derive(Clone, Debug)]
pub struct Position {
    start: Start,
    version: Option<String>,
    /// From `version` on nothing is missed and nothing comes twice.
    proven: bool,
    passed: u64,
}

/// How a broken watch goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// With the very request of the caller: nothing was passed on yet.
    Anew,
    /// From this resourceVersion.
    From(String),
    /// Not at all: the caller has to list again.
    Impossible,
}

impl Position {
    /// A watch before its first event. `version` is what the caller named.
    pub fn new(start: Start, version: Option<&str>) -> Self {
        let version = version.filter(|_| start == Start::Version).map(str::to_owned);
        Self {
            start,
            proven: version.is_some(),
            version,
            passed: 0,
        }
    }

    /// Takes in an event that goes to the caller, or that would if the caller had asked for bookmarks.
    ///
    /// The objects that exist at the start come in the order of their keys. Until they are over, the version of
    /// one of them says nothing about the next, so that going on from it could skip an object. They are over at
    /// the first bookmark, or at the first event that is no `ADDED`.
    pub fn note(&mut self, event: &Event<'_>) {
        if matches!(event.kind, Kind::Added | Kind::Changed) {
            self.passed += 1;
        }
        let proves = match self.start {
            Start::Version => true,
            Start::Existing => matches!(event.kind, Kind::Changed | Kind::Bookmark),
            Start::StreamingList => event.initial_end,
        };
        let Some(version) = &event.version else { return };
        if matches!(event.kind, Kind::Added | Kind::Changed | Kind::Bookmark) {
            self.proven |= proves;
            self.version = Some(version.clone().into_owned());
        }
    }

    /// The last resourceVersion seen, for people.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// How to go on after the connection broke.
    pub fn resume(&self) -> Resume {
        match &self.version {
            Some(version) if self.proven => Resume::From(version.clone()),
            _ if self.passed == 0 => Resume::Anew,
            _ => Resume::Impossible,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut as _;
    use proptest::prelude::*;

    fn split(framing: Framing, chunks: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
        let (mut splitter, mut events) = (Splitter::new(framing), Vec::new());
        for chunk in chunks {
            splitter.feed(Bytes::copy_from_slice(chunk));
            while let Some(event) = splitter.take().unwrap() {
                events.push(event.to_vec());
            }
        }
        (events, splitter.is_partial())
    }

    #[test]
    fn half_an_event_is_held_back() {
        let (events, partial) = split(Framing::JsonLines, &[b"{\"a\":1}\n{\"b\"", b":2}", b"\n{\"c\""]);
        assert_eq!(events, [b"{\"a\":1}\n".to_vec(), b"{\"b\":2}\n".to_vec()]);
        assert!(partial);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut splitter = Splitter::new(Framing::JsonLines);
        let mut result = Ok(None);
        for _ in 0..=8 {
            splitter.feed(Bytes::from(vec![b'x'; 1024 * 1024]));
            result = splitter.take();
        }
        assert_eq!(result, Err(EventTooLong));
        let mut splitter = Splitter::new(Framing::LengthPrefixed);
        splitter.feed(Bytes::from_static(&[0xff; 8]));
        assert_eq!(splitter.take(), Err(EventTooLong));
    }

    fn event(kind: &str, version: &str) -> String {
        format!(
            r#"{{"type":"{kind}","object":{{"kind":"Pod","metadata":{{"name":"a","resourceVersion":"{version}"}}}}}}"#
        )
    }

    fn note(position: &mut Position, kind: &str, version: &str) {
        position.note(&Event::read_json(event(kind, version).as_bytes()));
    }

    #[test]
    fn events_are_read_as_far_as_needed() {
        let text = event("BOOKMARK", "7");
        let read = Event::read_json(text.as_bytes());
        assert_eq!((read.kind, read.version.as_deref()), (Kind::Bookmark, Some("7")));
        let text = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        assert!(Event::read_json(text.as_bytes()).initial_end);
        let text = r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"code":410}}"#;
        assert_eq!(Event::read_json(text.as_bytes()).kind, Kind::Error);
        for text in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"type":7}"#,
            r#"{"type":"ADDED","object":3}"#,
        ] {
            assert_eq!(Event::read_json(text.as_bytes()).kind, Kind::Unknown, "{text}");
        }
    }

    /// Field `number` with `value`, as protobuf writes it.
    fn wire_field(number: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = value.len();
        while length >= 0x80 {
            out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap());
        out.extend(value);
        out
    }

    fn protobuf_event(kind: &str, metadata: &[u8]) -> Vec<u8> {
        let object = [wire_field(1, metadata), wire_field(2, &[7; 200])].concat();
        let type_meta = wire_field(1, b"v1");
        let envelope = [wire_field(1, &type_meta), wire_field(2, &object)].concat();
        let raw = [b"k8s\0".as_slice(), &envelope].concat();
        let event = [
            wire_field(1, kind.as_bytes()),
            wire_field(2, &wire_field(1, &raw)),
        ]
        .concat();
        [
            u32::try_from(event.len()).unwrap().to_be_bytes().as_slice(),
            &event,
        ]
        .concat()
    }

    #[test]
    fn protobuf_events_are_read_as_far_as_needed() {
        let name = wire_field(1, b"a-pod");
        let metadata = [name.clone(), wire_field(6, b"4711")].concat();
        let frame = protobuf_event("MODIFIED", &metadata);
        let read = Event::read_protobuf(&frame);
        assert_eq!(
            (read.kind, read.version.as_deref(), read.initial_end),
            (Kind::Changed, Some("4711"), false)
        );
        let entry = [
            wire_field(1, b"k8s.io/initial-events-end"),
            wire_field(2, b"true"),
        ]
        .concat();
        let metadata = [wire_field(6, b"9"), wire_field(12, &entry)].concat();
        let frame = protobuf_event("BOOKMARK", &metadata);
        let read = Event::read_protobuf(&frame);
        assert_eq!(
            (read.kind, read.version.as_deref(), read.initial_end),
            (Kind::Bookmark, Some("9"), true)
        );
        for broken in [&frame[..0], &frame[..3], &frame[..9], b"\0\0\0\x02\xff\xff"] {
            assert_eq!(Event::read_protobuf(broken).version, None);
        }
    }

    #[test]
    fn a_watch_from_a_version_goes_on_from_its_last_event() {
        let mut position = Position::new(Start::Version, Some("5"));
        assert_eq!(position.resume(), Resume::From("5".to_owned()));
        note(&mut position, "ADDED", "6");
        assert_eq!(position.resume(), Resume::From("6".to_owned()));
        note(&mut position, "BOOKMARK", "9");
        assert_eq!(position.resume(), Resume::From("9".to_owned()));
    }

    #[test]
    fn a_watch_without_version_goes_on_once_its_list_is_surely_over() {
        let mut position = Position::new(Start::Existing, None);
        assert_eq!(position.resume(), Resume::Anew);
        note(&mut position, "ADDED", "50");
        assert_eq!(position.resume(), Resume::Impossible);
        note(&mut position, "MODIFIED", "60");
        assert_eq!(position.resume(), Resume::From("60".to_owned()));
    }

    #[test]
    fn a_streaming_list_goes_on_after_its_end_mark() {
        let mut position = Position::new(Start::StreamingList, Some("0"));
        assert_eq!(position.resume(), Resume::Anew);
        note(&mut position, "ADDED", "50");
        note(&mut position, "BOOKMARK", "51");
        assert_eq!(position.resume(), Resume::Impossible);
        let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"60","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        position.note(&Event::read_json(end.as_bytes()));
        assert_eq!(position.resume(), Resume::From("60".to_owned()));
    }

    proptest! {
        #[test]
        fn lines_come_out_whole_wherever_they_are_cut(
            lines in prop::collection::vec("[a-z]{0,20}", 0..10),
            cuts in prop::collection::vec(1_usize..7, 0..60),
        ) {
            let all: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            let (mut rest, mut chunks) = (all.as_bytes(), Vec::new());
            for cut in cuts {
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            let (events, partial) = split(Framing::JsonLines, &chunks);
            prop_assert!(!partial);
            prop_assert_eq!(events.len(), lines.len());
            prop_assert_eq!(events.concat(), all.into_bytes());
        }

        #[test]
        fn lengths_come_out_whole_wherever_they_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8),
            size in 1_usize..9,
        ) {
            let mut all = Vec::new();
            for body in &bodies {
                all.put_u32(u32::try_from(body.len()).unwrap());
                all.extend(body);
            }
            let chunks: Vec<&[u8]> = all.chunks(size).collect();
            let (events, _) = split(Framing::LengthPrefixed, &chunks);
            prop_assert_eq!(events.len(), bodies.len());
            prop_assert_eq!(events.concat(), all);
        }

        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            Event::read_json(&bytes);
            Event::read_protobuf(&bytes);
        }
    }
}
