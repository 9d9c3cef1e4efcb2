//! Which token opens which door.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use runtime::secret::{self, ExposeSecret as _, TokenFile};
use tracing::warn;

use crate::{
    headers,
    identity::{Caller, Mode},
    shared::Shared,
    status::Failure,
    streams::lock,
};

/// Opens a door in mode `caller`, where `Authorization` is the caller's own for Kubernetes.
pub const DOOR_TOKEN: HeaderName = HeaderName::from_static("x-pipeops-token");

/// What was let in.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Who.
    pub caller: Arc<Caller>,
    /// Its own Kubernetes credential, in mode `caller`.
    pub authorization: Option<HeaderValue>,
}

/// Compares what arrives with what is accepted; clones share it.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Shared,
    edge: TokenFile,
    edge_digest: Arc<Mutex<Option<[u8; 32]>>>,
    agent_core: Arc<Caller>,
}

impl Gate {
    /// `edge` holds the token that agent-core shares with us and with nobody else.
    pub fn new(shared: Shared, edge: TokenFile) -> Self {
        Self {
            shared,
            edge,
            edge_digest: Arc::default(),
            agent_core: Arc::new(Caller::agent_core()),
        }
    }

    /// Who may make plain HTTP requests.
    ///
    /// # Errors
    /// 401 with what to send.
    pub fn admit_http(&self, headers: &HeaderMap) -> Result<Admitted, Failure> {
        if let Some(token) = headers.get(&DOOR_TOKEN) {
            let token = token.to_str().map_err(|_| unknown())?.trim();
            let caller = self.accepted(token)?;
            let authorization = headers
                .get(header::AUTHORIZATION)
                .filter(|_| caller.mode == Mode::Caller)
                .cloned();
            return Ok(Admitted {
                caller,
                authorization,
            });
        }
        let token = headers::bearer(headers).ok_or_else(nothing)?;
        // Most calls come with an accepted token: the file of the edge is looked at for the others only.
        let caller = match self.accepted(token) {
            Ok(caller) => caller,
            Err(_) if self.is_edge(token) => Arc::clone(&self.agent_core),
            Err(refused) => return Err(refused),
        };
        if caller.mode == Mode::Caller {
            let sentence = "this token passes the caller's own credential on: send it as X-Pipeops-Token, and your Kubernetes credential as Authorization";
            return Err(Failure::new(
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                sentence,
            ));
        }
        Ok(Admitted {
            caller,
            authorization: None,
        })
    }

    /// Who may open a WebSocket. The token of agent-core is none for it.
    ///
    /// # Errors
    /// 401 with what to send.
    pub fn admit_websocket(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Failure> {
        let token = match headers.get(&DOOR_TOKEN) {
            Some(token) => token.to_str().map_err(|_| unknown())?.trim(),
            None => headers::bearer(headers).ok_or_else(nothing)?,
        };
        self.accepted(token)
    }

    fn accepted(&self, token: &str) -> Result<Arc<Caller>, Failure> {
        let accepted = self.shared.accepted();
        let accepted = accepted.borrow();
        accepted
            .find(token)
            .ok_or_else(|| if accepted.is_empty() { not_yet() } else { unknown() })
    }

    /// The token never changes while the pod lives, so its digest is kept; but another pod's file (outside of a
    /// cluster: another start) may have another, so a mismatch reads it again.
    fn is_edge(&self, token: &str) -> bool {
        let digest = secret::sha256(token.as_bytes());
        if lock(&self.edge_digest).is_some_and(|edge| secret::same(&edge, &digest)) {
            return true;
        }
        let read = match self.edge.read() {
            Ok(read) => read.map(|token| secret::sha256(token.expose_secret().as_bytes())),
            Err(error) => {
                warn!(path = %self.edge.path().display(), %error, "cannot read the token that agent-core shares with us");
                None
            }
        };
        *lock(&self.edge_digest) = read;
        read.is_some_and(|edge| secret::same(&edge, &digest))
    }
}

fn nothing() -> Failure {
    let sentence = "this door needs a credential: send Authorization: Bearer <token>";
    Failure::new(StatusCode::UNAUTHORIZED, "unauthenticated", sentence)
}

/// Right after a start: a client takes 401 for a verdict on its token, and gives up.
fn not_yet() -> Failure {
    let sentence = "no token is known here yet: agent-core names them within seconds of a start";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "starting", sentence).retry_after(1)
}

fn unknown() -> Failure {
    Failure::new(
        StatusCode::UNAUTHORIZED,
        "unauthenticated",
        "this token opens nothing here",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Accepted,
        policy::{Policy, Scope},
    };
    use proto::v1::{AcceptedToken, CredentialMode};
    use runtime::conditions::Conditions;

    fn gate(dir: &std::path::Path) -> Gate {
        std::fs::write(dir.join("token"), "edge-token\n").unwrap();
        let shared = Shared::new(Conditions::new(), Policy::builtin().unwrap(), Scope::default());
        let token = |text: &str, mode: CredentialMode| AcceptedToken {
            sha256: secret::sha256(text.as_bytes()).to_vec().into(),
            name: text.to_owned(),
            mode: mode.into(),
            groups: vec![],
        };
        let tokens = [
            token("agent", CredentialMode::Agent),
            token("caller", CredentialMode::Caller),
        ];
        shared.set_accepted(Accepted::from_spec(&tokens).0);
        Gate::new(shared, TokenFile::new(dir.join("token")))
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    name.parse::<HeaderName>().unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn before_the_first_spec_a_token_is_neither_right_nor_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(Conditions::new(), Policy::builtin().unwrap(), Scope::default());
        let gate = Gate::new(shared, TokenFile::new(dir.path().join("token")));
        let asked = headers(&[("authorization", "Bearer anything")]);
        let failure = gate.admit_http(&asked).unwrap_err();
        assert_eq!((failure.code.as_u16(), failure.retry_after), (503, Some(1)));
        assert_eq!(gate.admit_http(&headers(&[])).unwrap_err().code.as_u16(), 401);
    }

    #[test]
    fn each_token_opens_its_doors_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(dir.path());
        let http = |pairs: &[(&str, &str)]| match gate.admit_http(&headers(pairs)) {
            Ok(admitted) => format!("{} {}", admitted.caller.name, admitted.authorization.is_some()),
            Err(failure) => failure.code.as_u16().to_string(),
        };
        assert_eq!(http(&[]), "401");
        assert_eq!(http(&[("authorization", "Bearer wrong")]), "401");
        assert_eq!(http(&[("authorization", "Basic agent")]), "401");
        assert_eq!(http(&[("authorization", "Bearer agent")]), "agent false");
        assert_eq!(
            http(&[("authorization", "Bearer edge-token")]),
            "agent-core false"
        );
        assert_eq!(
            http(&[("authorization", "Bearer caller")]),
            "401",
            "it needs the caller's own as well"
        );
        assert_eq!(
            http(&[("x-pipeops-token", "caller"), ("authorization", "Bearer own")]),
            "caller true"
        );
        assert_eq!(
            http(&[("x-pipeops-token", "agent"), ("authorization", "Bearer own")]),
            "agent false"
        );
        assert_eq!(
            http(&[("x-pipeops-token", "edge-token")]),
            "401",
            "only as what it is"
        );
        let socket = |pairs: &[(&str, &str)]| {
            gate.admit_websocket(&headers(pairs))
                .map(|caller| caller.name.clone())
        };
        assert_eq!(socket(&[("authorization", "Bearer caller")]).unwrap(), "caller");
        assert!(socket(&[("authorization", "Bearer edge-token")]).is_err());
        assert!(socket(&[]).is_err());
    }

    #[test]
    fn an_edge_token_that_comes_late_or_anew_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(dir.path());
        assert!(gate.is_edge("edge-token"));
        std::fs::write(dir.path().join("token"), "another").unwrap();
        assert!(gate.is_edge("another"));
        assert!(!gate.is_edge("edge-token"));
        std::fs::remove_file(dir.path().join("token")).unwrap();
        assert!(!gate.is_edge("") && !gate.is_edge("x"));
    }
}
