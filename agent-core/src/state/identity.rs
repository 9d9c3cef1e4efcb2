//! How an agent id is born when the owner gives none: the same on each start, different for each clone.

use std::{fs, path::Path};

use runtime::secret::{hex, sha256};

use crate::config::PodConfig;

/// What an agent id is made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub(crate) hostname: String,
    pub(crate) machine_id: Option<String>,
    pub(crate) pod_uid: Option<String>,
    pub(crate) pod_name: Option<String>,
    pub(crate) namespace: Option<String>,
}

impl Origin {
    pub(crate) fn of(pod: &PodConfig, root: &Path) -> Self {
        Self {
            hostname: hostname(root),
            machine_id: read(&root.join("etc/machine-id")).filter(|id| id.len() >= 32),
            pod_uid: pod.uid.clone(),
            pod_name: pod.name.clone(),
            namespace: pod.namespace.clone(),
        }
    }

    /// `agent-` and 16 hexadecimal digits. Without a machine id and a pod UID two clones would look alike, so
    /// chance decides; the id is stored before it is used.
    pub(crate) fn agent_id(&self) -> String {
        let chance =
            (self.machine_id.is_none() && self.pod_uid.is_none()).then(|| hex(&rand::random::<[u8; 16]>()));
        let parts = [
            Some(self.hostname.as_str()),
            self.machine_id.as_deref(),
            self.pod_uid.as_deref(),
            self.namespace.as_deref(),
            self.pod_name.as_deref(),
            chance.as_deref(),
        ];
        let joined = parts.map(Option::unwrap_or_default).join("|");
        let digest = hex(&sha256(joined.as_bytes()));
        format!("agent-{}", digest.get(..16).unwrap_or(&digest))
    }
}

/// The host's name as the kernel tells it.
pub(crate) fn hostname(root: &Path) -> String {
    read(&root.join("proc/sys/kernel/hostname")).unwrap_or_else(|| "unknown".to_owned())
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Which id the agent goes by. The owner's wins, with one exception: manifests of earlier agents set the id to
/// the pod's UID, which would make a new agent of each pod. There the stored one stays.
pub(crate) fn choose(
    configured: Option<&str>,
    stored: Option<&str>,
    pod: &PodConfig,
) -> (Option<String>, Option<String>) {
    match (configured, stored) {
        (Some(configured), Some(stored)) if configured != stored => {
            if pod.uid.as_deref() == Some(configured) || uuid::Uuid::parse_str(configured).is_ok() {
                let note = format!(
                    "agent.id {configured} looks like the pod's UID, which changes with each pod; \
                     the stored agent id {stored} stays"
                );
                (Some(stored.to_owned()), Some(note))
            } else {
                let note = format!("agent.id {configured} replaces the stored agent id {stored}");
                (Some(configured.to_owned()), Some(note))
            }
        }
        (Some(id), _) | (None, Some(id)) => (Some(id.to_owned()), None),
        (None, None) => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_machine_gives_the_same_id_and_a_clone_another() {
        let origin = Origin {
            hostname: "vm".to_owned(),
            machine_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            ..Origin::default()
        };
        assert_eq!(origin.agent_id(), origin.agent_id());
        assert_eq!(origin.agent_id().len(), "agent-".len() + 16);
        let pod = Origin {
            pod_uid: Some("u".to_owned()),
            ..origin.clone()
        };
        assert_ne!(pod.agent_id(), origin.agent_id());
        let bare = Origin {
            machine_id: None,
            ..origin
        };
        assert_ne!(
            bare.agent_id(),
            bare.agent_id(),
            "clones without any mark are told apart by chance"
        );
    }

    #[test]
    fn a_pod_uid_does_not_replace_a_stored_id() {
        let pod = PodConfig {
            uid: Some("pod-uid".to_owned()),
            ..PodConfig::default()
        };
        let id = |configured, stored| choose(configured, stored, &pod).0;
        assert_eq!(id(Some("pod-uid"), Some("agent-1")).as_deref(), Some("agent-1"));
        let uuid = "550e8400-e29b-41d4-a716-446655440000";
        assert_eq!(id(Some(uuid), Some("agent-1")).as_deref(), Some("agent-1"));
        assert_eq!(id(Some("mine"), Some("agent-1")).as_deref(), Some("mine"));
        assert_eq!(id(Some(uuid), None).as_deref(), Some(uuid));
        assert_eq!(id(None, Some("agent-1")).as_deref(), Some("agent-1"));
        assert_eq!(id(None, None), None);
    }
}
