//! Watch events out of a stream's bytes, in JSON and in protobuf. Pure.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// One object a line.
    Json,
    /// A length before each.
    Protobuf,
}

impl Encoding {
    /// What a client asks for.
    pub fn accept(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Protobuf => "protobuf",
        }
    }
}

/// One event, as far as a recorder needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// Its resourceVersion.
    pub version: String,
    /// `code` of the `Status` of an `ERROR`.
    pub code: u64,
}

/// The largest event; the largest object is below 2 MiB in etcd and grows as JSON.
pub const MAX_EVENT: usize = 16 * 1024 * 1024;

impl Event {
    /// Reads one whole event.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(encoding: Encoding, whole: &[u8]) -> Result<Self> {
        match encoding {
            Encoding::Json => json(whole),
            Encoding::Protobuf => protobuf(whole.get(4..).unwrap_or_default()),
        }
    }
}

/// Cuts a stream into events.
#[derive(Debug)]
pub struct Reader {
    encoding: Encoding,
    rest: Vec<u8>,
}

impl Reader {
    /// At the start of a stream.
    pub fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            rest: Vec::new(),
        }
    }

    /// Bytes of an event that is not whole.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The events that a piece completes, as they came.
    ///
    /// # Errors
    /// When one is larger than [`MAX_EVENT`].
    pub fn cut(&mut self, piece: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.rest.extend_from_slice(piece);
        let mut whole = Vec::new();
        while let Some(end) = self.end() {
            whole.push(self.rest.drain(..end).collect());
        }
        let left = self.left();
        ensure!(
            left <= MAX_EVENT,
            "a watch event is larger than {MAX_EVENT} bytes"
        );
        Ok(whole)
    }

    /// The events that a piece completes.
    ///
    /// # Errors
    /// When they are none, or too large.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>> {
        let whole = self.cut(piece)?;
        whole.iter().map(|one| Event::read(self.encoding, one)).collect()
    }

    fn end(&self) -> Option<usize> {
        match self.encoding {
            Encoding::Json => memchr::memchr(b'\n', &self.rest).map(|at| at + 1),
            Encoding::Protobuf => {
                let length: [u8; 4] = self.rest.get(..4)?.try_into().ok()?;
                let end = usize::try_from(u32::from_be_bytes(length)).ok()? + 4;
                (self.rest.len() >= end).then_some(end)
            }
        }
    }
}

fn json(line: &[u8]) -> Result<Event> {
    let event: Value = serde_json::from_slice(line)
        .with_context(|| format!("no event: {}", String::from_utf8_lossy(line)))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["object"];
    let kind = text(&event["type"]);
    ensure!(!kind.is_empty(), "an event without a type: {event}");
    // A `Table`, which is what kubectl asks for, may have its positions in its rows only.
    let rows = object["rows"].as_array().into_iter().flatten();
    let versions = rows.map(|row| &row["object"]["metadata"]["resourceVersion"]);
    let version = std::iter::once(&object["metadata"]["resourceVersion"])
        .chain(versions)
        .map(text)
        .find(|version| !version.is_empty());
    Ok(Event {
        kind,
        name: text(&object["metadata"]["name"]),
        version: version.unwrap_or_default(),
        code: object["code"].as_u64().unwrap_or_default(),
    })
}

/// `WatchEvent{1: type, 2: RawExtension{1: "k8s\0" Unknown{1: TypeMeta{2: kind}, 2: object}}}`; metadata is field 1
/// of an object, with the name in 1 and the resourceVersion in 6; the code of a `Status` is its field 6.
fn protobuf(event: &[u8]) -> Result<Event> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kind = bytes(event, 1).map(text).context("an event without a type")?;
    let envelope = bytes(event, 2).and_then(|extension| bytes(extension, 1));
    let envelope = envelope.context("an event without an object")?;
    let Some(envelope) = envelope.strip_prefix(b"k8s\0") else {
        bail!("an object without its envelope");
    };
    let object = bytes(envelope, 2).unwrap_or_default();
    let metadata = bytes(object, 1).unwrap_or_default();
    Ok(Event {
        name: bytes(metadata, 1).map(text).unwrap_or_default(),
        version: bytes(metadata, 6).map(text).unwrap_or_default(),
        code: if kind == "ERROR" { number(object, 6) } else { 0 },
        kind,
    })
}

fn bytes(message: &[u8], wanted: u64) -> Option<&[u8]> {
    fields(message).find_map(|(number, _, bytes)| (number == wanted).then_some(bytes?))
}

fn number(message: &[u8], wanted: u64) -> u64 {
    fields(message)
        .find_map(|(number, value, bytes)| (number == wanted && bytes.is_none()).then_some(value))
        .unwrap_or_default()
}

/// Number, value and bytes of each field; ends where it does not read.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, u64, Option<&[u8]>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut rest)?;
        let field = match tag & 7 {
            0 => (tag >> 3, varint(&mut rest)?, None),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                (tag >> 3, 0, Some(bytes))
            }
            _ => return None,
        };
        Some(field)
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::protobuf;

    #[test]
    fn the_same_event_in_both_encodings_cut_anywhere() {
        let object = serde_json::json!({
            "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "resourceVersion": "7"}
        });
        let gone =
            serde_json::json!({"kind": "Status", "apiVersion": "v1", "message": "too old", "code": 410});
        let json = |kind: &str, object: &Value| {
            format!("{}\n", serde_json::json!({"type": kind, "object": object})).into_bytes()
        };
        let streams = [
            (
                Encoding::Json,
                [json("ADDED", &object), json("ERROR", &gone)].concat(),
            ),
            (
                Encoding::Protobuf,
                [protobuf::event("ADDED", &object), protobuf::event("ERROR", &gone)].concat(),
            ),
        ];
        for (encoding, bytes) in streams {
            for cut in 0..bytes.len() {
                let mut reader = Reader::new(encoding);
                let mut events = reader.push(&bytes[..cut]).unwrap();
                events.extend(reader.push(&bytes[cut..]).unwrap());
                assert_eq!(reader.left(), 0);
                assert_eq!((events[0].name.as_str(), events[0].version.as_str()), ("a", "7"));
                assert_eq!((events[1].kind.as_str(), events[1].code), ("ERROR", 410));
            }
        }
    }
}
