//! What the fuzz targets and the replay of their corpora run: one function for each parser that reads what strangers
//! send. Each asserts what must hold for any input.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, uri::PathAndQuery};

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
            .all(|segment| !matches!(&*path::segment_text(segment), "." | ".."))
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

/// Headers of a caller, one `name: value` a line. Nothing that names an identity, and nothing that concerns one
/// connection, goes upstream; cleaning twice is cleaning once.
pub fn headers(data: &[u8]) {
    let mut dirty = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            dirty.try_append(name, value).ok();
        }
    }
    let clean = headers::clean_request(&dirty);
    for (name, value) in &clean {
        let spelling = name.as_str().replace('_', "-");
        for prefix in [
            "impersonate",
            "x-remote-",
            "x-forwarded-",
            "x-pipeops-",
            "pipeops-",
        ] {
            assert!(!spelling.starts_with(prefix), "{name}");
        }
        for gone in [
            "authorization",
            "proxy-authorization",
            "connection",
            "transfer-encoding",
            "upgrade",
            "host",
            "cookie",
            "content-length",
            "te",
        ] {
            assert!(spelling != gone, "{name}");
        }
        assert!(dirty.get_all(name).iter().any(|sent| sent == value));
    }
    assert_eq!(headers::clean_request(&clean), clean);
    headers::wants_upgrade(&dirty);
    if let Some(token) = headers::bearer(&dirty)
        && let Some(value) = headers::bearer_value(token)
    {
        assert!(value.is_sensitive());
    }
    let mut answer = dirty.clone();
    headers::clean_response(&mut answer);
    assert!(!answer.contains_key("connection") && !answer.contains_key("transfer-encoding"));
}

/// The policy's matcher: `METHOD path` in the first line, `user group …` in the second, the policy below. Whatever the
/// policy says, the system's names are refused, a read-only policy lets nothing be written, and what no rule speaks of
/// is denied.
pub fn matcher(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.splitn(3, '\n');
    let (Some(call), Some(who), Some(rules)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let Some((method, given)) = call.split_once(' ') else {
        return;
    };
    let (given, query) = given
        .split_once('?')
        .map_or((given, None), |(path, query)| (path, Some(query)));
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), path::join(given, query)) else {
        return;
    };
    let Ok(policy) = file::parse(rules, "fuzz") else {
        return;
    };
    let mut names = who.split(' ').map(str::to_owned);
    let (user, groups) = (names.next().unwrap_or_default(), names.collect::<Vec<_>>());
    let subject = Subject {
        user: &user,
        groups: &groups,
    };
    for upgrade in [false, true] {
        let target = Target::read(&method, &uri, upgrade);
        let decision = policy.decide(&subject, &target);
        assert_eq!(decision, policy.decide(&subject, &target));
        assert!(!decision.reason.is_empty() && !decision.rule.is_empty());
        let system = |name: &String| name.trim_start().to_ascii_lowercase().starts_with("system:");
        if system(&user)
            || groups
                .iter()
                .any(|group| system(group) && group != "system:authenticated")
        {
            assert!(!decision.allowed && &*decision.rule == "system");
        }
        if policy.read_only && decision.allowed {
            assert!(target.reads() || target.resource.starts_with("selfsubject"));
        }
        if policy.is_empty() {
            assert!(!decision.allowed);
        }
        if matches!(target.subresource.as_str(), "exec" | "attach" | "portforward") {
            assert!(
                !matches!(target.verb, "get" | "list" | "watch") || target.watch,
                "{}",
                target.verb
            );
        }
    }
}

/// One run of a target by its name; false when there is none by that name.
pub fn run(target: &str, data: &[u8]) -> bool {
    let known: Option<fn(&[u8])> = match target {
        "frames" => Some(frames),
        "paths" => Some(paths),
        "events" => Some(events),
        "policy" => Some(policy),
        "headers" => Some(headers),
        "matcher" => Some(matcher),
        _ => None,
    };
    known.is_some_and(|known| {
        known(data);
        true
    })
}
