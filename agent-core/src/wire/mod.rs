//! The messages of the control plane: tolerant readers, strict writers. No sockets and no clocks in here.
//!
//! Fields and spellings are those of generation G3 (HTTP); what other generations and documents call the same
//! thing is read too, because several control planes are in use.

pub(crate) mod heartbeat;
pub(crate) mod limits;
pub(crate) mod register;
pub(crate) mod tunnel;

use serde_json::Value;

/// How much of an answer is ever read; the largest real one is a few kilobytes.
pub(crate) const MAX_BODY: usize = 256 * 1024;

/// The first of the named members that is a text with something in it, or a number.
fn text(value: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| match value.get(name)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    })
}

/// What a peer says is wrong: its own words where there are some, in one short line without control characters.
pub(crate) fn complaint(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let said = parsed.as_ref().and_then(|value| {
        text(value, &["error", "message", "detail", "reason"])
            .or_else(|| text(value.get("error")?, &["message", "detail"]))
    });
    one_line(&said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned()))
}

/// Text of a peer for a log line: a peer must not forge lines, nor fill the log.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let words = clean.collect::<String>();
    let mut line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

/// Whether a body is neither empty nor JSON. One that was too long to be read whole is taken by its beginning.
pub(crate) fn is_page(body: &[u8]) -> bool {
    let text = body.trim_ascii();
    if body.len() >= MAX_BODY {
        return !matches!(text.first(), Some(b'{' | b'['));
    }
    !text.is_empty() && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_err()
}

/// Whether the control plane says that it does not know this cluster.
pub(crate) fn says_unknown(complaint: &str) -> bool {
    let text = complaint.to_lowercase();
    [
        "not registered",
        "cluster not found",
        "agent not found",
        "unknown cluster",
    ]
    .iter()
    .any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_body_and_json_are_no_page() {
        for body in ["", " \r\n", "{}", "null", "\"ok\"", "{\"status\":\"ok\"}\n"] {
            assert!(!is_page(body.as_bytes()), "{body:?}");
        }
        for body in ["<html><body>Please log in</body></html>", "OK", "{", "\u{feff}{}"] {
            assert!(is_page(body.as_bytes()), "{body:?}");
        }
        let long = format!("[{}", "1,".repeat(MAX_BODY / 2));
        assert!(!is_page(&long.as_bytes()[..MAX_BODY]));
        assert!(is_page("<p>".repeat(MAX_BODY).as_bytes()));
    }

    #[test]
    fn a_complaint_is_one_short_line() {
        assert_eq!(
            complaint(br#"{"error":"cluster not registered"}"#),
            "cluster not registered"
        );
        assert_eq!(complaint(br#"{"error":{"message":"bad\r\ntoken"}}"#), "bad token");
        assert_eq!(complaint(b"<html>\n <b>Bad</b>"), "<html> <b>Bad</b>");
        assert_eq!(complaint(&[0xff, 0xfe]), "\u{fffd}\u{fffd}");
        assert!(complaint("x".repeat(5000).as_bytes()).chars().count() <= 301);
        assert!(says_unknown("Cluster Not Registered"));
        assert!(!says_unknown("internal error"));
    }
}
