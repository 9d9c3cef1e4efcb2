//! Which token may call which method.

use http::HeaderMap;
use secrecy::ExposeSecret as _;
use tonic::Status;
use tracing::warn;

use super::{VERSION_KEY, WAITING};
use crate::{
    build::BuildInfo,
    secret::{TokenFile, same},
};

/// Who a caller is, known by its token. Handlers find it in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A person or a tool.
    Operator,
    /// The process that hands out desired state.
    Core,
    /// The process that holds the tunnel.
    Tunnel,
    /// The process that carries requests.
    Proxy,
}

/// Services that anybody on the loopback may call.
const OPEN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

#[derive(Debug)]
struct Rule {
    role: Role,
    token: TokenFile,
    methods: &'static [&'static str],
}

/// Token to role to methods, for one server.
#[derive(Debug, Default)]
pub struct Access {
    rules: Vec<Rule>,
}

impl Access {
    /// Nobody may call anything but health and reflection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whoever holds the token in `token` is `role` and may call `methods`: full paths
    /// (`/package.Service/Method`), or `/package.Service/*` for all of a service.
    #[must_use]
    pub fn allow(mut self, role: Role, token: TokenFile, methods: &'static [&'static str]) -> Self {
        self.rules.push(Rule { role, token, methods });
        self
    }

    /// The role of the caller, `None` for the open services.
    pub(super) fn admit(
        &self,
        method: &str,
        headers: &HeaderMap,
        build: BuildInfo,
    ) -> Result<Option<Role>, Status> {
        if OPEN.iter().any(|open| method.starts_with(open)) {
            return Ok(None);
        }
        let presented = headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let presented = presented
            .and_then(|text| text.strip_prefix("Bearer "))
            .unwrap_or_default()
            .trim();
        let mut waiting = false;
        for rule in &self.rules {
            match rule.token.read() {
                Ok(Some(token)) if same(token.expose_secret().as_bytes(), presented.as_bytes()) => {
                    return rule
                        .decide(method)
                        .and_then(|role| same_version(headers, build).map(|()| Some(role)));
                }
                Ok(Some(_)) => {}
                Ok(None) => waiting |= rule.may(method),
                Err(error) => {
                    warn!(path = %rule.token.path().display(), %error, "cannot read a token file");
                    waiting |= rule.may(method);
                }
            }
        }
        Err(if waiting {
            Status::unavailable(WAITING)
        } else if presented.is_empty() {
            Status::unauthenticated(
                "no token: send `authorization: Bearer <token>`; `<binary> token` prints one",
            )
        } else {
            Status::unauthenticated("this token opens nothing here")
        })
    }
}

impl Rule {
    fn may(&self, method: &str) -> bool {
        self.methods
            .iter()
            .any(|allowed| match allowed.strip_suffix('*') {
                Some(service) => method.starts_with(service),
                None => *allowed == method,
            })
    }

    fn decide(&self, method: &str) -> Result<Role, Status> {
        if self.may(method) {
            Ok(self.role)
        } else {
            Err(Status::permission_denied(format!(
                "role {:?} may not call {method}",
                self.role
            )))
        }
    }
}

fn same_version(headers: &HeaderMap, build: BuildInfo) -> Result<(), Status> {
    match headers.get(VERSION_KEY).and_then(|value| value.to_str().ok()) {
        Some(theirs) if theirs != build.version => Err(Status::failed_precondition(format!(
            "{} {} does not talk to version {theirs}: all containers of a pod must be of one version",
            build.name, build.version
        ))),
        Some(_) | None => Ok(()),
    }
}
