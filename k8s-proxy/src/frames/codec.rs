//! Frames v1 as text. Pure.

use std::{borrow::Cow, collections::BTreeMap, fmt, io::Write as _};

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::PathAndQuery};
use serde::Deserialize;

use crate::{headers, path, status::Failure};

/// Largest frame that is taken in.
pub const MAX_FRAME: usize = 1024 * 1024;
/// Bodies below this are not worth compressing.
const COMPRESS_FROM: usize = 1024;
/// Longest id; it is repeated in every frame of its call.
const MAX_ID: usize = 256;

/// Seeds' clients come with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One frame from the caller.
#[derive(Debug)]
pub enum Inbound {
    /// A Kubernetes call.
    Call(Box<Call>),
    /// The end of an open call: its stream id or its id.
    Cancel {
        /// Id of the frame, for an answer when nothing is open by that name.
        id: String,
        /// Id or stream id of the call.
        target: String,
    },
    /// `{"type":"ping"}`.
    Ping,
    /// An answer to a ping of ours, or anything else that needs no answer.
    Pong,
}

/// A Kubernetes call. Debug shows no header values and no body.
pub struct Call {
    /// The caller's id.
    pub id: String,
    /// HTTP method.
    pub method: Method,
    /// Checked path and query.
    pub uri: PathAndQuery,
    /// The caller's headers, not cleaned yet.
    pub headers: HeaderMap,
    /// Decoded body.
    pub body: Bytes,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether marked gzip is welcome.
    pub gzip: bool,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.keys().map(HeaderName::as_str).collect();
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("method", &self.method)
            .field("path", &self.uri.path())
            .field("headers", &names)
            .field("body_len", &self.body.len())
            .field("stream", &self.stream)
            .finish()
    }
}

/// A frame that is not one, with its id if that could be read.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFrame {
    /// The id, or empty.
    pub id: String,
    /// What is told about it.
    pub failure: Failure,
}

#[derive(Deserialize)]
struct RawFrame<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    id: String,
    #[serde(borrow, default)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    path: Cow<'a, str>,
    #[serde(default)]
    headers: Option<BTreeMap<String, OneOrMany>>,
    #[serde(borrow, default)]
    body: Option<Cow<'a, str>>,
    #[serde(default)]
    query: Option<BTreeMap<String, OneOrMany>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_id: Option<String>,
    #[serde(default)]
    accept_encoding: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
    Null(()),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
            Self::Null(()) => &[],
        }
    }
}

/// Reads one frame.
///
/// # Errors
/// The answer to a frame that is none; the connection and all other calls live on.
pub fn read(text: &str) -> Result<Inbound, BadFrame> {
    let raw: RawFrame<'_> = serde_json::from_str(text).map_err(|error| BadFrame {
        id: salvage_id(text),
        failure: bad(format!("this is not a frame: {error}")),
    })?;
    match raw.kind.as_deref() {
        Some("ping") => return Ok(Inbound::Ping),
        Some("pong") => return Ok(Inbound::Pong),
        Some(_) | None => {}
    }
    let id = raw.id.clone();
    let refuse = |message: String| BadFrame {
        id: id.clone(),
        failure: bad(message),
    };
    if raw.method.eq_ignore_ascii_case("CANCEL") {
        let target = raw
            .stream_id
            .filter(|stream_id| !stream_id.is_empty())
            .unwrap_or_else(|| raw.id.clone());
        if target.is_empty() {
            return Err(refuse("CANCEL needs a stream_id or an id".to_owned()));
        }
        return Ok(Inbound::Cancel { id: raw.id, target });
    }
    if raw.id.is_empty() {
        return Err(refuse("a frame needs an id".to_owned()));
    }
    if raw.id.len() > MAX_ID {
        return Err(BadFrame {
            id: String::new(),
            failure: bad(format!("the id is longer than {MAX_ID} bytes")),
        });
    }
    let method = match raw.method.to_ascii_uppercase().as_str() {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        "HEAD" => Method::HEAD,
        "OPTIONS" => Method::OPTIONS,
        _ => return Err(refuse(format!("method {:?} is not known", raw.method))),
    };
    let uri = read_uri(&raw.path, raw.query.as_ref()).map_err(|error| refuse(error.to_string()))?;
    let headers = read_headers(raw.headers.as_ref()).map_err(&refuse)?;
    let body = match raw.body.as_deref() {
        None | Some("") => Bytes::new(),
        Some(body) => LENIENT
            .decode(body)
            .map(Bytes::from)
            .map_err(|_| refuse("the body is not base64".to_owned()))?,
    };
    let encodings = raw
        .accept_encoding
        .as_ref()
        .map(OneOrMany::as_slice)
        .unwrap_or_default();
    Ok(Inbound::Call(Box::new(Call {
        id: raw.id,
        method,
        uri,
        headers,
        body,
        stream: raw.stream.unwrap_or_default(),
        gzip: encodings
            .iter()
            .any(|encoding| encoding.eq_ignore_ascii_case("gzip")),
    })))
}

fn bad(message: String) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "bad_frame", message)
}

/// The id of a frame that does not read, if it is at least JSON with one.
fn salvage_id(text: &str) -> String {
    #[derive(Deserialize)]
    struct OnlyId {
        #[serde(default)]
        id: serde_json::Value,
    }
    let id = serde_json::from_str::<OnlyId>(text)
        .ok()
        .and_then(|frame| frame.id.as_str().map(str::to_owned));
    id.filter(|id| id.len() <= MAX_ID).unwrap_or_default()
}

fn read_uri(
    text: &str,
    query: Option<&BTreeMap<String, OneOrMany>>,
) -> Result<PathAndQuery, path::PathError> {
    let (path, inline) = match text.split_once('?') {
        Some((path, inline)) => (path, Some(inline)),
        None => (text, None),
    };
    let pairs = query.into_iter().flatten();
    let pairs = pairs.flat_map(|(key, values)| {
        values
            .as_slice()
            .iter()
            .map(move |value| (key.as_str(), value.as_str()))
    });
    let mut encoded = path::encode_query(pairs);
    if let Some(inline) = inline.filter(|inline| !inline.is_empty()) {
        let separator = if encoded.is_empty() { "" } else { "&" };
        encoded = format!("{inline}{separator}{encoded}");
    }
    path::join(path, Some(&encoded))
}

fn read_headers(raw: Option<&BTreeMap<String, OneOrMany>>) -> Result<HeaderMap, String> {
    let mut out = HeaderMap::new();
    for (name, values) in raw.into_iter().flatten() {
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("{name:?} is not a header name"))?;
        for value in values.as_slice() {
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of header {name} is not allowed"))?;
            out.append(&name, value);
        }
    }
    Ok(out)
}

/// One frame to the caller.
#[derive(Debug, Default)]
pub struct Outbound<'a> {
    /// The call's id.
    pub id: &'a str,
    /// HTTP status.
    pub status: u16,
    /// Headers of the answer, in its first frame.
    pub headers: Option<&'a HeaderMap>,
    /// Body, or a piece of it.
    pub body: &'a [u8],
    /// The body is gzip and marked so.
    pub gzip: bool,
    /// One sentence, when it did not go well.
    pub error: &'a str,
    /// The answer comes in pieces.
    pub stream: bool,
    /// Its stream id.
    pub stream_id: &'a str,
    /// This is a piece.
    pub chunk: bool,
    /// Nothing follows.
    pub done: bool,
}

impl Outbound<'_> {
    /// The frame as text. Written by hand, because the base64 text of a large body then needs no copy of its own.
    pub fn write(&self) -> String {
        let mut out =
            String::with_capacity(self.body.len() * 4 / 3 + 192 + self.id.len() + self.stream_id.len());
        out.push_str(r#"{"id":"#);
        push_string(&mut out, self.id);
        out.push_str(r#","status_code":"#);
        out.push_str(&self.status.to_string());
        out.push_str(r#","headers":{"#);
        if let Some(headers) = self.headers {
            push_headers(&mut out, headers);
        }
        out.push_str(r#"},"body":""#);
        STANDARD.encode_string(self.body, &mut out);
        out.push('"');
        if self.gzip {
            out.push_str(r#","encoding":"gzip""#);
        }
        out.push_str(r#","error":"#);
        push_string(&mut out, self.error);
        for (name, value) in [
            ("stream", self.stream),
            ("chunk", self.chunk),
            ("done", self.done),
        ] {
            out.push_str(",\"");
            out.push_str(name);
            out.push_str(if value { "\":true" } else { "\":false" });
        }
        out.push_str(r#","stream_id":"#);
        push_string(&mut out, self.stream_id);
        out.push('}');
        out
    }
}

fn push_headers(out: &mut String, headers: &HeaderMap) {
    for (index, name) in headers.keys().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_string(out, &headers::title_case(name.as_str()));
        out.push(':');
        // A plain map in the seeds' clients: several values become one list, as RFC 9110 section 5.3 allows.
        let values: Vec<Cow<'_, str>> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        push_string(out, &values.join(", "));
    }
}

fn push_string(out: &mut String, text: &str) {
    match serde_json::to_string(text) {
        Ok(quoted) => out.push_str(&quoted),
        Err(_) => out.push_str("\"\""),
    }
}

/// Whether an answer may be compressed for a caller that welcomes it: text, long enough, not compressed already.
pub fn compressible(headers: &HeaderMap, len: usize) -> bool {
    const TEXT: [&str; 5] = ["json", "text/", "yaml", "xml", "javascript"];
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    len >= COMPRESS_FROM
        && !headers.contains_key(header::CONTENT_ENCODING)
        && TEXT.iter().any(|text| kind.contains(text))
}

/// Compresses; `None` when memory cannot be written to, which does not happen.
pub fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    // Fastest: the socket is usually not the bottleneck, the event loop is.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests;
