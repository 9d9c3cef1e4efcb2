//! Reading and stamping the metadata of untyped objects.

use serde_json::{Map, Value};

/// The value at a dotted path of plain keys.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

/// The text at a dotted path, or empty.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a dotted path, or zero.
pub fn number(value: &Value, path: &str) -> i64 {
    at(value, path).and_then(Value::as_i64).unwrap_or_default()
}

/// `metadata.name`.
pub fn name(value: &Value) -> &str {
    text(value, "metadata.name")
}

/// `metadata.namespace`.
pub fn namespace(value: &Value) -> &str {
    text(value, "metadata.namespace")
}

/// `metadata`, made when it is not there.
pub fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    child(value, "metadata")
}

/// A child object, made when it is not there or is something else.
pub fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let object = as_object(value);
    as_object(object.entry(key).or_insert_with(|| Value::Object(Map::new())))
}

/// The value as an object; anything else is replaced by an empty one.
pub fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made an object above"),
    }
}

/// Sets a text in the metadata.
pub fn stamp(value: &mut Value, key: &str, text: impl Into<String>) {
    metadata(value).insert(key.to_owned(), Value::String(text.into()));
}

/// Whether a name may be used: lower-case DNS labels joined by dots.
pub fn is_name(text: &str) -> bool {
    let label = |part: &str| {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(good) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let value = json!({"a": {"b": "x", "n": 3}});
        assert_eq!(
            (text(&value, "a.b"), text(&value, "a.c"), number(&value, "a.n")),
            ("x", "", 3)
        );
    }

    #[test]
    fn metadata_is_made() {
        let mut value = json!(null);
        stamp(&mut value, "name", "x");
        assert_eq!(value, json!({"metadata": {"name": "x"}}));
    }

    #[test]
    fn names() {
        for good in ["a", "a-b.c", "web-7d9f", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a/b", &"x".repeat(254)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
