//! Frames v1: one JSON object per WebSocket text message, `spec/k8s-proxy.md`. Pure: no socket, no task.
//!
//! Strict in what is sent, tolerant in what is read: header values may be a string or a list, missing fields are empty.

use std::{collections::BTreeMap, io::Read};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What an unpacked body may measure; a peer that sends more has broken the protocol (its bodies end at 8 MiB).
const MAX_UNPACKED: u64 = 64 * 1024 * 1024;

/// One call that the control plane makes, before it has an id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// HTTP method, or `CANCEL`.
    pub method: String,
    /// Absolute path without the query.
    pub path: String,
    /// Query parameters, in the order of their names.
    pub query: BTreeMap<String, Vec<String>>,
    /// Headers; a name may come more than once.
    pub headers: Vec<(String, String)>,
    /// Body, empty for none.
    pub body: Bytes,
    /// Whether the other side may compress bodies of answers.
    pub accept_gzip: bool,
}

impl Call {
    /// A call without query, headers and body.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            ..Self::default()
        }
    }

    /// A `GET`.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query
            .entry(name.to_owned())
            .or_default()
            .push(value.to_owned());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Allows compressed answers.
    #[must_use]
    pub fn gzip(mut self) -> Self {
        self.accept_gzip = true;
        self
    }

    /// The frame as text.
    pub fn encode(&self, id: &str, stream: bool) -> String {
        let mut headers: BTreeMap<&str, OneOrMany> = BTreeMap::new();
        for (name, value) in &self.headers {
            let value = match headers.remove(name.as_str()) {
                None => OneOrMany::One(value.clone()),
                Some(OneOrMany::One(first)) => OneOrMany::Many(vec![first, value.clone()]),
                Some(OneOrMany::Many(mut all)) => {
                    all.push(value.clone());
                    OneOrMany::Many(all)
                }
            };
            headers.insert(name, value);
        }
        let frame = RequestFrame {
            id,
            method: &self.method,
            path: &self.path,
            headers,
            body: STANDARD.encode(&self.body),
            query: &self.query,
            stream,
            accept_encoding: if self.accept_gzip { &["gzip"] } else { &[] },
        };
        serde_json::to_string(&frame).unwrap_or_default()
    }

    /// The frame that ends the stream of the request `id`.
    pub fn cancel(id: &str, stream_id: &str) -> String {
        // Both ids are sent: the request's is known before the first answer names the stream's.
        serde_json::json!({ "id": id, "method": "CANCEL", "path": "/", "stream_id": stream_id }).to_string()
    }
}

#[derive(Serialize)]
struct RequestFrame<'a> {
    id: &'a str,
    method: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, OneOrMany>,
    #[serde(skip_serializing_if = "String::is_empty")]
    body: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query: &'a BTreeMap<String, Vec<String>>,
    stream: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    accept_encoding: &'a [&'a str],
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// One frame that came from the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The request it belongs to; empty when the proxy could not read one.
    pub id: String,
    /// HTTP status, 0 in frames that carry none.
    pub status: u16,
    /// Headers in the order of their names.
    pub headers: Vec<(String, String)>,
    /// Decoded, unpacked body.
    pub body: Bytes,
    /// A plain sentence when something failed.
    pub error: String,
    /// Whether it belongs to a stream.
    pub stream: bool,
    /// The stream's id, from the first frame of a stream on.
    pub stream_id: String,
    /// Whether `body` is the next piece of a stream.
    pub chunk: bool,
    /// Whether nothing follows for this request.
    pub done: bool,
}

/// Why a message of the proxy is no answer frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not the JSON that the contract asks for.
    #[error("frame is not an answer: {0}")]
    Json(#[from] serde_json::Error),
    /// The body is not base64.
    #[error("frame {id}: body is not base64")]
    Base64 {
        /// The request.
        id: String,
    },
    /// The body cannot be unpacked, or is larger than any body may be.
    #[error("frame {id}: body with encoding {encoding:?} cannot be unpacked")]
    Encoding {
        /// The request.
        id: String,
        /// What it claims to be.
        encoding: String,
    },
}

/// A message of the proxy.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// An answer to a request.
    Frame(Box<Frame>),
    /// The answer to our ping.
    Pong,
    /// It wants a pong.
    Ping,
}

/// Reads one text message.
///
/// # Errors
/// When it is no frame of the contract.
pub fn decode(text: &str) -> Result<Incoming, FrameError> {
    let raw: RawAnswer = serde_json::from_str(text)?;
    match raw.kind.as_deref() {
        Some("ping") => return Ok(Incoming::Ping),
        Some("pong") => return Ok(Incoming::Pong),
        _ => {}
    }
    let body = STANDARD
        .decode(&raw.body)
        .map_err(|_| FrameError::Base64 { id: raw.id.clone() })?;
    let body = match raw.encoding.as_str() {
        "" | "base64" | "identity" => body,
        "gzip" => unpack(&body).ok_or_else(|| FrameError::Encoding {
            id: raw.id.clone(),
            encoding: raw.encoding.clone(),
        })?,
        _ => {
            return Err(FrameError::Encoding {
                id: raw.id,
                encoding: raw.encoding,
            });
        }
    };
    let headers = raw
        .headers
        .unwrap_or_default()
        .into_iter()
        .flat_map(|(name, value)| {
            let values = match value {
                OneOrMany::One(value) => vec![value],
                OneOrMany::Many(values) => values,
            };
            values.into_iter().map(move |value| (name.clone(), value))
        });
    Ok(Incoming::Frame(Box::new(Frame {
        id: raw.id,
        status: raw.status_code,
        headers: headers.collect(),
        body: body.into(),
        error: raw.error,
        stream: raw.stream,
        stream_id: raw.stream_id,
        chunk: raw.chunk,
        done: raw.done,
    })))
}

fn unpack(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(body)
        .take(MAX_UNPACKED + 1)
        .read_to_end(&mut out)
        .ok()?;
    (out.len() as u64 <= MAX_UNPACKED).then_some(out)
}

#[derive(Deserialize)]
struct RawAnswer {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    id: String,
    #[serde(default)]
    status_code: u16,
    #[serde(default)]
    headers: Option<BTreeMap<String, OneOrMany>>,
    #[serde(default)]
    body: String,
    #[serde(default)]
    encoding: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_id: String,
    #[serde(default)]
    chunk: bool,
    #[serde(default)]
    done: bool,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn answer(text: &str) -> Frame {
        match decode(text).unwrap() {
            Incoming::Frame(answer) => *answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_becomes_the_frame_of_the_contract() {
        let call = Call::new("POST", "/api/v1/pods")
            .query("watch", "true")
            .header("Accept", "a")
            .header("X", "1")
            .header("X", "2")
            .body("hi");
        let frame: serde_json::Value = serde_json::from_str(&call.encode("r1", true)).unwrap();
        let want = serde_json::json!({"id":"r1","method":"POST","path":"/api/v1/pods","stream":true,
            "headers":{"Accept":"a","X":["1","2"]},"body":"aGk=","query":{"watch":["true"]}});
        assert_eq!(frame, want);
    }

    #[test]
    fn a_cancel_names_both_ids() {
        let frame: serde_json::Value = serde_json::from_str(&Call::cancel("r1", "s1")).unwrap();
        assert_eq!(
            (&frame["method"], &frame["id"], &frame["stream_id"]),
            (&"CANCEL".into(), &"r1".into(), &"s1".into())
        );
    }

    #[test]
    fn answers_may_carry_single_and_repeated_headers_and_null() {
        let got = answer(
            r#"{"id":"r","status_code":200,"headers":{"A":"1","B":["2","3"]},"body":"aGk=","done":true}"#,
        );
        let pairs =
            [("A", "1"), ("B", "2"), ("B", "3")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            (got.status, got.headers.as_slice(), &got.body[..], got.done),
            (200, &pairs[..], &b"hi"[..], true)
        );
        assert!(answer(r#"{"id":"r","headers":null}"#).headers.is_empty());
    }

    #[test]
    fn gzip_is_unpacked_when_marked_and_refused_when_broken() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"hello").unwrap();
        let packed = STANDARD.encode(gz.finish().unwrap());
        assert_eq!(
            &answer(&format!(r#"{{"id":"r","body":"{packed}","encoding":"gzip"}}"#)).body[..],
            b"hello"
        );
        assert!(decode(r#"{"id":"r","body":"aGk=","encoding":"gzip"}"#).is_err());
        assert!(decode(r#"{"id":"r","body":"aGk=","encoding":"zstd"}"#).is_err());
        assert!(decode(r#"{"id":"r","body":"%%%"}"#).is_err());
        assert!(decode("7").is_err());
    }

    #[test]
    fn pings_and_pongs_are_no_answers() {
        assert_eq!(decode(r#"{"type":"pong"}"#).unwrap(), Incoming::Pong);
        assert_eq!(decode(r#"{"type":"ping"}"#).unwrap(), Incoming::Ping);
    }
}
