//! Rows for people: what kubectl prints.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    list::{self, Page},
    object,
    resources::Resource,
    store::Stored,
};

/// A column: title, and 0 for always or 1 for `-o wide`.
type Column = (&'static str, u8);

fn columns(kind: &str) -> &'static [Column] {
    match kind {
        "Pod" => &[
            ("Name", 0),
            ("Ready", 0),
            ("Status", 0),
            ("Restarts", 0),
            ("Age", 0),
            ("IP", 1),
            ("Node", 1),
        ],
        "Deployment" => &[
            ("Name", 0),
            ("Ready", 0),
            ("Up-to-date", 0),
            ("Available", 0),
            ("Age", 0),
            ("Images", 1),
        ],
        "ReplicaSet" => &[
            ("Name", 0),
            ("Desired", 0),
            ("Current", 0),
            ("Ready", 0),
            ("Age", 0),
        ],
        "Service" => &[
            ("Name", 0),
            ("Type", 0),
            ("Cluster-IP", 0),
            ("External-IP", 0),
            ("Port(s)", 0),
            ("Age", 0),
        ],
        "Node" => &[
            ("Name", 0),
            ("Status", 0),
            ("Roles", 0),
            ("Age", 0),
            ("Version", 0),
            ("Internal-IP", 1),
        ],
        "Namespace" => &[("Name", 0), ("Status", 0), ("Age", 0)],
        "ConfigMap" => &[("Name", 0), ("Data", 0), ("Age", 0)],
        "Secret" => &[("Name", 0), ("Type", 0), ("Data", 0), ("Age", 0)],
        "ServiceAccount" => &[("Name", 0), ("Secrets", 0), ("Age", 0)],
        "Lease" => &[("Name", 0), ("Holder", 0), ("Age", 0)],
        "Event" => &[
            ("Last Seen", 0),
            ("Type", 0),
            ("Reason", 0),
            ("Object", 0),
            ("Message", 0),
        ],
        _ => &[("Name", 0), ("Age", 0)],
    }
}

fn cells(kind: &str, value: &Value, now: Timestamp) -> Vec<Value> {
    let text = |path: &str| object::text(value, path).to_owned();
    let number = |path: &str| object::number(value, path);
    let count = |path: &str| {
        object::at(value, path)
            .and_then(Value::as_object)
            .map_or(0, serde_json::Map::len)
    };
    let name = object::name(value);
    let age = age(object::text(value, "metadata.creationTimestamp"), now);
    match kind {
        "Pod" => {
            let none = Vec::new();
            let statuses = value["status"]["containerStatuses"].as_array().unwrap_or(&none);
            let ready = statuses.iter().filter(|status| status["ready"] == true).count();
            let restarts: i64 = statuses
                .iter()
                .map(|status| object::number(status, "restartCount"))
                .sum();
            let all = value["spec"]["containers"].as_array().map_or(0, Vec::len);
            let waiting = statuses
                .iter()
                .map(|status| object::text(status, "state.waiting.reason"))
                .find(|r| !r.is_empty());
            let phase = if text("metadata.deletionTimestamp").is_empty() {
                waiting.map_or_else(|| text("status.phase"), str::to_owned)
            } else {
                "Terminating".to_owned()
            };
            vec![
                json!(name),
                json!(format!("{ready}/{all}")),
                json!(phase),
                json!(restarts),
                json!(age),
                json!(or_none(&text("status.podIP"))),
                json!(or_none(&text("spec.nodeName"))),
            ]
        }
        "Deployment" => {
            let ready = format!("{}/{}", number("status.readyReplicas"), number("spec.replicas"));
            vec![
                json!(name),
                json!(ready),
                json!(number("status.updatedReplicas")),
                json!(number("status.availableReplicas")),
                json!(age),
                json!(images(value)),
            ]
        }
        "ReplicaSet" => vec![
            json!(name),
            json!(number("spec.replicas")),
            json!(number("status.replicas")),
            json!(number("status.readyReplicas")),
            json!(age),
        ],
        "Service" => vec![
            json!(name),
            json!(text("spec.type")),
            json!(or_none(&text("spec.clusterIP"))),
            json!("<none>"),
            json!(ports(value)),
            json!(age),
        ],
        "Node" => {
            let none = Vec::new();
            let conditions = value["status"]["conditions"].as_array().unwrap_or(&none);
            let ready = conditions
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            let mut status = if ready { "Ready" } else { "NotReady" }.to_owned();
            if value["spec"]["unschedulable"] == true {
                status.push_str(",SchedulingDisabled");
            }
            let address = value["status"]["addresses"][0]["address"]
                .as_str()
                .unwrap_or("<none>");
            vec![
                json!(name),
                json!(status),
                json!(roles(value)),
                json!(age),
                json!(text("status.nodeInfo.kubeletVersion")),
                json!(address),
            ]
        }
        "Namespace" => vec![json!(name), json!(text("status.phase")), json!(age)],
        "ConfigMap" => vec![
            json!(name),
            json!(count("data") + count("binaryData")),
            json!(age),
        ],
        "Secret" => vec![json!(name), json!(text("type")), json!(count("data")), json!(age)],
        "ServiceAccount" => vec![
            json!(name),
            json!(value["secrets"].as_array().map_or(0, Vec::len)),
            json!(age),
        ],
        "Lease" => vec![json!(name), json!(text("spec.holderIdentity")), json!(age)],
        "Event" => {
            let object = format!(
                "{}/{}",
                text("involvedObject.kind").to_lowercase(),
                text("involvedObject.name")
            );
            let seen = self::age(object::text(value, "lastTimestamp"), now);
            vec![
                json!(seen),
                json!(text("type")),
                json!(text("reason")),
                json!(object),
                json!(text("message")),
            ]
        }
        _ => vec![json!(name), json!(age)],
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

fn images(value: &Value) -> String {
    let none = Vec::new();
    let containers = value["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap_or(&none);
    containers
        .iter()
        .map(|container| object::text(container, "image"))
        .collect::<Vec<_>>()
        .join(",")
}

fn ports(value: &Value) -> String {
    let none = Vec::new();
    let ports = value["spec"]["ports"].as_array().unwrap_or(&none);
    let one = |port: &Value| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        format!("{}/{protocol}", object::number(port, "port"))
    };
    let all: Vec<_> = ports.iter().map(one).collect();
    if all.is_empty() {
        "<none>".to_owned()
    } else {
        all.join(",")
    }
}

fn roles(value: &Value) -> String {
    let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
    let roles: Vec<_> = labels
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    }
}

/// The age of something, in the short words of kubectl.
fn age(since: &str, now: Timestamp) -> String {
    let Ok(since) = since.parse::<Timestamp>() else {
        return "<unknown>".to_owned();
    };
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        120..10_800 => format!("{minutes}m"),
        10_800..28_800 if minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        10_800..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

fn row(kind: &Resource, value: &Value, now: Timestamp) -> Value {
    let object = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]
    });
    json!({"cells": cells(kind.kind, value, now), "object": object})
}

fn table(kind: &Resource, metadata: &Value, rows: &[Value]) -> Value {
    let definitions: Vec<_> = columns(kind.kind)
        .iter()
        .map(|(name, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            let sort = match *name {
                "Restarts" | "Data" | "Desired" | "Current" | "Up-to-date" | "Available" | "Secrets" => {
                    "integer"
                }
                _ => "string",
            };
            json!({"name": name, "type": sort, "format": format, "description": "", "priority": priority})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows
    })
}

/// A page as a table.
pub fn of_page(kind: &Resource, page: &Page, now: Timestamp) -> Value {
    let rows: Vec<_> = page
        .items
        .iter()
        .map(|stored: &Arc<Stored>| row(kind, &stored.value, now))
        .collect();
    table(kind, &list::metadata(page), &rows)
}

/// One object as a table.
pub fn of_one(kind: &Resource, stored: &Stored, now: Timestamp) -> Value {
    let metadata = json!({"resourceVersion": object::text(&stored.value, "metadata.resourceVersion")});
    table(kind, &metadata, &[row(kind, &stored.value, now)])
}

/// A bookmark as a table: a row with nothing but the position.
pub fn bookmark(kind: &Resource, object: &Value, revision: u64) -> Value {
    let metadata = json!({"resourceVersion": revision.to_string()});
    let cells: Vec<_> = columns(kind.kind).iter().map(|_| json!("")).collect();
    let object = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]
    });
    table(kind, &metadata, &[json!({"cells": cells, "object": object})])
}

#[cfg(test)]
mod tests {
    use super::{super::resources::*, *};

    #[test]
    fn every_kind_has_as_many_cells_as_columns() {
        for resource in RESOURCES {
            let value = json!({"metadata": {"name": "x"}});
            let cells = cells(resource.kind, &value, Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), columns(resource.kind).len(), "{}", resource.kind);
        }
    }

    #[test]
    fn ages_read_like_kubectl() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (since, expected) in [
            ("2026-01-09T23:59:30Z", "30s"),
            ("2026-01-09T23:56:30Z", "3m30s"),
            ("2026-01-09T23:30:00Z", "30m"),
            ("2026-01-09T20:30:00Z", "3h30m"),
            ("2026-01-09T10:30:00Z", "13h"),
            ("2026-01-01T00:00:00Z", "9d"),
            ("", "<unknown>"),
        ] {
            assert_eq!(age(since, now), expected);
        }
    }
}
