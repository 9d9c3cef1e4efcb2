//! `/openapi/v3`: only as much as kubectl asks before `apply` and `create`: that the server checks fields by itself.
//!
//! No schemas: kubectl falls back to the types it was built with. The simulation keeps fields it does not know, so
//! what kubectl then believes to be checked is in truth accepted.

use serde_json::{Map, Value, json};

use super::resources::{RESOURCES, Resource};

/// The query parameter whose presence kubectl looks for.
const PARAMETER: &str = "fieldValidation";

/// A path below `/openapi/v3`, if it is one of ours.
pub fn answer(below: &[&str]) -> Option<Value> {
    match below {
        [] => {
            let prefixes: Map<_, _> = RESOURCES
                .iter()
                .map(|kind| {
                    (
                        prefix(kind),
                        json!({"serverRelativeURL": format!("/openapi/v3/{}?hash=simulated", prefix(kind))}),
                    )
                })
                .collect();
            Some(json!({"paths": prefixes}))
        }
        parts => {
            let wanted = parts.join("/");
            let paths: Map<_, _> = RESOURCES
                .iter()
                .filter(|kind| prefix(kind) == wanted)
                .map(|kind| (path(kind), patch(kind)))
                .collect();
            if paths.is_empty() {
                return None;
            }
            Some(json!({
                "openapi": "3.0.0", "info": {"title": "Simulated Kubernetes", "version": super::discovery::VERSION},
                "paths": paths, "components": {"schemas": {}}
            }))
        }
    }
}

fn prefix(kind: &Resource) -> String {
    let root = if kind.group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", kind.api_version())
}

fn path(kind: &Resource) -> String {
    let place = if kind.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    format!("/{}/{place}{}/{{name}}", prefix(kind), kind.plural)
}

fn patch(kind: &Resource) -> Value {
    json!({"patch": {
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "parameters": [{"name": PARAMETER, "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
        "responses": {}
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_document_is_there() {
        let index = answer(&[]).unwrap();
        for prefix in index["paths"].as_object().unwrap().keys() {
            let parts: Vec<_> = prefix.split('/').collect();
            assert!(
                !answer(&parts).unwrap()["paths"].as_object().unwrap().is_empty(),
                "{prefix}"
            );
        }
        assert!(answer(&["apis", "none", "v1"]).is_none());
    }
}
