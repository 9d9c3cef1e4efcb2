//! What the control plane asks k8s-proxy's callers to keep to: `proxy_limits` in the answer to a heartbeat, an
//! extension of ours. It lowers what the owner of the cluster set and cannot raise it; k8s-proxy takes the smaller.
//!
//! ```json
//! {"proxy_limits": {"streams": 500, "in_flight": 50, "requests_per_second": 20, "bytes_per_second": 1048576}}
//! ```

use proto::v1::ProxyLimits;
use serde_json::Value;

/// Reads an answer. What is absent or no number asks for nothing; 0 is no number here, for it would mean no limit.
pub(crate) fn parse(body: &[u8]) -> ProxyLimits {
    let answer: Option<Value> = serde_json::from_slice(body).ok();
    let asked = answer.as_ref().and_then(|answer| answer.get("proxy_limits"));
    let number = |name: &str| asked.and_then(|asked| asked.get(name)).and_then(Value::as_u64);
    let small = |name: &str| number(name).map_or(0, |number| u32::try_from(number).unwrap_or(u32::MAX));
    ProxyLimits {
        streams: small("streams"),
        in_flight: small("in_flight"),
        requests_per_second: small("requests_per_second"),
        bytes_per_second: number("bytes_per_second").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_asked_is_read_and_what_is_no_number_asks_for_nothing() {
        let body = br#"{"success":true,"proxy_limits":{"streams":5,"in_flight":99999999999,"requests_per_second":"x"}}"#;
        let expected = ProxyLimits {
            streams: 5,
            in_flight: u32::MAX,
            ..ProxyLimits::default()
        };
        assert_eq!(parse(body), expected);
        for nothing in [
            &b"{}"[..],
            b"",
            b"[]",
            br#"{"proxy_limits":null}"#,
            br#"{"proxy_limits":{"streams":-1}}"#,
        ] {
            assert_eq!(parse(nothing), ProxyLimits::default());
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&body);
        }
    }
}
