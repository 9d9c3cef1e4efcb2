//! Who knocks, and with which credential their calls go upstream.

use std::{fmt, sync::Arc};

use proto::v1::{AcceptedToken, CredentialMode};
use runtime::secret;

/// Which credential goes upstream. Set per door, never guessed, never mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The pod's own token.
    Agent,
    /// The caller's own `Authorization`, or 401.
    Caller,
    /// The pod's own token, with the person the caller speaks for.
    Impersonate,
}

impl Mode {
    /// Reads the wire form; an unknown one opens no door.
    pub fn from_proto(mode: i32) -> Option<Self> {
        match CredentialMode::try_from(mode).ok()? {
            CredentialMode::Unspecified => None,
            CredentialMode::Agent => Some(Self::Agent),
            CredentialMode::Caller => Some(Self::Caller),
            CredentialMode::Impersonate => Some(Self::Impersonate),
        }
    }

    /// The word people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Caller => "caller",
            Self::Impersonate => "impersonate",
        }
    }
}

/// One identity that was let in through a door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name for policy and audit.
    pub name: String,
    /// Groups for policy.
    pub groups: Vec<String>,
    /// Credential for its calls.
    pub mode: Mode,
    /// The fixed identity of our own sibling: the owner's rules do not apply, the built-in ones do. A flag and not
    /// the name, so that no accepted token can get it by being called so.
    pub agent_core: bool,
    /// Digest of the credential it came with, so that a withdrawn one ends its connections.
    pub digest: Option<[u8; 32]>,
    who: Arc<Who>,
}

impl Caller {
    /// An identity under the owner's rules.
    pub fn new(name: impl Into<String>, groups: Vec<String>, mode: Mode) -> Self {
        let name = name.into();
        let who = Who {
            user: name.clone(),
            groups: groups.clone(),
            impersonated: false,
        };
        Self {
            name,
            groups,
            mode,
            agent_core: false,
            digest: None,
            who: Arc::new(who),
        }
    }

    /// Whom its calls are for while it speaks for nobody else.
    pub fn who(&self) -> Arc<Who> {
        Arc::clone(&self.who)
    }

    /// Our sibling agent-core.
    pub fn agent_core() -> Self {
        Self {
            agent_core: true,
            ..Self::new("agent-core", Vec::new(), Mode::Agent)
        }
    }
}

/// Who a call is for, as the policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// User name.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
    /// It is a person the caller speaks for.
    pub impersonated: bool,
}

/// The tokens that may knock, known by digest only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    callers: Vec<Arc<Caller>>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.callers.iter().map(|caller| &caller.name))
            .finish()
    }
}

impl Accepted {
    /// Takes what a spec accepts; entries without a mode or with a digest of another length open nothing and are
    /// returned by name.
    pub fn from_spec(tokens: &[AcceptedToken]) -> (Self, Vec<String>) {
        let (mut callers, mut unusable) = (Vec::new(), Vec::new());
        for token in tokens {
            let digest = <[u8; 32]>::try_from(token.sha256.as_ref()).ok();
            match (Mode::from_proto(token.mode), digest) {
                (Some(mode), Some(digest)) => {
                    let caller = Caller::new(token.name.clone(), token.groups.clone(), mode);
                    callers.push(Arc::new(Caller {
                        digest: Some(digest),
                        ..caller
                    }));
                }
                _ => unusable.push(token.name.clone()),
            }
        }
        (Self { callers }, unusable)
    }

    /// Who holds `token`. Every entry is compared, each in constant time.
    pub fn find(&self, token: &str) -> Option<Arc<Caller>> {
        let digest = secret::sha256(token.as_bytes());
        let mut found = None;
        for caller in &self.callers {
            if caller
                .digest
                .is_some_and(|accepted| secret::same(&accepted, &digest))
                && found.is_none()
            {
                found = Some(Arc::clone(caller));
            }
        }
        found
    }

    /// Whether the very identity is still let in.
    pub fn still_holds(&self, caller: &Caller) -> bool {
        self.callers.iter().any(|accepted| **accepted == *caller)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.callers.len()
    }

    /// Whether nobody is let in.
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, name: &str, mode: CredentialMode) -> AcceptedToken {
        AcceptedToken {
            sha256: secret::sha256(text.as_bytes()).to_vec().into(),
            name: name.to_owned(),
            mode: mode.into(),
            groups: vec!["g".to_owned()],
        }
    }

    #[test]
    fn only_the_very_token_is_let_in() {
        let (accepted, unusable) = Accepted::from_spec(&[
            token("one", "control-plane", CredentialMode::Agent),
            token("two", "runner", CredentialMode::Caller),
            token("three", "nobody", CredentialMode::Unspecified),
            AcceptedToken {
                sha256: vec![1, 2].into(),
                ..token("", "short", CredentialMode::Agent)
            },
        ]);
        assert_eq!(unusable, ["nobody", "short"]);
        let runner = accepted.find("two").unwrap();
        assert_eq!(
            (runner.name.as_str(), runner.mode, runner.agent_core),
            ("runner", Mode::Caller, false)
        );
        for wrong in ["", "One", "one ", "three"] {
            assert!(accepted.find(wrong).is_none(), "{wrong:?}");
        }
        assert!(accepted.still_holds(&runner));
        let (changed, _) = Accepted::from_spec(&[token("two", "runner", CredentialMode::Agent)]);
        assert!(!changed.still_holds(&runner), "another mode is another identity");
    }

    #[test]
    fn no_accepted_token_becomes_agent_core_by_its_name() {
        let (accepted, _) = Accepted::from_spec(&[token("x", "agent-core", CredentialMode::Agent)]);
        assert!(!accepted.find("x").unwrap().agent_core);
    }
}
