//! What the API fills in, and the few faults of content that it refuses.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{clock::Chance, object, resources::Resource, status::Status};

/// Fills in what a new object lacks.
pub fn on_create(resource: &Resource, value: &mut Value, chance: &Chance) {
    match resource.kind {
        "Namespace" => {
            let name = object::name(value).to_owned();
            set_new(value, "spec", "finalizers", json!(["kubernetes"]));
            set_new(value, "status", "phase", json!("Active"));
            let labels = object::metadata(value)
                .entry("labels")
                .or_insert_with(|| json!({}));
            object::as_object(labels).insert("kubernetes.io/metadata.name".to_owned(), json!(name));
        }
        "Pod" => {
            for (key, default) in [
                ("restartPolicy", json!("Always")),
                ("serviceAccountName", json!("default")),
                ("schedulerName", json!("default-scheduler")),
                ("terminationGracePeriodSeconds", json!(30)),
            ] {
                set_new(value, "spec", key, default);
            }
            set_new(value, "status", "phase", json!("Pending"));
        }
        "Deployment" | "ReplicaSet" => {
            set_new(value, "spec", "replicas", json!(1));
            object::child(value, "status");
        }
        "Service" => {
            set_new(value, "spec", "type", json!("ClusterIP"));
            let address = format!("10.96.{}.{}", chance.below(256), 1 + chance.below(254));
            set_new(value, "spec", "clusterIP", json!(address));
            set_new(value, "status", "loadBalancer", json!({}));
        }
        "Secret" => {
            object::as_object(value)
                .entry("type")
                .or_insert_with(|| json!("Opaque"));
        }
        _ => {}
    }
}

fn set_new(value: &mut Value, part: &str, key: &str, default: Value) {
    object::child(value, part).entry(key).or_insert(default);
}

/// Normalises what is about to be stored, and refuses content that the real API refuses too.
///
/// # Errors
/// 400 for wrong types, 422 for missing parts.
pub fn on_write(resource: &Resource, value: &mut Value) -> Result<(), Status> {
    let name = object::name(value).to_owned();
    match resource.kind {
        "Secret" => {
            if let Some(Value::Object(plain)) = object::as_object(value).remove("stringData") {
                let data = object::child(value, "data");
                for (key, text) in plain {
                    let text = text.as_str().unwrap_or_default();
                    data.insert(key, json!(BASE64_STANDARD.encode(text)));
                }
            }
            texts_only(value, "data", "Secret")?;
            let data = value["data"].as_object().into_iter().flatten();
            for (key, text) in data {
                if BASE64_STANDARD.decode(text.as_str().unwrap_or_default()).is_err() {
                    return Err(Status::bad_request(format!(
                        "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data in data.{key}"
                    )));
                }
            }
            Ok(())
        }
        "ConfigMap" => {
            texts_only(value, "data", "ConfigMap")?;
            let good = |key: &str| {
                key.chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            match value["data"]
                .as_object()
                .into_iter()
                .flatten()
                .find(|(key, _)| key.is_empty() || !good(key))
            {
                Some((key, _)) => {
                    let why = format!(
                        "\"{key}\": a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
                    );
                    Err(Status::invalid(
                        resource,
                        &name,
                        &format!("data[{key}]"),
                        "FieldValueInvalid",
                        &why,
                    ))
                }
                None => Ok(()),
            }
        }
        "Pod"
            if object::at(value, "spec.containers")
                .and_then(Value::as_array)
                .is_none_or(Vec::is_empty) =>
        {
            Err(Status::invalid(
                resource,
                &name,
                "spec.containers",
                "FieldValueRequired",
                "",
            ))
        }
        "Deployment" | "ReplicaSet" => {
            let labels = &value["spec"]["template"]["metadata"]["labels"];
            let wanted = value["spec"]["selector"]["matchLabels"].as_object();
            let fits = wanted.is_some_and(|wanted| {
                !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            if fits {
                return Ok(());
            }
            let why = format!("{labels}: `selector` does not match template `labels`");
            Err(Status::invalid(
                resource,
                &name,
                "spec.template.metadata.labels",
                "FieldValueInvalid",
                &why,
            ))
        }
        _ => Ok(()),
    }
}

fn texts_only(value: &Value, part: &str, kind: &str) -> Result<(), Status> {
    let bad = value[part]
        .as_object()
        .into_iter()
        .flatten()
        .find(|(_, text)| !text.is_string());
    match bad {
        Some((key, _)) => Err(Status::bad_request(format!(
            "{kind} in version \"v1\" cannot be handled as a {kind}: json: cannot unmarshal {part}.{key} into Go value of type string"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::resources::*, *};

    fn kind(plural: &str) -> &'static Resource {
        &RESOURCES[by_plural(plural)]
    }

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "hello"}});
        on_write(kind("secrets"), &mut secret).unwrap();
        assert_eq!(secret["data"]["a"], "aGVsbG8=");
        assert!(secret.get("stringData").is_none());
    }

    #[test]
    fn wrong_content_is_refused() {
        let refuse = |plural, mut value: Value| on_write(kind(plural), &mut value).unwrap_err().code;
        assert_eq!(refuse("configmaps", json!({"data": {"n": 1}})), 400);
        assert_eq!(refuse("secrets", json!({"data": {"n": "%"}})), 400);
        assert_eq!(refuse("pods", json!({"spec": {}})), 422);
        assert_eq!(
            refuse(
                "deployments",
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})
            ),
            422
        );
    }
}
