//! `/api`, `/apis` and what lies below: which kinds there are. Only the plain form; kubectl falls back to it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::resources::{RESOURCES, Resource};

/// The version that the simulation says it is.
pub const VERSION: &str = "v1.34.2";

/// Groups whose only resources are reviews.
const REVIEW_GROUPS: &[(&str, &str, &str)] = &[
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
    ),
];

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "34", "gitVersion": VERSION, "gitCommit": "simulated", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64"
    })
}

/// A discovery path, if it is one of ours.
pub fn answer(parts: &[String], address: &str) -> Option<Value> {
    let names: Vec<&str> = parts.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
        })),
        ["apis"] => {
            let groups: Vec<_> = groups().into_iter().map(group).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", "v1"] => Some(resource_list("", "v1")),
        ["apis", name] if groups().contains(name) => {
            let mut group = group(name);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            Some(group)
        }
        ["apis", name, "v1"] if groups().contains(name) => Some(resource_list(name, "v1")),
        _ => None,
    }
}

fn groups() -> BTreeSet<&'static str> {
    let stored = RESOURCES
        .iter()
        .map(|resource| resource.group)
        .filter(|group| !group.is_empty());
    stored
        .chain(REVIEW_GROUPS.iter().map(|(group, ..)| *group))
        .collect()
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resource_list(group: &str, version: &str) -> Value {
    let mut entries = Vec::new();
    for resource in RESOURCES
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
    {
        entries.push(entry(resource));
        if resource.status {
            entries.push(subresource(
                resource,
                "status",
                resource.kind,
                &["get", "patch", "update"],
            ));
        }
        match resource.kind {
            "Pod" => entries.push(subresource(resource, "log", "Pod", &["get"])),
            "Deployment" => entries.push(subresource(
                resource,
                "scale",
                "Scale",
                &["get", "patch", "update"],
            )),
            _ => {}
        }
    }
    for (_, plural, kind) in REVIEW_GROUPS.iter().filter(|(review, ..)| *review == group) {
        entries.push(json!({"name": plural, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["create"]}));
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries})
}

fn entry(resource: &Resource) -> Value {
    let mut entry = json!({
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    });
    if !resource.short.is_empty() {
        entry["shortNames"] = json!(resource.short);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    entry
}

fn subresource(resource: &Resource, name: &str, kind: &str, verbs: &[&str]) -> Value {
    json!({
        "name": format!("{}/{name}", resource.plural), "singularName": "", "namespaced": resource.namespaced,
        "kind": kind, "verbs": verbs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str) -> Option<Value> {
        let parts: Vec<_> = path.trim_matches('/').split('/').map(str::to_owned).collect();
        answer(&parts, "127.0.0.1:1")
    }

    #[test]
    fn every_listed_group_answers() {
        let groups = ask("/apis").unwrap()["groups"].as_array().unwrap().clone();
        assert!(groups.len() >= 4);
        for group in groups {
            let name = group["name"].as_str().unwrap();
            assert_eq!(ask(&format!("/apis/{name}")).unwrap()["kind"], "APIGroup");
            let list = ask(&format!("/apis/{name}/v1")).unwrap();
            assert!(!list["resources"].as_array().unwrap().is_empty(), "{name}");
        }
        assert!(ask("/apis/none.example").is_none());
    }
}
