//! What the fuzz targets and the replay of their corpora run: one function for each parser that reads what strangers
//! send. Each asserts what must hold for any input.

use bytes::Bytes;
use http::{Method, uri::PathAndQuery};

use crate::{
    events::{Event, Framing, Splitter},
    frames::codec::{self, Inbound},
    headers, path,
    policy::{Subject, file},
    target::Target,
};

/// A frame from a caller.
pub fn frames(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(Inbound::Call(call)) = codec::read(text) {
        assert!(!call.id.is_empty() && call.uri.path().starts_with('/'));
        let clean = headers::clean_request(&call.headers);
        assert!(
            clean
                .keys()
                .all(|name| !name.as_str().replace('_', "-").starts_with("impersonate"))
        );
        Target::read(&call.method, &call.uri, headers::wants_upgrade(&call.headers));
    }
}

/// Path and query of an HTTP request.
pub fn paths(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (given, query) = text
        .split_once('?')
        .map_or((text, None), |(path, query)| (path, Some(query)));
    let Ok(uri) = path::join(given, query) else { return };
    assert!(
        uri.path()
            .split('/')
            .all(|segment| !matches!(path::segment_text(segment).as_str(), "." | ".."))
    );
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let target = Target::read(&method, &uri, false);
        assert!(!target.verb.is_empty());
        assert!(!target.watch || method == Method::GET);
        target.route();
    }
}

/// A watch stream, cut into pieces of a size that the first byte gives. However it is cut, the events are the same.
pub fn events(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let framing = if first & 1 == 0 {
        Framing::JsonLines
    } else {
        Framing::LengthPrefixed
    };
    let split = |size: usize| {
        let (mut splitter, mut found) = (Splitter::new(framing), Vec::new());
        for chunk in data.chunks(size) {
            splitter.feed(Bytes::copy_from_slice(chunk));
            loop {
                match splitter.take() {
                    Ok(Some(event)) => found.push(event),
                    Ok(None) => break,
                    Err(_) => return None,
                }
            }
        }
        Some(found)
    };
    let (pieces, whole) = (split(usize::from(first >> 1) + 1), split(data.len().max(1)));
    assert_eq!(pieces, whole);
    for event in whole.into_iter().flatten() {
        Event::read_json(&event);
        Event::read_protobuf(&event);
    }
}

/// A policy file; what is in force after it refuses the system's names in any case.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(policy) = file::parse(text, "fuzz") else {
        return;
    };
    let target = Target::read(
        &Method::POST,
        &PathAndQuery::from_static("/api/v1/namespaces/a/pods"),
        false,
    );
    assert!(
        !policy
            .decide(
                &Subject {
                    user: "system:admin",
                    groups: &[]
                },
                &target
            )
            .allowed
    );
    let decision = policy.decide(
        &Subject {
            user: "somebody",
            groups: &[],
        },
        &target,
    );
    assert!(!(policy.read_only && decision.allowed));
}

/// One run of a target by its name; false when there is none by that name.
pub fn run(target: &str, data: &[u8]) -> bool {
    let known: Option<fn(&[u8])> = match target {
        "frames" => Some(frames),
        "paths" => Some(paths),
        "events" => Some(events),
        "policy" => Some(policy),
        _ => None,
    };
    known.is_some_and(|known| {
        known(data);
        true
    })
}
