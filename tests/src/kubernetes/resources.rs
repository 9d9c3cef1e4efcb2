//! The kinds this API serves: one table, from which routing, discovery, defaults and messages are read.

/// One kind of object and how the API treats it.
#[derive(Debug)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version inside the group.
    pub version: &'static str,
    /// Name in paths, for example `pods`.
    pub plural: &'static str,
    /// Name of one, for example `pod`.
    pub singular: &'static str,
    /// Kind of the objects.
    pub kind: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Short names that kubectl takes.
    pub short: &'static [&'static str],
    /// Categories, for `kubectl get all`.
    pub categories: &'static [&'static str],
    /// Whether `status` is a subresource that ordinary writes leave alone.
    pub status: bool,
    /// Whether `metadata.generation` counts changes of the specification.
    pub generation: bool,
    /// Whether an update without a resourceVersion is taken.
    pub unconditional_update: bool,
    /// Whether an update of an object that is not there creates it.
    pub create_on_update: bool,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
}

/// Position in [`RESOURCES`]; also the first part of every key in the store.
pub type ResourceId = usize;

const PLAIN: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    namespaced: true,
    short: &[],
    categories: &[],
    status: false,
    generation: false,
    unconditional_update: true,
    create_on_update: false,
    fields: &[],
};

/// Everything that is served.
pub static RESOURCES: &[Resource] = &[
    Resource {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        namespaced: false,
        short: &["ns"],
        status: true,
        fields: &["status.phase"],
        ..PLAIN
    },
    Resource {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        namespaced: false,
        short: &["no"],
        status: true,
        fields: &["spec.unschedulable"],
        ..PLAIN
    },
    Resource {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short: &["po"],
        categories: &["all"],
        status: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
        ..PLAIN
    },
    Resource {
        plural: "services",
        singular: "service",
        kind: "Service",
        short: &["svc"],
        categories: &["all"],
        status: true,
        create_on_update: true,
        fields: &["spec.clusterIP", "spec.type"],
        ..PLAIN
    },
    Resource {
        plural: "configmaps",
        singular: "configmap",
        kind: "ConfigMap",
        short: &["cm"],
        ..PLAIN
    },
    Resource {
        plural: "secrets",
        singular: "secret",
        kind: "Secret",
        fields: &["type"],
        ..PLAIN
    },
    Resource {
        plural: "events",
        singular: "event",
        kind: "Event",
        short: &["ev"],
        create_on_update: true,
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ..PLAIN
    },
    Resource {
        plural: "serviceaccounts",
        singular: "serviceaccount",
        kind: "ServiceAccount",
        short: &["sa"],
        ..PLAIN
    },
    Resource {
        plural: "endpoints",
        singular: "endpoints",
        kind: "Endpoints",
        short: &["ep"],
        create_on_update: true,
        ..PLAIN
    },
    Resource {
        group: "apps",
        plural: "deployments",
        singular: "deployment",
        kind: "Deployment",
        short: &["deploy"],
        categories: &["all"],
        status: true,
        generation: true,
        ..PLAIN
    },
    Resource {
        group: "apps",
        plural: "replicasets",
        singular: "replicaset",
        kind: "ReplicaSet",
        short: &["rs"],
        categories: &["all"],
        status: true,
        generation: true,
        fields: &["status.replicas"],
        ..PLAIN
    },
    Resource {
        group: "coordination.k8s.io",
        plural: "leases",
        singular: "lease",
        kind: "Lease",
        unconditional_update: false,
        create_on_update: true,
        ..PLAIN
    },
];

impl Resource {
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The name in messages: `pods`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

/// Finds a resource by group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<ResourceId> {
    RESOURCES
        .iter()
        .position(|r| r.group == group && r.version == version && r.plural == plural)
}

/// Finds a resource by its plural alone; plurals are unique here.
///
/// # Panics
/// When no such resource is served: a mistake in the calling test.
pub fn by_plural(plural: &str) -> ResourceId {
    RESOURCES
        .iter()
        .position(|r| r.plural == plural)
        .unwrap_or_else(|| panic!("the simulation serves no resource `{plural}`"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn plurals_and_kinds_are_unique() {
        let plurals: BTreeSet<_> = RESOURCES.iter().map(|r| r.plural).collect();
        let kinds: BTreeSet<_> = RESOURCES.iter().map(|r| r.kind).collect();
        assert_eq!((plurals.len(), kinds.len()), (RESOURCES.len(), RESOURCES.len()));
    }

    #[test]
    fn groups_show_in_names() {
        let deployments = &RESOURCES[by_plural("deployments")];
        assert_eq!(deployments.api_version(), "apps/v1");
        assert_eq!(deployments.qualified(), "deployments.apps");
        assert_eq!(RESOURCES[by_plural("pods")].api_version(), "v1");
    }
}
