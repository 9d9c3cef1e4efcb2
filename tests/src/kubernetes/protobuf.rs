//! Reading the protobuf that `kubectl create` and `kubectl auth` send, for the kinds and fields they send.
//!
//! Answers are JSON, which these clients accept too; only watches are written, for the same kinds. A field that is not in the tables here is dropped; a kind
//! that is not is refused, so that nobody believes that something was stored which was not.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::status::Status;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every such body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// What a field holds.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Text,
    Number,
    Flag,
    Texts,
    TextMap,
    /// Bytes by name, in base64 in JSON.
    BytesMap,
    Message(Fields),
    Messages(Fields),
}

/// Number, name and shape of the fields of a message.
type Fields = &'static [(u64, &'static str, Shape)];

use Shape::{BytesMap, Flag, Message, Messages, Number, Text, TextMap, Texts};

const METADATA: Fields = &[
    (1, "name", Text),
    (2, "generateName", Text),
    (3, "namespace", Text),
    (5, "uid", Text),
    (6, "resourceVersion", Text),
    (11, "labels", TextMap),
    (12, "annotations", TextMap),
    (14, "finalizers", Texts),
];
const ONLY_METADATA: Fields = &[(1, "metadata", Message(METADATA))];
const CONFIG_MAP: Fields = &[
    (1, "metadata", Message(METADATA)),
    (2, "data", TextMap),
    (3, "binaryData", BytesMap),
];
const SECRET: Fields = &[
    (1, "metadata", Message(METADATA)),
    (2, "data", BytesMap),
    (3, "type", Text),
    (4, "stringData", TextMap),
];
const PORT: Fields = &[
    (1, "name", Text),
    (3, "containerPort", Number),
    (4, "protocol", Text),
];
const CONTAINER: Fields = &[
    (1, "name", Text),
    (2, "image", Text),
    (3, "command", Texts),
    (4, "args", Texts),
    (6, "ports", Messages(PORT)),
];
const TEMPLATE: Fields = &[
    (1, "metadata", Message(METADATA)),
    (2, "spec", Message(&[(2, "containers", Messages(CONTAINER))])),
];
const DEPLOYMENT: Fields = &[
    (1, "metadata", Message(METADATA)),
    (
        2,
        "spec",
        Message(&[
            (1, "replicas", Number),
            (2, "selector", Message(&[(1, "matchLabels", TextMap)])),
            (3, "template", Message(TEMPLATE)),
        ]),
    ),
];
const ACCESS_REVIEW: Fields = &[(
    2,
    "spec",
    Message(&[(
        1,
        "resourceAttributes",
        Message(&[
            (1, "namespace", Text),
            (2, "verb", Text),
            (3, "group", Text),
            (4, "version", Text),
            (5, "resource", Text),
            (6, "subresource", Text),
            (7, "name", Text),
        ]),
    )]),
)];
const DELETE_OPTIONS: Fields = &[
    (
        2,
        "preconditions",
        Message(&[(1, "uid", Text), (2, "resourceVersion", Text)]),
    ),
    (3, "orphanDependents", Flag),
    (4, "propagationPolicy", Text),
    (5, "dryRun", Texts),
];

fn fields_of(kind: &str) -> Option<Fields> {
    Some(match kind {
        "Namespace" | "ServiceAccount" | "SelfSubjectReview" => ONLY_METADATA,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Deployment" => DEPLOYMENT,
        "SelfSubjectAccessReview" => ACCESS_REVIEW,
        "DeleteOptions" => DELETE_OPTIONS,
        _ => return None,
    })
}

/// The object in a body.
///
/// # Errors
/// 415 for a kind that is not in the tables, 400 for what cannot be read.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    let broken = || Status::bad_request("the object provided is unrecognized: broken protobuf");
    let envelope = body.strip_prefix(MAGIC).ok_or_else(broken)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in parse(envelope).ok_or_else(broken)? {
        match field {
            (1, Wire::Bytes(bytes)) => {
                for (number, value) in parse(bytes).ok_or_else(broken)? {
                    match (number, value) {
                        (1, Wire::Bytes(bytes)) => version = text(bytes),
                        (2, Wire::Bytes(bytes)) => kind = text(bytes),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let fields = fields_of(&kind).ok_or_else(Status::unsupported_media_type)?;
    let mut object = message(raw, fields).ok_or_else(broken)?;
    object.insert("apiVersion".to_owned(), json!(version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

const STATUS: Fields = &[
    (2, "status", Text),
    (3, "message", Text),
    (4, "reason", Text),
    (6, "code", Number),
];

/// Whether watches of a kind can be written.
pub fn writes(kind: &str) -> bool {
    fields_of(kind).is_some()
}

/// One event of a watch as it goes over the wire: its length, then `WatchEvent` with the object in its envelope.
pub fn event(kind: &str, object: &Value) -> Vec<u8> {
    let name = object["kind"].as_str().unwrap_or_default();
    let fields = if name == "Status" {
        STATUS
    } else {
        fields_of(name).unwrap_or(ONLY_METADATA)
    };
    let (mut meta, mut envelope) = (Vec::new(), MAGIC.to_vec());
    put_bytes(
        &mut meta,
        1,
        object["apiVersion"].as_str().unwrap_or_default().as_bytes(),
    );
    put_bytes(&mut meta, 2, name.as_bytes());
    put_bytes(&mut envelope, 1, &meta);
    put_bytes(&mut envelope, 2, &written(object, fields));
    let (mut extension, mut event) = (Vec::new(), Vec::new());
    put_bytes(&mut extension, 1, &envelope);
    put_bytes(&mut event, 1, kind.as_bytes());
    put_bytes(&mut event, 2, &extension);
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [length.to_be_bytes().to_vec(), event].concat()
}

/// An object as a message; what its table does not name is left out.
fn written(object: &Value, fields: Fields) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, name, shape) in fields {
        let value = &object[*name];
        let list = || value.as_array().into_iter().flatten();
        match *shape {
            _ if value.is_null() => {}
            Text => put_bytes(&mut out, *number, value.as_str().unwrap_or_default().as_bytes()),
            Number => put_number(
                &mut out,
                *number,
                value.as_i64().unwrap_or_default().cast_unsigned(),
            ),
            Flag => put_number(&mut out, *number, u64::from(value.as_bool().unwrap_or_default())),
            Texts => list().for_each(|text| {
                put_bytes(&mut out, *number, text.as_str().unwrap_or_default().as_bytes());
            }),
            Message(fields) => put_bytes(&mut out, *number, &written(value, fields)),
            Messages(fields) => list().for_each(|one| put_bytes(&mut out, *number, &written(one, fields))),
            TextMap | BytesMap => {
                for (key, entry) in value.as_object().into_iter().flatten() {
                    let text = entry.as_str().unwrap_or_default();
                    let entry = match shape {
                        BytesMap => BASE64_STANDARD.decode(text).unwrap_or_default(),
                        _ => text.as_bytes().to_vec(),
                    };
                    let mut pair = Vec::new();
                    put_bytes(&mut pair, 1, key.as_bytes());
                    put_bytes(&mut pair, 2, &entry);
                    put_bytes(&mut out, *number, &pair);
                }
            }
        }
    }
    out
}

fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(out, number << 3);
    put_varint(out, value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or_default());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A message as an object; what is empty is absent, as in JSON.
fn message(bytes: &[u8], fields: Fields) -> Option<Map<String, Value>> {
    let mut object = Map::new();
    for (number, value) in parse(bytes)? {
        let Some((_, name, shape)) = fields.iter().find(|(known, ..)| *known == number) else {
            continue;
        };
        let mut slot = |empty: Value| object.entry(*name).or_insert(empty).clone();
        let new = match (*shape, value) {
            (Text, Wire::Bytes(bytes)) if !bytes.is_empty() => json!(text(bytes)),
            (Number, Wire::Number(number)) => json!(number.cast_signed()),
            (Flag, Wire::Number(number)) => json!(number != 0),
            (Message(fields), Wire::Bytes(bytes)) => Value::Object(message(bytes, fields)?),
            (Texts, Wire::Bytes(bytes)) => push(slot(json!([])), json!(text(bytes))),
            (Messages(fields), Wire::Bytes(bytes)) => {
                push(slot(json!([])), Value::Object(message(bytes, fields)?))
            }
            (shape @ (TextMap | BytesMap), Wire::Bytes(bytes)) => {
                let (mut key, mut entry) = (String::new(), &[][..]);
                for part in parse(bytes)? {
                    match part {
                        (1, Wire::Bytes(bytes)) => key = text(bytes),
                        (2, Wire::Bytes(bytes)) => entry = bytes,
                        _ => {}
                    }
                }
                let plain = matches!(shape, TextMap);
                let entry = if plain {
                    text(entry)
                } else {
                    BASE64_STANDARD.encode(entry)
                };
                let mut map = slot(json!({}));
                map[key] = json!(entry);
                map
            }
            _ => continue,
        };
        object.insert((*name).to_owned(), new);
    }
    Some(object)
}

fn push(mut list: Value, element: Value) -> Value {
    if let Value::Array(elements) = &mut list {
        elements.push(element);
    }
    list
}

/// A field on the wire.
#[derive(Debug)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, or nothing when it is broken.
fn parse(mut bytes: &[u8]) -> Option<Vec<(u64, Wire<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Wire::Number(varint(&mut bytes)?),
            1 => Wire::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = varint(&mut bytes)?;
                Wire::Bytes(take(&mut bytes, usize::try_from(length).ok()?)?)
            }
            5 => Wire::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(count)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_secret() {
        let metadata = [
            field(1, b"s"),
            field(3, b""),
            field(11, &[field(1, b"k"), field(2, b"v")].concat()),
        ]
        .concat();
        let data = [field(1, b"password"), field(2, b"hello")].concat();
        let raw = [field(1, &metadata), field(2, &data), field(3, b"Opaque")].concat();
        assert_eq!(
            decode(&envelope("Secret", &raw)).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"k": "v"}},
                "data": {"password": "aGVsbG8="}, "type": "Opaque"
            })
        );
    }

    #[test]
    fn what_is_written_reads_as_it_was() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1", "b": "x".repeat(300)},
            "metadata": {"name": "c", "namespace": "n", "resourceVersion": "12", "annotations": {"k": "v"}}
        });
        let frame = event("ADDED", &object);
        let (length, rest) = frame.split_at(4);
        assert_eq!(
            u32::from_be_bytes(length.try_into().unwrap()) as usize,
            rest.len()
        );
        let fields = parse(rest).unwrap();
        let [(1, Wire::Bytes(b"ADDED")), (2, Wire::Bytes(extension))] = fields.as_slice() else {
            panic!("{fields:?}");
        };
        let Some((1, Wire::Bytes(envelope))) = parse(extension).unwrap().pop() else {
            panic!("no envelope");
        };
        assert_eq!(decode(envelope).unwrap(), object);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert_eq!(decode(&envelope("Pod", b"")).unwrap_err().code, 415);
    }

    proptest! {
        /// No bytes break the reader.
        #[test]
        fn any_bytes_end(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (decode(&envelope("Deployment", &raw)), decode(&raw), decode(&[MAGIC, &raw].concat()));
        }
    }
}
