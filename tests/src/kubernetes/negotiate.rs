//! What form a client wants, and what form it sends.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, header};
use serde_json::Value;

use super::{auth::header_text, protobuf, status::Status};

/// Bodies smaller than this are never compressed, as in the real API.
const GZIP_FROM: usize = 128 * 1024;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Objects.
    Json,
    /// Rows for people, as kubectl asks for them.
    Table,
    /// `PartialObjectMetadata`: nothing but names, labels and the like.
    Metadata,
    /// Objects in protobuf: watches of the kinds that can be written so.
    Protobuf,
}

/// The first form of a watch that we have, in the order of the client.
///
/// # Errors
/// 406 when there is none.
pub fn watch_form(headers: &HeaderMap, kind: &str) -> Result<Form, Status> {
    let accept = header_text(headers, "accept");
    let protobuf = |range: &str| {
        let media = range.split(';').next().unwrap_or_default().trim();
        media == protobuf::MEDIA_TYPE && protobuf::writes(kind)
    };
    match accept.split(',').find_map(|range| {
        protobuf(range)
            .then_some(Form::Protobuf)
            .or_else(|| one_form(range))
    }) {
        Some(form) => Ok(form),
        None => form(headers),
    }
}

/// What is left of a JSON object, or of each item of a list, when only metadata is asked for.
pub fn metadata_only(json: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(json).unwrap_or_default();
    let reduce = |object: &Value| {
        let version = "meta.k8s.io/v1";
        serde_json::json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": object["metadata"]})
    };
    let Some(items) = value.get("items").and_then(Value::as_array) else {
        return reduce(&value);
    };
    let items: Vec<Value> = items.iter().map(reduce).collect();
    value["kind"] = "PartialObjectMetadataList".into();
    value["apiVersion"] = "meta.k8s.io/v1".into();
    value["items"] = items.into();
    value
}

/// The first form that we have, in the order of the client.
///
/// # Errors
/// 406 when there is none.
pub fn form(headers: &HeaderMap) -> Result<Form, Status> {
    let accept = header_text(headers, "accept");
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    accept
        .split(',')
        .find_map(one_form)
        .ok_or_else(Status::not_acceptable)
}

fn one_form(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    if !matches!(parts.next(), Some("application/json" | "application/*" | "*/*")) {
        return None;
    }
    let mut form = Form::Json;
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match (key, value) {
            ("as", "Table") => form = Form::Table,
            ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => form = Form::Metadata,
            ("as", _) => return None,
            _ => {}
        }
    }
    Some(form)
}

/// Whether a large body goes out compressed.
pub fn gzip(headers: &HeaderMap, body: &Bytes) -> Option<Bytes> {
    let accepted = header_text(headers, "accept-encoding");
    let wanted = accepted
        .split(',')
        .any(|coding| coding.split(';').next().map(str::trim) == Some("gzip"));
    if !wanted || body.len() < GZIP_FROM {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// The media type of a request's body, without parameters.
pub fn content_type(headers: &HeaderMap) -> String {
    let text = header_text(headers, header::CONTENT_TYPE.as_str());
    text.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// The object in a body.
///
/// # Errors
/// 415 for another form, 400 for what cannot be read.
pub fn decode(content_type: &str, body: &[u8]) -> Result<Value, Status> {
    match content_type {
        "" | "application/json" => read_json(body),
        "application/yaml" => read_yaml(body),
        protobuf::MEDIA_TYPE => protobuf::decode(body),
        _ => Err(Status::unsupported_media_type()),
    }
}

/// JSON.
///
/// # Errors
/// 400 for what cannot be read.
pub fn read_json(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("the object provided is unrecognized: {error}")))
}

/// YAML, of which JSON is a part.
///
/// # Errors
/// 400 for what cannot be read.
pub fn read_yaml(body: &[u8]) -> Result<Value, Status> {
    let text = String::from_utf8_lossy(body);
    serde_saphyr::from_str(&text)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> Result<Form, u16> {
        let headers = [(header::ACCEPT, text.parse().unwrap())].into_iter().collect();
        form(&headers).map_err(|status| status.code)
    }

    #[test]
    fn the_order_of_the_client_decides() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl), Ok(Form::Table));
        let counts = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accept(counts), Ok(Form::Metadata));
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf,application/json"),
            Ok(Form::Json)
        );
        assert_eq!(accept("*/*"), Ok(Form::Json));
        assert_eq!(
            accept("application/json;as=APIGroupDiscoveryList;g=apidiscovery.k8s.io;v=v2"),
            Err(406)
        );
        assert_eq!(accept("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(form(&HeaderMap::new()), Ok(Form::Json));
    }

    #[test]
    fn bodies() {
        assert_eq!(decode("application/yaml", b"a: {b: 1}").unwrap()["a"]["b"], 1);
        assert_eq!(decode("application/json", b"{").unwrap_err().code, 400);
        assert_eq!(
            decode("application/vnd.kubernetes.protobuf", b"k8s")
                .unwrap_err()
                .code,
            400
        );
        assert_eq!(decode("text/csv", b"a,b").unwrap_err().code, 415);
    }

    #[test]
    fn only_large_bodies_are_compressed() {
        let headers: HeaderMap = [(header::ACCEPT_ENCODING, "gzip".parse().unwrap())]
            .into_iter()
            .collect();
        let large = Bytes::from(vec![b'a'; GZIP_FROM]);
        assert!(gzip(&headers, &large).unwrap().len() < GZIP_FROM / 10);
        assert!(gzip(&headers, &Bytes::from_static(b"small")).is_none());
        assert!(gzip(&HeaderMap::new(), &large).is_none());
    }
}
