//! Label and field selectors: parsed once per request, asked once per object.

use serde_json::Value;

use super::{object, resources::Resource, status::Status};

/// What a request wants to see of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 for what cannot be read or is no selectable field of this kind.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, Status> {
        Ok(Self {
            labels: parse_labels(labels)?,
            fields: parse_fields(resource, fields)?,
        })
    }

    /// Whether everything matches; the real API counts what remains only then.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is wanted.
    pub fn matches(&self, value: &Value) -> bool {
        self.labels.iter().all(|term| term.matches(value))
            && self.fields.iter().all(|term| term.matches(value))
    }
}

impl LabelTerm {
    fn matches(&self, value: &Value) -> bool {
        let label = |key: &str| value["metadata"]["labels"][key].as_str();
        match self {
            Self::In(key, values) => label(key).is_some_and(|found| values.iter().any(|v| v == found)),
            Self::NotIn(key, values) => label(key).is_none_or(|found| values.iter().all(|v| v != found)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

impl FieldTerm {
    fn matches(&self, value: &Value) -> bool {
        (field(value, &self.path) == self.value) == self.equal
    }
}

/// The text of a selectable field; absent is empty, as in the real API.
fn field(value: &Value, path: &str) -> String {
    let found = match path {
        // Old name of a field that events carry inside another.
        "source" => object::at(value, "source.component"),
        _ => object::at(value, path),
    };
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if path == "spec.unschedulable" => "false".to_owned(),
        _ => String::new(),
    }
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, Status> {
    split_terms(text)
        .into_iter()
        .map(|term| parse_label(term, text))
        .collect()
}

/// Splits at commas that stand outside of parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
    .collect()
}

fn parse_label(term: &str, whole: &str) -> Result<LabelTerm, Status> {
    let unreadable = || {
        Status::bad_request(format!(
            "unable to parse requirement: invalid label selector \"{whole}\""
        ))
    };
    let one = |key: &str, value: &str| -> Result<(String, Vec<String>), Status> {
        Ok((
            label_key(key).ok_or_else(unreadable)?,
            vec![label_value(value).ok_or_else(unreadable)?],
        ))
    };
    if let Some((key, value)) = term.split_once("!=") {
        let (key, values) = one(key, value)?;
        return Ok(LabelTerm::NotIn(key, values));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        let (key, values) = one(key, value)?;
        return Ok(LabelTerm::In(key, values));
    }
    if let Some(inner) = term.strip_suffix(')') {
        let (head, list) = inner.split_once('(').ok_or_else(unreadable)?;
        let mut words = head.split_whitespace();
        let (key, operator) = (
            words.next().ok_or_else(unreadable)?,
            words.next().ok_or_else(unreadable)?,
        );
        let key = label_key(key).ok_or_else(unreadable)?;
        let values = list
            .split(',')
            .map(|value| label_value(value).ok_or_else(unreadable))
            .collect::<Result<Vec<_>, _>>()?;
        return match (operator, words.next()) {
            ("in", None) => Ok(LabelTerm::In(key, values)),
            ("notin", None) => Ok(LabelTerm::NotIn(key, values)),
            _ => Err(unreadable()),
        };
    }
    match term.strip_prefix('!') {
        Some(key) => Ok(LabelTerm::Absent(label_key(key).ok_or_else(unreadable)?)),
        None => Ok(LabelTerm::Exists(label_key(term).ok_or_else(unreadable)?)),
    }
}

fn label_key(text: &str) -> Option<String> {
    let key = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!key.is_empty() && key.chars().all(good)).then(|| key.to_owned())
}

fn label_value(text: &str) -> Option<String> {
    let value = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (value.len() <= 63 && value.chars().all(good)).then(|| value.to_owned())
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldTerm>, Status> {
    let terms = text.split(',').map(str::trim).filter(|term| !term.is_empty());
    terms.map(|term| parse_field(resource, term)).collect()
}

fn parse_field(resource: &Resource, term: &str) -> Result<FieldTerm, Status> {
    let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
        (path, value, false)
    } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (path, value, true)
    } else {
        return Err(Status::bad_request(format!(
            "invalid selector: '{term}'; can't understand '{term}'"
        )));
    };
    let known = path == "metadata.name"
        || (path == "metadata.namespace" && resource.namespaced)
        || resource.fields.contains(&path);
    if !known {
        return Err(Status::bad_request(format!(
            "\"{path}\" is not a known field selector of {}",
            resource.plural
        )));
    }
    Ok(FieldTerm {
        path: path.to_owned(),
        value: value.to_owned(),
        equal,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::resources::*, *};

    fn pods() -> &'static Resource {
        &RESOURCES[by_plural("pods")]
    }

    fn labels(text: &str) -> Selector {
        Selector::parse(pods(), text, "").unwrap()
    }

    #[test]
    fn label_forms() {
        let web = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        for yes in [
            "",
            "app=web",
            "app==web",
            "app!=api",
            "app in (api, web)",
            "tier notin (db)",
            "app,tier",
            "!gone",
            "app in (web),tier=front",
        ] {
            assert!(labels(yes).matches(&web), "{yes}");
        }
        for no in [
            "app=api",
            "app!=web",
            "app in (api)",
            "tier notin (front,db)",
            "gone",
            "!app",
            "app=web,tier=db",
        ] {
            assert!(!labels(no).matches(&web), "{no}");
        }
    }

    #[test]
    fn bad_selectors_are_400() {
        for bad in ["=x", "a b", "app in web", "app within (x)", "app in (x", "a=b c"] {
            assert_eq!(Selector::parse(pods(), bad, "").unwrap_err().code, 400, "{bad}");
        }
        for bad in ["status.nothing=x", "metadata.name"] {
            assert_eq!(Selector::parse(pods(), "", bad).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn field_forms() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "status": {"phase": "Running"}});
        let fields = |text: &str| Selector::parse(pods(), "", text).unwrap();
        assert!(fields("metadata.name=a,status.phase!=Failed").matches(&pod));
        assert!(fields("spec.nodeName=").matches(&pod), "absent is empty");
        assert!(!fields("metadata.namespace==other").matches(&pod));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A term and its negation divide every set of objects in two.
        #[test]
        fn a_term_and_its_negation_divide_the_world(key in "[a-z]{1,3}", value in "[a-z]{1,2}",
            have in proptest::collection::btree_map("[a-z]{1,3}", "[a-z]{1,2}", 0..4)) {
            let object = json!({"metadata": {"labels": have}});
            for (yes, no) in [
                (format!("{key}={value}"), format!("{key}!={value}")),
                (format!("{key} in ({value},zz)"), format!("{key} notin ({value},zz)")),
                (key.clone(), format!("!{key}")),
            ] {
                prop_assert_ne!(labels(&yes).matches(&object), labels(&no).matches(&object));
            }
        }

        /// Whatever a client sends, parsing ends with a selector or a 400.
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,40}") {
            for result in [Selector::parse(pods(), &text, ""), Selector::parse(pods(), "", &text)] {
                prop_assert!(result.is_ok() || result.is_err_and(|status| status.code == 400));
            }
        }
    }
}
