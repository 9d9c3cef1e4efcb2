//! Reading the protobuf that `kubectl create` and `kubectl auth` send, for the kinds and fields they send.
//!
//! Answers are always JSON, which these clients accept too. A field that is not in the tables here is dropped; a kind
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
