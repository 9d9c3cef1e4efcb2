//! Which paths and queries are let through: those that mean the same to us and to the apiserver.
//!
//! The policy decides on the path it reads; the apiserver acts on the path *it* reads. Whatever two parsers could
//! read differently (dot segments, double slashes, encoded slashes, a second percent-decoding) is refused.

use std::{borrow::Cow, fmt::Write as _};

use http::uri::PathAndQuery;

/// Longest path; Kubernetes' own names add up to far less.
const MAX_PATH: usize = 8 * 1024;
/// Longest query; selectors may be long.
const MAX_QUERY: usize = 32 * 1024;

/// Why a path or query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("the path must begin with a slash and name no host")]
    NotAbsolute,
    /// It is longer than any Kubernetes path.
    #[error("the path or its query is too long")]
    TooLong,
    /// It has an empty or a dot segment.
    #[error("the path has an empty, `.` or `..` segment")]
    Segment,
    /// It has a character that is not allowed, encoded or not.
    #[error("the path has a character that is not allowed")]
    Character,
    /// The query has a character that is not allowed.
    #[error("the query has a character that is not allowed")]
    Query,
    /// A percent sign is not followed by two hexadecimal digits.
    #[error("a percent sign is not followed by two hexadecimal digits")]
    Encoding,
}

/// Checks a path without its query.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_path(path: &str) -> Result<(), PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(PathError::NotAbsolute);
    };
    if !path.bytes().all(allowed_in_path) {
        return Err(PathError::Character);
    }
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() {
            // One slash at the end is what people type; Kubernetes trims it.
            if segments.peek().is_none() {
                break;
            }
            return Err(PathError::Segment);
        }
        let decoded = decode(segment)?;
        if matches!(decoded.as_slice(), b"." | b"..") {
            return Err(PathError::Segment);
        }
        let text = std::str::from_utf8(&decoded).map_err(|_| PathError::Character)?;
        if text
            .chars()
            .any(|c| c.is_control() || matches!(c, '/' | '\\' | '%' | '@' | '?' | '#'))
        {
            return Err(PathError::Character);
        }
    }
    Ok(())
}

/// Checks a query without its question mark. A raw `;` is refused because Go drops such pairs and we would not.
///
/// # Errors
/// What is wrong with it.
pub fn check_query(query: &str) -> Result<(), PathError> {
    if query.len() > MAX_QUERY {
        return Err(PathError::TooLong);
    }
    if !query
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'#' | b';' | b'"' | b'<' | b'>'))
    {
        return Err(PathError::Query);
    }
    decode(query).map(drop)
}

/// Checks both and joins them.
///
/// # Errors
/// See [`check_path`] and [`check_query`].
pub fn join(path: &str, query: Option<&str>) -> Result<PathAndQuery, PathError> {
    check_path(path)?;
    let query = query.unwrap_or_default();
    check_query(query)?;
    let mut joined = String::with_capacity(path.len() + query.len() + 1);
    joined.push_str(path);
    if !query.is_empty() {
        joined.push('?');
        joined.push_str(query);
    }
    PathAndQuery::try_from(joined).map_err(|_| PathError::Character)
}

/// Percent-decodes one path segment that was checked before.
pub fn segment_text(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    decode(segment)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map_or(Cow::Borrowed(segment), Cow::Owned)
}

/// Writes pairs as a query in the form that Go and we read alike.
pub fn encode_query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        encode_into(&mut out, key);
        out.push('=');
        encode_into(&mut out, value);
    }
    out
}

fn encode_into(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").ok();
        }
    }
}

fn allowed_in_path(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(
            byte,
            b'\\' | b'@' | b'#' | b'?' | b'<' | b'>' | b'"' | b'`' | b'{' | b'}' | b'^' | b'|' | b';'
        )
}

fn decode(text: &str) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or(PathError::Encoding)
        };
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).map_err(|_| PathError::Encoding)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_pass_unchanged() {
        for path in [
            "/api/v1/pods",
            "/api/v1/pods/",
            "/apis/apps/v1/namespaces/a-b/deployments/x.y",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "/version",
            "/",
        ] {
            assert_eq!(check_path(path), Ok(()), "{path}");
        }
        assert_eq!(
            join("/api/v1/pods", Some("a=b%2Cc&d")).unwrap().as_str(),
            "/api/v1/pods?a=b%2Cc&d"
        );
    }

    #[test]
    fn paths_that_could_be_read_in_two_ways_are_refused() {
        use PathError::{Character, Encoding, NotAbsolute, Segment};
        for (path, expected) in [
            ("", NotAbsolute),
            ("api/v1", NotAbsolute),
            ("https://evil.example/api", NotAbsolute),
            ("/api/../secrets", Segment),
            ("/api/./v1", Segment),
            ("/api/%2e%2E/x", Segment),
            ("/api//v1", Segment),
            ("//evil.example/api", Segment),
            ("/api/v1/x%2fy", Character),
            ("/api/v1/x%252e", Character),
            ("/api@evil.example", Character),
            ("/api/%40evil", Character),
            ("/api/v1\r\nHost: x", Character),
            ("/api/%0d%0aHost", Character),
            ("/api/%00", Character),
            ("/api\\v1", Character),
            ("/api/v1#x", Character),
            ("/api/%zz", Encoding),
            ("/api/%4", Encoding),
            ("/api/\u{fc}", Character),
        ] {
            assert_eq!(check_path(path), Err(expected), "{path:?}");
        }
        assert_eq!(check_query("a=b c"), Err(PathError::Query));
        assert_eq!(check_query("a=b;c=d"), Err(PathError::Query));
        assert_eq!(check_query("a=\r\n"), Err(PathError::Query));
        assert_eq!(check_query("a=%q"), Err(Encoding));
        assert_eq!(check_path(&"/a".repeat(MAX_PATH)), Err(PathError::TooLong));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_passes_stays_below_the_root(path in "[ -~]{0,40}") {
            if check_path(&path).is_ok() {
                prop_assert!(path.starts_with('/'));
                for segment in path.split('/') {
                    let text = segment_text(segment);
                    prop_assert!(text != ".." && text != "." && !text.contains('/') && !text.contains('%'));
                }
            }
        }

        #[test]
        fn a_written_query_is_read_back(pairs in prop::collection::vec((".{0,8}", ".{0,12}"), 0..5)) {
            let text = encode_query(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            prop_assert!(check_query(&text).is_ok());
            let back: Vec<_> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
            let expected: Vec<_> = pairs.into_iter().filter(|(k, v)| !(k.is_empty() && v.is_empty())).collect();
            let back: Vec<_> = back.into_iter().filter(|(k, v)| !(k.is_empty() && v.is_empty())).collect();
            prop_assert_eq!(back, expected);
        }
    }
}
