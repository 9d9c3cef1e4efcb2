//! The controllers and the kubelet of the simulated cluster: deployments become replica sets, these become pods, and
//! pods come up one stage per step: Pending without a node, scheduled and creating, running and ready.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    cluster::Cluster,
    object,
    resources::{RESOURCES, by_plural},
    store::{Key, Stored},
    write::WriteOptions,
};

impl Cluster {
    /// One step towards what was asked for.
    pub fn reconcile(&self) {
        for deployment in self.all("deployments") {
            self.reconcile_deployment(&deployment);
        }
        for set in self.all("replicasets") {
            self.reconcile_set(&set);
        }
        for pod in self.all("pods") {
            self.advance_pod(&pod);
        }
        for deployment in self.all("deployments") {
            self.report(&deployment);
        }
    }

    /// All objects of a kind at this moment.
    pub fn all(&self, plural: &str) -> Vec<Arc<Stored>> {
        self.store
            .snapshot(by_plural(plural), None, None)
            .map(|(_, all)| all)
            .unwrap_or_default()
    }

    /// What an object owns of a kind.
    fn owned(&self, plural: &str, owner: &Value) -> Vec<Arc<Stored>> {
        let uid = object::text(owner, "metadata.uid");
        let namespace = object::namespace(owner);
        let all = self
            .store
            .snapshot(by_plural(plural), Some(namespace), None)
            .map(|(_, all)| all);
        let mut owned = all.unwrap_or_default();
        owned.retain(|inner| inner.value["metadata"]["ownerReferences"][0]["uid"] == uid);
        owned
    }

    /// Writes a status; somebody who deleted the object meanwhile is right.
    pub fn set_status(&self, plural: &str, of: &Value, status: Value) {
        let key = Key::new(by_plural(plural), object::namespace(of), object::name(of));
        let change = |old: &Value| {
            let mut new = old.clone();
            object::as_object(&mut new).insert("status".to_owned(), status);
            Ok(new)
        };
        let _ = self.update(&key, "status", &WriteOptions::default(), change);
    }

    /// One replica set per pod template; older ones are scaled to nothing.
    fn reconcile_deployment(&self, deployment: &Stored) {
        let value = &deployment.value;
        let template = &value["spec"]["template"];
        let hash = template_hash(template);
        let name = format!("{}-{hash}", object::name(value));
        let replicas = object::number(value, "spec.replicas");
        let mut found = false;
        for set in self.owned("replicasets", value) {
            let current = object::name(&set.value) == name;
            found |= current;
            let wanted = if current { replicas } else { 0 };
            if object::number(&set.value, "spec.replicas") != wanted {
                self.scale("replicasets", &set.value, wanted);
            }
        }
        if found {
            return;
        }
        let mut template = template.clone();
        let labels = object::metadata(&mut template)
            .entry("labels")
            .or_insert_with(|| json!({}));
        object::as_object(labels).insert("pod-template-hash".to_owned(), json!(hash));
        let set = json!({
            "metadata": {
                "name": name, "labels": template["metadata"]["labels"], "ownerReferences": [owner(value)]
            },
            "spec": {"replicas": replicas, "selector": value["spec"]["selector"], "template": template}
        });
        if self
            .create(
                by_plural("replicasets"),
                object::namespace(value),
                set,
                &WriteOptions::default(),
            )
            .is_ok()
        {
            self.event(
                value,
                "Normal",
                "ScalingReplicaSet",
                &format!("Scaled up replica set {name} to {replicas}"),
            );
        }
    }

    /// Sets `spec.replicas`.
    pub fn scale(&self, plural: &str, of: &Value, replicas: i64) {
        let key = Key::new(by_plural(plural), object::namespace(of), object::name(of));
        let _ = self.update(&key, "", &WriteOptions::default(), |old| {
            let mut new = old.clone();
            object::child(&mut new, "spec").insert("replicas".to_owned(), json!(replicas));
            Ok(new)
        });
    }

    fn reconcile_set(&self, set: &Stored) {
        let value = &set.value;
        let wanted = usize::try_from(object::number(value, "spec.replicas")).unwrap_or_default();
        let pods = self.owned("pods", value);
        for _ in pods.len()..wanted {
            let template = &value["spec"]["template"];
            let pod = json!({
                "metadata": {
                    "generateName": format!("{}-", object::name(value)), "labels": template["metadata"]["labels"],
                    "ownerReferences": [owner(value)]
                },
                "spec": template["spec"]
            });
            if let Ok(pod) = self.create(
                by_plural("pods"),
                object::namespace(value),
                pod,
                &WriteOptions::default(),
            ) {
                let text = format!("Created pod: {}", object::name(&pod.value));
                self.event(value, "Normal", "SuccessfulCreate", &text);
            }
        }
        for pod in pods.iter().skip(wanted) {
            let key = Key::new(
                by_plural("pods"),
                object::namespace(&pod.value),
                object::name(&pod.value),
            );
            let _ = self.delete(&key, &WriteOptions::default());
            self.event(
                value,
                "Normal",
                "SuccessfulDelete",
                &format!("Deleted pod: {}", key.name),
            );
        }
        let ready = pods
            .iter()
            .take(wanted)
            .filter(|pod| is_ready(&pod.value))
            .count();
        let status = json!({
            "replicas": pods.len().min(wanted), "fullyLabeledReplicas": pods.len().min(wanted),
            "readyReplicas": ready, "availableReplicas": ready,
            "observedGeneration": value["metadata"]["generation"]
        });
        self.set_status("replicasets", value, status);
    }

    fn report(&self, deployment: &Stored) {
        let value = &deployment.value;
        let current = format!(
            "{}-{}",
            object::name(value),
            template_hash(&value["spec"]["template"])
        );
        let sets = self.owned("replicasets", value);
        let sum = |key: &str, of: &dyn Fn(&Value) -> bool| -> i64 {
            let wanted = sets.iter().filter(|set| of(&set.value));
            wanted
                .map(|set| object::number(&set.value, &format!("status.{key}")))
                .sum()
        };
        let all = |_: &Value| true;
        let ready = sum("readyReplicas", &all);
        let available = ready >= object::number(value, "spec.replicas");
        let reason = if available {
            "MinimumReplicasAvailable"
        } else {
            "MinimumReplicasUnavailable"
        };
        let status = json!({
            "replicas": sum("replicas", &all), "readyReplicas": ready, "availableReplicas": ready,
            "updatedReplicas": sum("replicas", &|set| object::name(set) == current),
            "observedGeneration": value["metadata"]["generation"],
            "conditions": [{"type": "Available", "status": if available { "True" } else { "False" }, "reason": reason, "message": ""}]
        });
        self.set_status("deployments", value, status);
    }

    fn advance_pod(&self, pod: &Stored) {
        let value = &pod.value;
        if object::text(value, "status.phase") != "Pending" {
            return;
        }
        if object::text(value, "spec.nodeName").is_empty() {
            self.schedule(value);
            return;
        }
        let status = self.pod_status(value, true);
        self.set_status("pods", value, status);
        self.event(value, "Normal", "Started", "Started container");
        self.logs.append(
            object::namespace(value),
            object::name(value),
            self.clock.micros(),
            "started",
        );
    }

    fn schedule(&self, value: &Value) {
        let nodes = self.all("nodes");
        let Some(node) = self
            .workload_chance
            .pick(&nodes)
            .map(|node| object::name(&node.value))
        else {
            return;
        };
        let key = Key::new(by_plural("pods"), object::namespace(value), object::name(value));
        let scheduled = self.update(&key, "", &WriteOptions::default(), |old| {
            let mut new = old.clone();
            object::child(&mut new, "spec").insert("nodeName".to_owned(), json!(node));
            Ok(new)
        });
        if let Ok(scheduled) = scheduled {
            let text = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
            self.event(value, "Normal", "Scheduled", &text);
            let status = self.pod_status(&scheduled.value, false);
            self.set_status("pods", value, status);
        }
    }

    /// The status of a pod that is coming up, or is up.
    fn pod_status(&self, value: &Value, up: bool) -> Value {
        let now = self.clock.seconds();
        let none = Vec::new();
        let containers = value["spec"]["containers"].as_array().unwrap_or(&none);
        let statuses: Vec<_> = containers
            .iter()
            .map(|container| {
                let state = if up {
                    json!({"running": {"startedAt": now}})
                } else {
                    json!({"waiting": {"reason": "ContainerCreating"}})
                };
                json!({
                    "name": container["name"], "image": container["image"], "imageID": "", "ready": up,
                    "started": up, "restartCount": 0, "state": state, "lastState": {}
                })
            })
            .collect();
        let flag = if up { "True" } else { "False" };
        let condition =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
        let mut status = json!({
            "phase": if up { "Running" } else { "Pending" }, "startTime": now, "qosClass": "Burstable",
            "conditions": [condition("PodScheduled", "True"), condition("ContainersReady", flag), condition("Ready", flag)],
            "containerStatuses": statuses
        });
        if !object::text(value, "spec.nodeName").is_empty() {
            let node = Key::new(by_plural("nodes"), "", object::text(value, "spec.nodeName"));
            let node = self.store.get(&node);
            status["hostIP"] = node.map_or(Value::Null, |node| {
                node.value["status"]["addresses"][0]["address"].clone()
            });
        }
        if up {
            let last = self.workload_chance.below(254) + 1;
            let address = format!("10.244.{}.{last}", self.workload_chance.below(254) + 1);
            status["podIP"] = json!(address);
            status["podIPs"] = json!([{"ip": address}]);
        }
        status
    }

    /// Writes an event about an object.
    pub fn event(&self, about: &Value, kind: &str, reason: &str, message: &str) {
        let namespace = Some(object::namespace(about))
            .filter(|text| !text.is_empty())
            .unwrap_or("default");
        let now = self.clock.seconds();
        let name = format!("{}.{}", object::name(about), self.workload_chance.suffix(10));
        let event = json!({
            "metadata": {"name": name},
            "involvedObject": {
                "kind": about["kind"], "apiVersion": about["apiVersion"], "name": object::name(about),
                "namespace": object::namespace(about), "uid": about["metadata"]["uid"],
                "resourceVersion": about["metadata"]["resourceVersion"]
            },
            "reason": reason, "message": message, "type": kind, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "simulation"},
            "reportingComponent": "simulation", "reportingInstance": "", "eventTime": null
        });
        let _ = self.create(by_plural("events"), namespace, event, &WriteOptions::default());
    }
}

/// Whether all containers of a pod are ready.
pub fn is_ready(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses
        .is_some_and(|statuses| !statuses.is_empty() && statuses.iter().all(|status| status["ready"] == true))
}

fn owner(value: &Value) -> Value {
    debug_assert!(
        RESOURCES.iter().any(|kind| value["kind"] == kind.kind),
        "only kinds of ours own"
    );
    json!({
        "apiVersion": value["apiVersion"], "kind": value["kind"], "name": value["metadata"]["name"],
        "uid": value["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true
    })
}

/// A short name of a template: equal templates, equal names.
fn template_hash(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:08x}", hasher.finish() & 0xffff_ffff)
}
