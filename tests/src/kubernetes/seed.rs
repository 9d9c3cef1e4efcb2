//! What the cluster holds before anything happens.

use serde_json::{Value, json};

use super::{cluster::Cluster, resources::by_plural, status::Status, write::WriteOptions};

/// Where the chart installs.
pub const AGENT_NAMESPACE: &str = "pipeops-system";

const NAMESPACES: &[&str] = &[
    "default",
    "kube-node-lease",
    "kube-public",
    "kube-system",
    AGENT_NAMESPACE,
    "shop",
];

/// Ticks after which everything that was asked for runs.
const SETTLE: usize = 4;

/// Fills an empty cluster, lets it come up, and forgets how it got there.
///
/// # Errors
/// When an object is refused: a mistake in this file.
pub fn fill(cluster: &Cluster, nodes: usize) -> Result<(), Status> {
    let put = |plural: &str, namespace: &str, value: Value| {
        cluster
            .create(by_plural(plural), namespace, value, &WriteOptions::default())
            .map(drop)
    };
    for namespace in NAMESPACES {
        put("namespaces", "", json!({"metadata": {"name": namespace}}))?;
    }
    for number in 1..=nodes {
        put("nodes", "", node(number))?;
        put(
            "leases",
            "kube-node-lease",
            json!({
                "metadata": {"name": format!("node-{number}")},
                "spec": {
                    "holderIdentity": format!("node-{number}"), "leaseDurationSeconds": 40,
                    "renewTime": cluster.clock.micros()
                }
            }),
        )?;
    }
    put(
        "serviceaccounts",
        AGENT_NAMESPACE,
        json!({"metadata": {"name": "pipeops-agent"}}),
    )?;
    put("services", "default", service("kubernetes", json!({}), 443))?;
    put(
        "services",
        "kube-system",
        service("kube-dns", json!({"k8s-app": "kube-dns"}), 53),
    )?;
    put("services", "shop", service("web", json!({"app": "web"}), 80))?;
    put("services", "shop", service("api", json!({"app": "api"}), 8080))?;
    put(
        "configmaps",
        "shop",
        json!({
            "metadata": {"name": "web-config"}, "data": {"greeting": "hello", "generation": "1"}
        }),
    )?;
    put(
        "secrets",
        "shop",
        json!({
            "metadata": {"name": "api-credentials"}, "stringData": {"password": "not-a-real-password"}
        }),
    )?;
    put(
        "deployments",
        "kube-system",
        deployment("coredns", json!({"k8s-app": "kube-dns"}), 2),
    )?;
    put("deployments", "shop", deployment("web", json!({"app": "web"}), 3))?;
    put("deployments", "shop", deployment("api", json!({"app": "api"}), 2))?;
    for _ in 0..SETTLE {
        cluster.reconcile();
    }
    cluster.store.compact();
    Ok(())
}

fn node(number: usize) -> Value {
    let name = format!("node-{number}");
    let mut labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"
    });
    if number == 1 {
        labels["node-role.kubernetes.io/control-plane"] = json!("");
    }
    let resources = json!({"cpu": "4", "memory": "8145Mi", "pods": "110", "ephemeral-storage": "50Gi"});
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": ""});
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": format!("10.244.{number}.0/24")},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady")
            ],
            "addresses": [
                {"type": "InternalIP", "address": format!("10.0.0.{number}")}, {"type": "Hostname", "address": name}
            ],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "6.1.0", "osImage": "Simulated",
                "containerRuntimeVersion": "none://0", "kubeletVersion": super::discovery::VERSION,
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"
            }
        }
    })
}

fn service(name: &str, selector: Value, port: u16) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "selector": selector,
            "ports": [{"name": "main", "port": port, "targetPort": port, "protocol": "TCP"}]
        }
    })
}

fn deployment(name: &str, labels: Value, replicas: u64) -> Value {
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": name, "image": format!("registry.example/{name}:1"),
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}
                }]}
            }
        }
    })
}
