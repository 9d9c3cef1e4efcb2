//! Kubernetes `Status` objects: how every refusal and failure is told.

use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// What went wrong, as `kubectl` and client libraries expect to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub code: StatusCode,
    /// One sentence for the person at the other end.
    pub message: String,
    /// When to come back, seconds.
    pub retry_after: Option<u64>,
    /// A short word for metrics and audit.
    pub cause: &'static str,
}

impl Failure {
    /// A failure without advice when to come back.
    pub fn new(code: StatusCode, cause: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after: None,
            cause,
        }
    }

    /// The same with advice when to come back.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The `Status` object as JSON.
    pub fn json(&self) -> Vec<u8> {
        let status = Status {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &self.message,
            reason: reason(self.code),
            details: self
                .retry_after
                .map(|retry_after_seconds| Details { retry_after_seconds }),
            code: self.code.as_u16(),
        };
        serde_json::to_vec(&status).unwrap_or_default()
    }

    /// The `Status` object as the last event of a watch.
    pub fn error_event(&self) -> Vec<u8> {
        let mut event = br#"{"type":"ERROR","object":"#.to_vec();
        event.extend(self.json());
        event.extend_from_slice(b"}\n");
        event
    }

    /// The same as the last event of a watch in protobuf: behind its length a `WatchEvent`, and in it the `Status` in
    /// the envelope of every object (`k8s.io/apimachinery/pkg/runtime/generated.proto`, `Unknown`).
    pub fn error_frame(&self) -> Vec<u8> {
        let mut status = Vec::new();
        wire::bytes(&mut status, 2, b"Failure");
        wire::bytes(&mut status, 3, self.message.as_bytes());
        wire::bytes(&mut status, 4, reason(self.code).as_bytes());
        wire::number(&mut status, 6, self.code.as_u16().into());
        let (mut kind, mut envelope) = (Vec::new(), b"k8s\0".to_vec());
        wire::bytes(&mut kind, 1, b"v1");
        wire::bytes(&mut kind, 2, b"Status");
        wire::bytes(&mut envelope, 1, &kind);
        wire::bytes(&mut envelope, 2, &status);
        let (mut object, mut event) = (Vec::new(), Vec::new());
        wire::bytes(&mut object, 1, &envelope);
        wire::bytes(&mut event, 1, b"ERROR");
        wire::bytes(&mut event, 2, &object);
        let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
        [length.to_be_bytes().as_slice(), &event].concat()
    }

    /// Status line and headers of the answer; the body is [`Failure::json`].
    pub fn response<B>(&self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u64,
}

/// Kubernetes' word for a status code (`metav1.StatusReason`).
fn reason(code: StatusCode) -> &'static str {
    match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Expired",
        413 => "RequestEntityTooLarge",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        500 => "InternalError",
        _ => "",
    }
}

/// Just enough of the protobuf wire format to write a `Status`.
mod wire {
    pub(super) fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
        varint(out, field << 3 | 2);
        varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }

    pub(super) fn number(out: &mut Vec<u8>, field: u64, value: u64) {
        varint(out, field << 3);
        varint(out, value);
    }

    fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_a_kubernetes_status() {
        let failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, "limit", "slow down").retry_after(3);
        assert_eq!(
            String::from_utf8(failure.json()).unwrap(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"slow down","reason":"TooManyRequests","details":{"retryAfterSeconds":3},"code":429}"#
        );
        assert_eq!(failure.response(()).headers()["retry-after"], "3");
    }

    #[test]
    fn the_last_event_of_a_watch_is_one_line() {
        let event = Failure::new(StatusCode::GONE, "expired", "too old\n").error_event();
        assert_eq!(event.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(event.starts_with(br#"{"type":"ERROR","object":{"kind":"Status""#));
    }

    #[test]
    fn in_protobuf_it_reads_as_an_error_without_a_position() {
        let frame = Failure::new(StatusCode::GONE, "expired", "too old ".repeat(40)).error_frame();
        let (length, rest) = frame.split_at(4);
        assert_eq!(length, u32::try_from(rest.len()).unwrap().to_be_bytes());
        let event = crate::events::Event::read_protobuf(&frame);
        assert_eq!((event.kind, event.version), (crate::events::Kind::Error, None));
        // Field 6, a number: 410 in two bytes.
        assert!(frame.ends_with(&[0x30, 0x9a, 0x03]));
    }
}
