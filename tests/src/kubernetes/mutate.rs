//! The verbs that change something: from body and options to the rules of `write`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    api::{self, Answer, Call},
    cluster::Cluster,
    list, negotiate, object,
    patch::{self, JsonPatchError},
    resources::{RESOURCES, Resource},
    route::Target,
    status::Status,
    store::{Key, Stored},
    write::WriteOptions,
};

/// Kinds of which a deletion answers the object itself.
const ANSWERS_DELETED_OBJECT: &[&str] = &["Pod", "Service", "ServiceAccount", "Namespace"];

/// Carries out a write.
///
/// # Errors
/// The `Status` for the client.
pub(super) fn write(
    cluster: &Arc<Cluster>,
    call: &Call,
    verb: &str,
    target: &Target,
) -> Result<Answer, Status> {
    let kind = &RESOURCES[target.resource];
    let options = WriteOptions {
        dry_run: call.query.get("dryRun") == "All",
        ..WriteOptions::default()
    };
    let json = |code, stored: Arc<Stored>| Ok(Answer::Json(code, stored.json()));
    let key = Key::new(target.resource, &target.namespace, &target.name);
    let known = match target.subresource.as_str() {
        "" => true,
        "status" => kind.status,
        "scale" => kind.kind == "Deployment",
        "finalize" => kind.kind == "Namespace",
        _ => false,
    };
    if !known {
        return Err(Status::no_such_resource());
    }
    match (verb, target.subresource.as_str()) {
        ("create", "") => {
            let value = negotiate::decode(&negotiate::content_type(&call.headers), &call.body)?;
            json(
                201,
                cluster.create(target.resource, &target.namespace, value, &options)?,
            )
        }
        ("update", "scale") => {
            let wanted = negotiate::decode(&negotiate::content_type(&call.headers), &call.body)?;
            rescale(cluster, &key, &options, |_| Ok(wanted))
        }
        ("update", subresource) => {
            let value = negotiate::decode(&negotiate::content_type(&call.headers), &call.body)?;
            let found = object::name(&value);
            if !found.is_empty() && found != target.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({found}) does not match the name on the URL ({})",
                    target.name
                )));
            }
            let mut created = value.clone();
            match cluster.update(&key, subresource, &options, |_| Ok(value)) {
                Err(status) if status.code == 404 && kind.create_on_update && subresource.is_empty() => {
                    object::metadata(&mut created).remove("resourceVersion");
                    json(
                        201,
                        cluster.create(target.resource, &target.namespace, created, &options)?,
                    )
                }
                other => json(200, other?),
            }
        }
        ("patch", "scale") => rescale(cluster, &key, &options, |scale| patched(call, scale)),
        ("patch", subresource) => {
            let apply = negotiate::content_type(&call.headers) == "application/apply-patch+yaml";
            if apply && call.query.get("fieldManager").is_empty() {
                return Err(Status::field_manager_required());
            }
            let old = cluster.store.get(&key);
            if apply && old.is_none() && subresource.is_empty() {
                let mut value = negotiate::read_yaml(&call.body)?;
                object::stamp(&mut value, "name", target.name.as_str());
                return json(
                    201,
                    cluster.create(target.resource, &target.namespace, value, &options)?,
                );
            }
            json(
                200,
                cluster.update(&key, subresource, &options, |old| patched(call, old))?,
            )
        }
        ("delete", "") => delete(cluster, call, target, options),
        ("deletecollection", "") => delete_collection(cluster, call, target, &options),
        _ => Err(Status::method_not_allowed()),
    }
}

fn patched(call: &Call, old: &Value) -> Result<Value, Status> {
    let mut new = old.clone();
    match negotiate::content_type(&call.headers).as_str() {
        "application/merge-patch+json" => patch::merge(&mut new, &negotiate::read_json(&call.body)?),
        "application/strategic-merge-patch+json" => {
            patch::strategic(&mut new, &negotiate::read_json(&call.body)?)
        }
        "application/apply-patch+yaml" => patch::strategic(&mut new, &negotiate::read_yaml(&call.body)?),
        "application/json-patch+json" => {
            let patch = negotiate::read_json(&call.body)?;
            return patch::json_patch(old, &patch).map_err(|error| match error {
                JsonPatchError::Malformed(why) => Status::bad_request(format!("error decoding patch: {why}")),
                JsonPatchError::DoesNotFit(_) => {
                    Status::unprocessable("the server rejected our request due to an error in our request")
                }
            });
        }
        _ => return Err(Status::unsupported_patch_type()),
    }
    Ok(new)
}

fn delete(
    cluster: &Cluster,
    call: &Call,
    target: &Target,
    mut options: WriteOptions,
) -> Result<Answer, Status> {
    if !call.body.is_empty() {
        let posted = negotiate::decode(&negotiate::content_type(&call.headers), &call.body)?;
        let text = |path: &str| Some(object::text(&posted, path).to_owned()).filter(|text| !text.is_empty());
        options.uid = text("preconditions.uid");
        options.resource_version = text("preconditions.resourceVersion");
        options.orphan = object::text(&posted, "propagationPolicy") == "Orphan";
        options.dry_run |= posted["dryRun"][0] == "All";
    }
    let kind = &RESOURCES[target.resource];
    let key = Key::new(target.resource, &target.namespace, &target.name);
    let (last, gone) = cluster.delete(&key, &options)?;
    if !gone || ANSWERS_DELETED_OBJECT.contains(&kind.kind) {
        return Ok(Answer::Json(200, last.json()));
    }
    let uid = object::text(&last.value, "metadata.uid");
    Ok(Answer::Object(
        200,
        api::deleted(kind.plural, kind.group, &target.name, uid),
    ))
}

fn delete_collection(
    cluster: &Cluster,
    call: &Call,
    target: &Target,
    options: &WriteOptions,
) -> Result<Answer, Status> {
    let kind: &Resource = &RESOURCES[target.resource];
    let selector = list::selector(target, &call.query)?;
    let page = list::page(&cluster.store, target, &selector, &call.query)?;
    for stored in &page.items {
        let key = Key::new(
            target.resource,
            object::namespace(&stored.value),
            object::name(&stored.value),
        );
        match cluster.delete(&key, options) {
            // Somebody else, or its owner's end, was quicker.
            Err(status) if status.code == 404 => {}
            other => drop(other?),
        }
    }
    Ok(Answer::Json(200, list::render(kind, &page)))
}

/// The `Scale` of a deployment.
///
/// # Errors
/// 404 when there is none.
pub(super) fn scale(cluster: &Cluster, target: &Target) -> Result<Value, Status> {
    let key = Key::new(target.resource, &target.namespace, &target.name);
    let stored = cluster.store.get(&key);
    let stored = stored.ok_or_else(|| Status::not_found(&RESOURCES[target.resource], &target.name))?;
    Ok(scale_of(&stored.value))
}

fn scale_of(value: &Value) -> Value {
    let labels = value["spec"]["selector"]["matchLabels"]
        .as_object()
        .into_iter()
        .flatten();
    let selector: Vec<_> = labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let metadata = &value["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"]
        },
        "spec": {"replicas": object::number(value, "spec.replicas")},
        "status": {"replicas": object::number(value, "status.replicas"), "selector": selector.join(",")}
    })
}

fn rescale(
    cluster: &Cluster,
    key: &Key,
    options: &WriteOptions,
    change: impl FnOnce(&Value) -> Result<Value, Status>,
) -> Result<Answer, Status> {
    let stored = cluster.update(key, "", options, |old| {
        let wanted = change(&scale_of(old))?;
        let mut new = old.clone();
        let version = object::text(&wanted, "metadata.resourceVersion");
        if !version.is_empty() {
            object::stamp(&mut new, "resourceVersion", version);
        }
        object::child(&mut new, "spec").insert(
            "replicas".to_owned(),
            json!(object::number(&wanted, "spec.replicas")),
        );
        Ok(new)
    })?;
    Ok(Answer::Object(200, scale_of(&stored.value)))
}
