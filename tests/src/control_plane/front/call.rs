//! An HTTP request becomes a call. Pure.

use bytes::Bytes;
use http::{HeaderName, header, request::Parts};

use crate::control_plane::frames::Call;

/// How the answer of a call comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At once.
    Plain,
    /// Piece by piece, and lost with the link.
    Follow,
    /// Event by event, and opened again when the link is lost.
    Watch,
}

/// Where a path of the front leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) cluster: String,
    pub(super) path: String,
}

impl Target {
    /// Splits `/clusters/<id>/<path>`; the path keeps its escapes.
    pub(super) fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/clusters/")?;
        let (cluster, path) = rest.split_once('/').unwrap_or((rest, ""));
        (!cluster.is_empty()).then(|| Self {
            cluster: cluster.to_owned(),
            path: format!("/{path}"),
        })
    }
}

/// The call for a request whose body was read.
pub(super) fn from_http(parts: &Parts, path: &str, body: Bytes) -> (Call, Kind) {
    let mut call = Call::new(parts.method.as_str(), path).body(body);
    for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        call = call.query(&name, &value);
    }
    let kind = kind(&call);
    for (name, value) in &parts.headers {
        let Ok(value) = value.to_str() else { continue };
        if name == header::ACCEPT && kind == Kind::Watch {
            call = call.header(name.as_str(), &readable(value));
        } else if !dropped(name) {
            call = call.header(name.as_str(), value);
        }
    }
    (call, kind)
}

fn kind(call: &Call) -> Kind {
    if call.method != "GET" {
        return Kind::Plain;
    }
    let on = |name: &str| {
        let value = call.query.get(name).and_then(|values| values.first());
        value.is_some_and(|value| matches!(value.as_str(), "true" | "1" | "True" | "TRUE" | "t" | "T"))
    };
    let old_watch = match call
        .path
        .trim_start_matches('/')
        .split('/')
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["api", _, third, ..] => *third == "watch",
        ["apis", _, _, fourth, ..] => *fourth == "watch",
        _ => false,
    };
    if on("watch") || old_watch {
        Kind::Watch
    } else if call.path.ends_with("/log") {
        // A log that is not followed streams too: its size is not known before its end.
        Kind::Follow
    } else {
        Kind::Plain
    }
}

/// Takes out the encodings whose events cannot be told apart here, unless nothing else is left.
fn readable(accept: &str) -> String {
    let kept: Vec<_> = accept.split(',').filter(|kind| !kind.contains("cbor")).collect();
    if kept.is_empty() {
        accept.to_owned()
    } else {
        kept.join(",")
    }
}

/// Headers that end here: the connection's, the front's own credential, and what frames say themselves.
fn dropped(name: &HeaderName) -> bool {
    let own = [
        header::AUTHORIZATION,
        header::HOST,
        header::CONTENT_LENGTH,
        header::ACCEPT_ENCODING,
        header::EXPECT,
    ];
    hop_by_hop(name) || own.contains(name)
}

/// Headers of one connection only.
pub(super) fn hop_by_hop(name: &HeaderName) -> bool {
    let known = [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ];
    known.contains(name) || name == "keep-alive" || name == "proxy-connection"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, uri: &str, headers: &[(&str, &str)]) -> (Call, Kind) {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let target = Target::of(parts.uri.path()).unwrap();
        from_http(&parts, &target.path, Bytes::new())
    }

    #[test]
    fn the_path_behind_the_cluster_is_kubernetes_own() {
        let target = |path| Target::of(path).map(|target| (target.cluster, target.path));
        assert_eq!(
            target("/clusters/c/api/v1/x%3Ay"),
            Some(("c".to_owned(), "/api/v1/x%3Ay".to_owned()))
        );
        assert_eq!(target("/clusters/c"), Some(("c".to_owned(), "/".to_owned())));
        assert_eq!((target("/clusters//api"), target("/api")), (None, None));
    }

    #[test]
    fn only_a_reading_watch_is_a_watch() {
        let kinds = [
            ("GET", "/clusters/c/api/v1/pods?watch=true", Kind::Watch),
            ("GET", "/clusters/c/api/v1/pods?watch=1&limit=5", Kind::Watch),
            ("GET", "/clusters/c/api/v1/watch/pods", Kind::Watch),
            ("GET", "/clusters/c/apis/apps/v1/watch/deployments", Kind::Watch),
            ("GET", "/clusters/c/api/v1/pods?watch=false", Kind::Plain),
            ("GET", "/clusters/c/api/v1/namespaces/watch", Kind::Plain),
            (
                "GET",
                "/clusters/c/api/v1/namespaces/n/pods/p/log?follow=true",
                Kind::Follow,
            ),
            ("DELETE", "/clusters/c/api/v1/pods?watch=true", Kind::Plain),
        ];
        for (method, uri, want) in kinds {
            assert_eq!(call(method, uri, &[]).1, want, "{method} {uri}");
        }
    }

    #[test]
    fn the_fronts_token_stays_here_and_the_trace_goes_on() {
        let headers = [
            ("authorization", "Bearer front"),
            ("connection", "keep-alive"),
            ("accept-encoding", "gzip"),
            ("traceparent", "00-1-2-01"),
            ("content-type", "application/merge-patch+json"),
        ];
        let (call, _) = call("PATCH", "/clusters/c/api/v1/pods/p?fieldManager=k%20x", &headers);
        let names: Vec<_> = call.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["traceparent", "content-type"]);
        assert_eq!(call.query["fieldManager"], ["k x"]);
    }

    #[test]
    fn a_watch_is_asked_for_in_what_can_be_read_when_the_caller_takes_it() {
        let accept = |value: &str| {
            let (call, _) = call("GET", "/clusters/c/api/v1/pods?watch=1", &[("accept", value)]);
            call.headers[0].1.clone()
        };
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(protobuf), protobuf);
        assert_eq!(accept("application/cbor,application/json"), "application/json");
        assert_eq!(accept("application/cbor"), "application/cbor");
    }
}
