//! What may cross between caller and apiserver.
//!
//! Cleaning comes first and builds a new map; ours are added to the result afterwards. So nothing a caller names
//! in `Connection` can take away a header of ours, and nothing a caller spells oddly can pass for one.

use std::borrow::Cow;

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Hop-by-hop (RFC 9110 section 7.6.1) and what only concerns one connection.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
];

/// Names that tell the apiserver who is asking, or pretend where a request comes from; compared after `_` → `-`.
const IDENTITY_PREFIXES: [&str; 6] = [
    "impersonate",
    "x-remote-",
    "x-forwarded-",
    "x-pipeops-",
    "pipeops-",
    "x-ssl-",
];

/// Names that are ours to set, or none of the apiserver's business.
const OURS: [&str; 7] = [
    "authorization",
    "host",
    "content-length",
    "cookie",
    "forwarded",
    "x-real-ip",
    "x-original-uri",
];

/// The caller's headers as far as they may go upstream.
pub fn clean_request(headers: &HeaderMap) -> HeaderMap {
    let named = named_in_connection(headers);
    let mut out = HeaderMap::with_capacity(headers.len() + 3);
    for (name, value) in headers {
        if !(is_ours(name.as_str()) || named.contains(name)) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// Whether a header of this name stays here, however its words are joined.
fn is_ours(name: &str) -> bool {
    let spelling = if name.contains('_') {
        Cow::Owned(name.replace('_', "-"))
    } else {
        Cow::Borrowed(name)
    };
    HOP_BY_HOP.contains(&&*spelling)
        || OURS.contains(&&*spelling)
        || IDENTITY_PREFIXES
            .iter()
            .any(|prefix| spelling.starts_with(prefix))
}

/// The apiserver's headers as far as they may go back.
pub fn clean_response(headers: &mut HeaderMap) {
    for name in named_in_connection(headers) {
        headers.remove(&name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether the caller asks for a two-way connection. An offer to go on in HTTP/2 (`h2c`) is none: it may be left
/// unanswered, and clients make it without being asked.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    list(headers, &header::UPGRADE).any(|protocol| !protocol.eq_ignore_ascii_case("h2c"))
}

/// Protocols of two-way connections that are carried, as they are spelled towards the apiserver.
const PROTOCOLS: [&str; 2] = ["websocket", "SPDY/3.1"];
/// A subprotocol in which browsers hide a bearer token from the apiserver's point of view: a credential.
const TOKEN_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The protocol that the caller wants to go on in, if it is carried; compared without case.
pub fn upgrade_protocol(headers: &HeaderMap) -> Option<&'static str> {
    known_protocol(list(headers, &header::UPGRADE))
}

/// The same for the `:protocol` of an extended CONNECT.
pub fn connect_protocol(protocol: &str) -> Option<&'static str> {
    known_protocol(std::iter::once(protocol))
}

fn known_protocol<'a>(mut asked: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    asked.find_map(|asked| {
        PROTOCOLS
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(asked))
    })
}

/// Cleaned headers made into those of an upgrade to `protocol`: the handshake with the apiserver is our own, what
/// the two ends negotiate stays. No credential hides in a subprotocol.
pub fn clean_upgrade(mut clean: HeaderMap, protocol: &'static str) -> HeaderMap {
    let offered: Vec<&str> = list(&clean, &header::SEC_WEBSOCKET_PROTOCOL)
        .filter(|name| !name.starts_with(TOKEN_SUBPROTOCOL))
        .collect();
    // One line: Go's servers read the first one only.
    let offered = HeaderValue::from_str(&offered.join(", ")).ok();
    let own: Vec<HeaderName> = clean
        .keys()
        .filter(|name| name.as_str().starts_with("sec-websocket-"))
        .cloned()
        .collect();
    for name in own {
        clean.remove(&name);
    }
    clean.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    clean.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    if protocol == PROTOCOLS[0] {
        let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
        if let Ok(key) = HeaderValue::from_str(&key) {
            clean.insert(header::SEC_WEBSOCKET_KEY, key);
        }
        clean.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        if let Some(offered) = offered.filter(|offered| !offered.is_empty()) {
            clean.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
        }
    }
    clean
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// `Bearer <token>`, marked so that it is printed nowhere.
pub fn bearer_value(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `content-type` as `Content-Type`: the spelling that seed clients look up in a plain map.
pub fn title_case(name: &str) -> String {
    let mut start = true;
    name.chars()
        .map(|c| {
            let out = if start { c.to_ascii_uppercase() } else { c };
            start = c == '-';
            out
        })
        .collect()
}

fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    list(headers, &header::CONNECTION)
        .filter_map(|token| token.parse().ok())
        .collect()
}

fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    name.parse::<HeaderName>().unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn identity_is_dropped_in_every_spelling() {
        let dirty = map(&[
            ("Impersonate-User", "admin"),
            ("impersonate_user", "admin"),
            ("IMPERSONATE_Group", "system:masters"),
            ("Impersonate-Extra-Scopes", "x"),
            ("X-Remote-User", "admin"),
            ("x_remote_group", "system:masters"),
            ("X_Remote-Extra-a", "x"),
            ("Authorization", "Bearer stolen"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("Pipeops-User", "alice"),
            ("X-Pipeops-Token", "secret"),
            ("Proxy_Authorization", "x"),
            ("Host", "evil"),
            ("Cookie", "a=b"),
            ("Accept", "application/json"),
            ("traceparent", "00-0-0-00"),
        ]);
        assert_eq!(
            clean_request(&dirty),
            map(&[("Accept", "application/json"), ("traceparent", "00-0-0-00")])
        );
    }

    #[test]
    fn what_connection_names_is_dropped_before_ours_are_added() {
        let mut clean = clean_request(&map(&[
            ("Connection", "keep-alive, Authorization, x-secret"),
            ("Connection", "accept"),
            ("X-Secret", "1"),
            ("Accept", "*/*"),
            ("Transfer-Encoding", "chunked"),
        ]));
        assert!(clean.is_empty());
        clean.insert(header::AUTHORIZATION, bearer_value("ours").unwrap());
        assert_eq!(clean["authorization"], "Bearer ours");
        assert!(
            !format!("{clean:?}").contains("ours"),
            "a credential is printed nowhere"
        );
    }

    #[test]
    fn answers_lose_what_concerns_one_connection() {
        let mut headers = map(&[
            ("Connection", "x-hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "5"),
            ("Audit-Id", "a"),
        ]);
        clean_response(&mut headers);
        assert_eq!(headers, map(&[("Audit-Id", "a")]));
    }

    #[test]
    fn small_readers() {
        for (upgrade, expected) in [
            ("websocket", true),
            ("SPDY/3.1", true),
            ("h2c", false),
            ("h2c, websocket", true),
        ] {
            assert_eq!(
                wants_upgrade(&map(&[("Connection", "Upgrade"), ("Upgrade", upgrade)])),
                expected,
                "{upgrade}"
            );
        }
        assert!(!wants_upgrade(&map(&[("Connection", "keep-alive")])));
        assert_eq!(bearer(&map(&[("Authorization", "bearer  x ")])), Some("x"));
        assert_eq!(bearer(&map(&[("Authorization", "Basic x")])), None);
        assert_eq!(title_case("content-type"), "Content-Type");
    }

    #[test]
    fn an_upgrade_has_a_handshake_of_its_own_and_no_hidden_credential() {
        let dirty = map(&[
            ("Connection", "Upgrade"),
            ("Upgrade", "WebSocket"),
            ("Sec-WebSocket-Key", "theirs"),
            ("Sec-WebSocket-Version", "8"),
            ("Sec-WebSocket-Extensions", "permessage-deflate"),
            (
                "Sec-WebSocket-Protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0",
            ),
            ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
            ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
        ]);
        let protocol = upgrade_protocol(&dirty).unwrap();
        let clean = clean_upgrade(clean_request(&dirty), protocol);
        let protocols: Vec<_> = clean.get_all("sec-websocket-protocol").iter().collect();
        assert_eq!(protocols, ["v5.channel.k8s.io, v4.channel.k8s.io"]);
        assert_eq!(clean["upgrade"], "websocket");
        assert_eq!(clean["sec-websocket-version"], "13");
        assert_ne!(clean["sec-websocket-key"], "theirs");
        assert!(!clean.contains_key("sec-websocket-extensions"));
        let spdy = clean_upgrade(clean_request(&dirty), connect_protocol("spdy/3.1").unwrap());
        assert_eq!(spdy["upgrade"], "SPDY/3.1");
        assert_eq!(spdy["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(
            spdy.keys()
                .all(|name| !name.as_str().starts_with("sec-websocket"))
        );
        assert_eq!(connect_protocol("h2c"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_names_an_identity_survives(
            prefix in "(impersonate|IMPERSONATE|Impersonate|x[-_]remote|X[-_]REMOTE|Authorization|[xX][-_]forwarded)",
            join in "[-_]",
            rest in "[a-zA-Z_-]{0,8}",
            connection in "[a-z, -]{0,20}",
        ) {
            let name: HeaderName = format!("{prefix}{join}{rest}").parse().unwrap();
            let mut dirty = map(&[("accept", "x")]);
            dirty.insert(name, HeaderValue::from_static("v"));
            dirty.insert(header::CONNECTION, HeaderValue::from_str(&connection).unwrap());
            for left in clean_request(&dirty).keys() {
                let left = left.as_str().replace('_', "-");
                prop_assert!(!left.starts_with("impersonate") && !left.starts_with("x-remote"));
                prop_assert!(!left.starts_with("x-forwarded") && left != "authorization");
            }
        }
    }
}
