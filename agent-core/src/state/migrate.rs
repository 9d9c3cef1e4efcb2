//! Where agents before this one kept their identity. Read once when ours has none; the originals stay.

use std::path::{Path, PathBuf};

use tracing::{debug, info};

use super::{AGENT_ID, CLUSTER_ID, CLUSTER_TOKEN, Stored, file, secret};
use crate::{config::StateConfig, kubernetes::Door};

/// The Go agent's Secret; its name was fixed.
const GO_SECRET: &str = "pipeops-agent-secrets";

/// The identity of an earlier agent in the places that can be read, if there is one.
pub(crate) async fn find(config: &StateConfig, door: Option<&Door>, root: &Path) -> Option<Stored> {
    if let Some(door) = door
        && let Some(stored) = from_cluster(config, door).await
    {
        return Some(stored);
    }
    from_files(&yaml_files(root, &config.file), &legacy_dirs(root))
}

/// ConfigMap and Secret of the Go agent. k8s-proxy's built-in policy does not allow them; an owner who wants the
/// old identity carried over grants the two reads for one start.
async fn from_cluster(config: &StateConfig, door: &Door) -> Option<Stored> {
    let namespace = &config.namespace;
    let map = match door.config_map(namespace, &config.configmap_name).await {
        Ok(map) => map?,
        Err(error) => {
            debug!(%error, "cannot look for the identity of an earlier agent");
            return None;
        }
    };
    let mut stored: Stored = map.data.unwrap_or_default().into_iter().collect();
    if !stored.has_identity() {
        return None;
    }
    if let Ok(Some(secret)) = door.secret(namespace, GO_SECRET).await {
        stored.merge(&secret::read(&secret));
    }
    info!(
        configmap = config.configmap_name,
        namespace, "took over the identity of an earlier agent"
    );
    Some(stored)
}

fn yaml_files(root: &Path, own: &Path) -> Vec<PathBuf> {
    ["var/lib/pipeops/agent-state.yaml", "etc/pipeops/agent-state.yaml"]
        .iter()
        .map(|path| root.join(path))
        .chain([
            PathBuf::from("tmp/agent-state.yaml"),
            PathBuf::from(".pipeops-agent-state.yaml"),
        ])
        .filter(|path| path != own)
        .collect()
}

fn legacy_dirs(root: &Path) -> Vec<(PathBuf, &'static str)> {
    vec![
        (root.join("var/lib/pipeops"), ""),
        (root.join("etc/pipeops"), ""),
        (PathBuf::from("."), ".pipeops-"),
    ]
}

fn from_files(yaml: &[PathBuf], legacy: &[(PathBuf, &'static str)]) -> Option<Stored> {
    for path in yaml {
        match file::read(path) {
            Ok(Some(stored)) if stored.has_identity() => {
                info!(path = %path.display(), "took over the identity of an earlier agent");
                return Some(stored);
            }
            Ok(_) => {}
            Err(error) => debug!(path = %path.display(), %error, "cannot read an earlier state file"),
        }
    }
    for (dir, prefix) in legacy {
        let names = [
            ("agent-id", AGENT_ID),
            ("cluster-id", CLUSTER_ID),
            ("cluster-token", CLUSTER_TOKEN),
        ];
        let stored: Stored = names
            .into_iter()
            .filter_map(|(name, key)| {
                Some((
                    key,
                    std::fs::read_to_string(dir.join(format!("{prefix}{name}"))).ok()?,
                ))
            })
            .collect();
        if stored.has_identity() {
            info!(dir = %dir.display(), "took over the identity of an earlier agent from its single files");
            return Some(stored);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_earlier_place_is_read() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("var/lib/pipeops/agent-state.yaml");
        let files = yaml_files(root.path(), Path::new("/elsewhere"));
        let legacy = [
            (root.path().join("var/lib/pipeops"), ""),
            (root.path().to_path_buf(), ".pipeops-"),
        ];
        assert_eq!(from_files(&files, &legacy), None);

        std::fs::write(root.path().join(".pipeops-agent-id"), "agent-dot\n").unwrap();
        assert_eq!(
            from_files(&files, &legacy).unwrap().get(AGENT_ID),
            Some("agent-dot")
        );

        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        std::fs::write(root.path().join("var/lib/pipeops/agent-id"), "agent-file\n").unwrap();
        std::fs::write(root.path().join("var/lib/pipeops/cluster-id"), "uuid\n").unwrap();
        let stored = from_files(&files, &legacy).unwrap();
        assert_eq!(
            (stored.get(AGENT_ID), stored.get(CLUSTER_ID)),
            (Some("agent-file"), Some("uuid"))
        );

        std::fs::write(&own, "agent_id: agent-yaml\n").unwrap();
        assert_eq!(
            from_files(&files, &legacy).unwrap().get(AGENT_ID),
            Some("agent-yaml")
        );
        assert!(
            !yaml_files(root.path(), &own).contains(&own),
            "our own file is no earlier one"
        );
    }
}
