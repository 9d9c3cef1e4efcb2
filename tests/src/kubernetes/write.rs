//! Create, update and delete, with the rules that clients feel: names, uids, resourceVersion, generation, finalizers.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    cluster::Cluster,
    defaults, object,
    resources::{RESOURCES, Resource, ResourceId, by_plural},
    status::Status,
    store::{Key, Stored, Txn},
};

/// What a write wants beside the object.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Answer as if, store nothing.
    pub dry_run: bool,
    /// `preconditions.uid` of a delete.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion` of a delete.
    pub resource_version: Option<String>,
    /// Whether what the object owns stays.
    pub orphan: bool,
}

impl Cluster {
    /// Creates an object.
    ///
    /// # Errors
    /// The `Status` that a client would see.
    pub fn create(
        &self,
        resource: ResourceId,
        namespace: &str,
        mut value: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Stored>, Status> {
        let kind = &RESOURCES[resource];
        check_kind(kind, &value)?;
        place(kind, namespace, &mut value)?;
        if !object::text(&value, "metadata.resourceVersion").is_empty() {
            return Err(Status::plain_500(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.name(kind, &mut value)?;
        self.stamp_new(kind, &mut value);
        defaults::on_create(kind, &mut value, &self.chance);
        defaults::on_write(kind, &mut value)?;
        let key = Key::new(resource, namespace, object::name(&value));
        self.store.transact(|txn| {
            if kind.namespaced
                && txn
                    .get(&Key::new(by_plural("namespaces"), "", namespace))
                    .is_none()
            {
                return Err(Status::not_found(&RESOURCES[by_plural("namespaces")], namespace));
            }
            if txn.get(&key).is_some() {
                return Err(Status::already_exists(kind, &key.name));
            }
            if options.dry_run {
                return Ok(Arc::new(Stored::unsaved(value)));
            }
            let stored = txn.put(resource, value);
            if kind.kind == "Namespace" {
                self.furnish_namespace(txn, &key.name);
            }
            Ok(stored)
        })
    }

    fn name(&self, kind: &Resource, value: &mut Value) -> Result<(), Status> {
        if object::name(value).is_empty() {
            let prefix = object::text(value, "metadata.generateName").to_owned();
            if prefix.is_empty() {
                let why = "name or generateName is required";
                return Err(Status::invalid(
                    kind,
                    "",
                    "metadata.name",
                    "FieldValueRequired",
                    why,
                ));
            }
            object::stamp(value, "name", format!("{prefix}{}", self.chance.suffix(5)));
        }
        let name = object::name(value);
        if object::is_name(name) {
            return Ok(());
        }
        let why = format!(
            "\"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        );
        Err(Status::invalid(
            kind,
            name,
            "metadata.name",
            "FieldValueInvalid",
            &why,
        ))
    }

    fn stamp_new(&self, kind: &Resource, value: &mut Value) {
        let top = object::as_object(value);
        top.insert("kind".to_owned(), json!(kind.kind));
        top.insert("apiVersion".to_owned(), json!(kind.api_version()));
        object::stamp(value, "uid", self.chance.uid());
        object::stamp(value, "creationTimestamp", self.clock.seconds());
        let metadata = object::metadata(value);
        metadata.remove("managedFields");
        if kind.generation {
            metadata.insert("generation".to_owned(), json!(1));
        }
    }

    fn furnish_namespace(&self, txn: &mut Txn<'_>, namespace: &str) {
        let resource = by_plural("serviceaccounts");
        let mut account = json!({"metadata": {"name": "default", "namespace": namespace}});
        self.stamp_new(&RESOURCES[resource], &mut account);
        txn.put(resource, account);
        let resource = by_plural("configmaps");
        let mut roots = json!({"metadata": {"name": "kube-root-ca.crt", "namespace": namespace}, "data": {}});
        self.stamp_new(&RESOURCES[resource], &mut roots);
        txn.put(resource, roots);
    }

    /// Replaces an object by what `change` makes of it; `subresource` is `""` or `status`.
    ///
    /// # Errors
    /// The `Status` that a client would see.
    pub fn update(
        &self,
        key: &Key,
        subresource: &str,
        options: &WriteOptions,
        change: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Stored>, Status> {
        let kind = &RESOURCES[key.resource];
        self.store.transact(|txn| {
            let old = txn.get(key).ok_or_else(|| Status::not_found(kind, &key.name))?;
            let new = settle(kind, &old, change(&old.value)?, subresource)?;
            if new == old.value {
                return Ok(old);
            }
            if options.dry_run {
                return Ok(Arc::new(Stored::unsaved(new)));
            }
            let finished =
                !object::text(&new, "metadata.deletionTimestamp").is_empty() && !has_finalizers(&new);
            let stored = txn.put(key.resource, new);
            if finished {
                self.remove_whole(txn, key, false);
            }
            Ok(stored)
        })
    }

    /// Deletes an object; with finalizers it is only marked. Returns the last version and whether it is gone.
    ///
    /// # Errors
    /// The `Status` that a client would see.
    pub fn delete(&self, key: &Key, options: &WriteOptions) -> Result<(Arc<Stored>, bool), Status> {
        let kind = &RESOURCES[key.resource];
        self.store.transact(|txn| {
            let old = txn.get(key).ok_or_else(|| Status::not_found(kind, &key.name))?;
            let found = object::text(&old.value, "metadata.uid");
            if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != found) {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
                return Err(Status::conflict(kind, &key.name, &why));
            }
            let revision = old.revision.to_string();
            if let Some(asked) = options.resource_version.as_deref().filter(|asked| *asked != revision) {
                let why = format!(
                    "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {revision}"
                );
                return Err(Status::conflict(kind, &key.name, &why));
            }
            if options.dry_run {
                return Ok((old, true));
            }
            if has_finalizers(&old.value) {
                let mut marked = old.value.clone();
                if object::text(&marked, "metadata.deletionTimestamp").is_empty() {
                    object::stamp(&mut marked, "deletionTimestamp", self.clock.seconds());
                    object::metadata(&mut marked).insert("deletionGracePeriodSeconds".to_owned(), json!(0));
                    return Ok((txn.put(key.resource, marked), false));
                }
                return Ok((old, false));
            }
            let last = self.remove_whole(txn, key, options.orphan);
            Ok((last.unwrap_or(old), true))
        })
    }

    /// Removes an object with what it owns or holds.
    pub fn remove_whole(&self, txn: &mut Txn<'_>, key: &Key, orphan: bool) -> Option<Arc<Stored>> {
        let last = txn.remove(key)?;
        if RESOURCES[key.resource].kind == "Pod" {
            self.logs.forget(&key.namespace, &key.name);
        }
        let uid = object::text(&last.value, "metadata.uid").to_owned();
        for resource in (0..RESOURCES.len()).filter(|resource| RESOURCES[*resource].namespaced) {
            let holds = RESOURCES[key.resource].kind == "Namespace";
            let namespace = if holds { &key.name } else { &key.namespace };
            for inner in txn.list(resource, Some(namespace)) {
                let owners = inner.value["metadata"]["ownerReferences"].as_array();
                let owned =
                    owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid.as_str()));
                if holds || (owned && !orphan) {
                    self.remove_whole(
                        txn,
                        &Key::new(resource, namespace, object::name(&inner.value)),
                        false,
                    );
                }
            }
        }
        Some(last)
    }
}

fn has_finalizers(value: &Value) -> bool {
    object::at(value, "metadata.finalizers")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty())
}

/// Whether kind and apiVersion are what the path says; absent ones are filled in later.
fn check_kind(kind: &Resource, value: &Value) -> Result<(), Status> {
    if !value.is_object() {
        return Err(Status::bad_request(
            "the object provided is unrecognized: it must be an object",
        ));
    }
    let (found, version) = (object::text(value, "kind"), object::text(value, "apiVersion"));
    let good =
        (found.is_empty() || found == kind.kind) && (version.is_empty() || version == kind.api_version());
    if good {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "{found} in version \"{version}\" cannot be handled as a {}: no kind \"{found}\" is registered for version \"{}\"",
        kind.kind,
        kind.api_version()
    )))
}

/// Writes the namespace of the path into the object, or refuses another one.
fn place(kind: &Resource, namespace: &str, value: &mut Value) -> Result<(), Status> {
    let found = object::namespace(value);
    if !found.is_empty() && found != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if kind.namespaced {
        object::stamp(value, "namespace", namespace);
    }
    Ok(())
}

/// Makes the new version: what a client may not change is taken from the old one.
fn settle(kind: &Resource, old: &Stored, mut new: Value, subresource: &str) -> Result<Value, Status> {
    check_kind(kind, &new)?;
    let name = object::name(&old.value);
    place(kind, object::namespace(&old.value), &mut new)?;
    let found = object::name(&new);
    if found != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({name})"
        )));
    }
    let asked = object::text(&new, "metadata.resourceVersion");
    if asked.is_empty() && !kind.unconditional_update {
        let why = "0: must be specified for an update";
        return Err(Status::invalid(
            kind,
            name,
            "metadata.resourceVersion",
            "FieldValueInvalid",
            why,
        ));
    }
    if !asked.is_empty() && asked != old.revision.to_string() {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Status::conflict(kind, name, why));
    }
    let uid = object::text(&new, "metadata.uid");
    if !uid.is_empty() && uid != object::text(&old.value, "metadata.uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::text(&old.value, "metadata.uid")
        );
        return Err(Status::conflict(kind, name, &why));
    }
    if subresource == "status" {
        let status = new.get("status").cloned().unwrap_or(json!({}));
        new = old.value.clone();
        object::as_object(&mut new).insert("status".to_owned(), status);
        return Ok(new);
    }
    keep(&mut new, &old.value, kind);
    defaults::on_write(kind, &mut new)?;
    Ok(new)
}

fn keep(new: &mut Value, old: &Value, kind: &Resource) {
    let top = object::as_object(new);
    for key in ["kind", "apiVersion"] {
        top.insert(key.to_owned(), old[key].clone());
    }
    if kind.status {
        match old.get("status") {
            Some(status) => top.insert("status".to_owned(), status.clone()),
            None => top.remove("status"),
        };
    }
    if kind.kind == "Service" {
        // Once given, the address stays, as the real API insists too.
        let address = old["spec"]["clusterIP"].clone();
        object::child(new, "spec").entry("clusterIP").or_insert(address);
    }
    let changed = kind.generation && new.get("spec") != old.get("spec");
    let generation = object::number(old, "metadata.generation") + i64::from(changed);
    let metadata = object::metadata(new);
    metadata.remove("managedFields");
    for key in [
        "uid",
        "creationTimestamp",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        match old["metadata"].get(key) {
            Some(kept) => metadata.insert(key.to_owned(), kept.clone()),
            None => metadata.remove(key),
        };
    }
    if kind.generation {
        metadata.insert("generation".to_owned(), json!(generation));
    }
}
