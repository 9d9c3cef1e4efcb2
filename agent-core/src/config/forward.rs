//! What the owner writes about one forward beside its name and target.

use std::time::Duration;

use serde_json::{Map, Value};

use super::read::parse_duration;

/// The keys of an entry of `tunnel.forwards` that are read here.
pub(super) const KEYS: [&str; 4] = ["max_connections", "bandwidth_in", "bandwidth_out", "idle_timeout"];

/// What one forward may take; zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardLimits {
    /// Connections at a time.
    pub max_connections: u32,
    /// Bytes a second from the server to the target, all connections together.
    pub bandwidth_in: u64,
    /// Bytes a second from the target to the server.
    pub bandwidth_out: u64,
    /// A connection without a byte for so long is closed.
    pub idle_timeout: Duration,
}

impl ForwardLimits {
    /// Takes the limits out of an entry.
    ///
    /// # Errors
    /// The key that cannot be read, and why.
    pub(super) fn take(map: &mut Map<String, Value>) -> Result<Self, String> {
        let mut limits = Self::default();
        if let Some(value) = written(map, "max_connections") {
            let count = value.parse().ok();
            limits.max_connections = count.ok_or("max_connections is no number of connections")?;
        }
        for (name, field) in [
            ("bandwidth_in", &mut limits.bandwidth_in),
            ("bandwidth_out", &mut limits.bandwidth_out),
        ] {
            if let Some(value) = written(map, name) {
                let bytes = bytes(&value);
                *field = bytes.ok_or_else(|| {
                    format!("{name} is no number of bytes a second, such as 500000, 512KiB or 10MiB")
                })?;
            }
        }
        if let Some(value) = written(map, "idle_timeout") {
            let duration = parse_duration(&value);
            limits.idle_timeout = duration.ok_or("idle_timeout is no duration such as 30s or 5m")?;
        }
        Ok(limits)
    }
}

fn written(map: &mut Map<String, Value>, name: &str) -> Option<String> {
    match map.remove(name)? {
        Value::String(text) => Some(text.trim().to_owned()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Some(other.to_string())
        }
    }
}

/// A number of bytes, with a unit of 1024 if there is one.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() || letter == ' ');
    let factor: u64 = match text.get(digits.len()..)?.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entry: &Value) -> Result<ForwardLimits, String> {
        let mut map = entry.as_object().unwrap().clone();
        let limits = ForwardLimits::take(&mut map);
        assert!(limits.is_err() || map.is_empty());
        limits
    }

    #[test]
    fn limits_are_read_with_their_units() {
        let limits = read(&serde_json::json!({
            "max_connections": 100, "bandwidth_in": "512KiB", "bandwidth_out": 1000, "idle_timeout": "10m",
        }));
        let expected = ForwardLimits {
            max_connections: 100,
            bandwidth_in: 512 * 1024,
            bandwidth_out: 1000,
            idle_timeout: Duration::from_secs(600),
        };
        assert_eq!(limits, Ok(expected));
        assert_eq!(read(&serde_json::json!({})), Ok(ForwardLimits::default()));
    }

    #[test]
    fn what_is_no_limit_is_said() {
        for (entry, key) in [
            (serde_json::json!({"max_connections": -1}), "max_connections"),
            (serde_json::json!({"bandwidth_in": "10Mb"}), "bandwidth_in"),
            (
                serde_json::json!({"bandwidth_out": "99999999999GiB"}),
                "bandwidth_out",
            ),
            (serde_json::json!({"bandwidth_out": "\u{e9}B"}), "bandwidth_out"),
            (serde_json::json!({"idle_timeout": "soon"}), "idle_timeout"),
            (serde_json::json!({"idle_timeout": null}), "idle_timeout"),
        ] {
            let why = read(&entry).unwrap_err();
            assert!(why.starts_with(key), "{why}");
        }
    }
}
