//! The owner's policy file, read again while we run. A file that does not read leaves the rules in force as they are
//! and says so in condition `Policy`.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use runtime::{conditions::Status, supervise::Supervisor};
use tracing::{info, warn};

use super::{Policy, file};
use crate::shared::{POLICY, Shared};

/// How often the file is looked at. A ConfigMap comes as links to folders, which no watch on the file would see.
const INTERVAL: Duration = Duration::from_secs(2);

/// What the file held when it was last looked at.
pub type Seen = Option<Result<String, io::ErrorKind>>;

/// Follows the file until the drain.
pub async fn follow(path: PathBuf, mut last: Seen, shared: Shared, supervisor: Supervisor) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => look(&path, &shared, &mut last),
            () = supervisor.draining() => return,
        }
    }
}

/// Reads the file; does nothing when it reads as it did before.
pub fn look(path: &Path, shared: &Shared, last: &mut Seen) {
    let read = std::fs::read_to_string(path);
    let seen = read.as_ref().cloned().map_err(io::Error::kind);
    if last.as_ref() == Some(&seen) {
        return;
    }
    *last = Some(seen);
    let name = path.display().to_string();
    let parsed = match read {
        Ok(text) => file::parse(&text, &name).map_err(|error| error.to_string()),
        Err(error) => Err(format!("{name} cannot be read: {error}")),
    };
    match parsed {
        Ok(policy) => {
            info!(
                file = name,
                rules = policy.len(),
                read_only = policy.read_only,
                "policy in force"
            );
            shared.conditions().set(POLICY, Status::True, describe(&policy));
            shared.set_policy(policy);
        }
        Err(error) => {
            warn!(
                file = name,
                error, "the policy file does not read; the rules before it stay in force"
            );
            let kept = shared.policy().source.clone();
            shared
                .conditions()
                .set(POLICY, Status::False, format!("{error}; in force: {kept}"));
        }
    }
}

/// The policy in a sentence.
pub fn describe(policy: &Policy) -> String {
    let writes = if policy.read_only {
        ", every write is refused"
    } else {
        ""
    };
    format!("{} with {} rules{writes}", policy.source, policy.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Scope;
    use runtime::conditions::Conditions;

    #[test]
    fn a_broken_file_leaves_the_rules_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        let conditions = Conditions::new();
        let shared = Shared::new(conditions.clone(), Policy::builtin().unwrap(), Scope::default());
        let status = || {
            conditions
                .snapshot()
                .into_iter()
                .find(|condition| condition.name == POLICY)
                .unwrap()
        };
        let mut last = None;
        look(&path, &shared, &mut last);
        assert_eq!(status().status, Status::False);
        assert!(status().reason.contains("built-in rules"));
        std::fs::write(&path, "readOnly: true").unwrap();
        look(&path, &shared, &mut last);
        assert!(shared.policy().read_only);
        assert_eq!(status().status, Status::True);
        std::fs::write(&path, "readOnly: maybe").unwrap();
        look(&path, &shared, &mut last);
        assert!(shared.policy().read_only, "the old rules stay");
        assert_eq!(status().status, Status::False);
        std::fs::write(&path, "readOnly: false").unwrap();
        look(&path, &shared, &mut last);
        assert!(!shared.policy().read_only);
    }
}
