//! Tokens: making them, comparing them, and not showing them.

use serde_json::Value;

/// A fresh token of 256 bits in hexadecimal.
pub(super) fn random_token() -> String {
    use rand::Rng;
    let bytes: [u8; 32] = rand::rng().random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares without telling by its time how much is equal.
pub(super) fn same(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Blanks the values of keys that speak of secrets, at any depth.
pub(super) fn blank(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let key = key.to_ascii_lowercase();
                let secret = ["token", "password", "credentials", "secret"]
                    .iter()
                    .any(|word| key.contains(word));
                *value = match value.take() {
                    Value::String(text) if secret && !text.is_empty() => {
                        format!("<{} characters>", text.len()).into()
                    }
                    other => blank(other),
                };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = blank(item.take())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blanked_at_any_depth() {
        let told = serde_json::json!({"k8s_service_token":"canary","list":[{"Grafana_Password":"canary"}],"name":"lab"});
        let shown = blank(told).to_string();
        assert!(!shown.contains("canary") && shown.contains("lab"), "{shown}");
    }

    #[test]
    fn a_bearer_is_read_whatever_the_case_of_its_scheme() {
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", "bearer abc".parse().unwrap());
        assert_eq!(bearer(&headers), Some("abc"));
        headers.insert("authorization", "Basic abc".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }
}
