//! Who is calling, and what is refused to whom.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use super::{resources::Resource, status::Status};

/// The group that may do everything, impersonation included.
const MASTERS: &str = "system:masters";

/// The user who may do nothing, as anybody without a role in a real cluster.
const NOBODY: &str = "nobody";

/// Somebody who knows a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Bearer token.
    pub token: String,
    /// User name.
    pub name: String,
    /// Groups; `system:authenticated` is added.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether it may impersonate; `system:masters` always may.
    #[serde(default)]
    pub impersonate: bool,
}

impl User {
    /// A user without groups who may not impersonate.
    pub fn new(token: &str, name: &str) -> Self {
        Self {
            token: token.to_owned(),
            name: name.to_owned(),
            groups: Vec::new(),
            impersonate: false,
        }
    }
}

/// As whom a request is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Effective user.
    pub user: String,
    /// Effective groups.
    pub groups: Vec<String>,
    /// Who impersonates, if somebody does.
    pub impersonator: Option<String>,
}

/// What is refused. An absent field matches everything; otherwise it must be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deny {
    /// Effective user.
    pub user: Option<String>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: Option<String>,
    /// API group; empty is the core group.
    pub group: Option<String>,
    /// Plural, for example `secrets`.
    pub resource: Option<String>,
    /// Subresource, for example `log`.
    pub subresource: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
}

/// One question to the authoriser.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Verb.
    pub verb: &'a str,
    /// Kind.
    pub resource: &'a Resource,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Name or empty.
    pub name: &'a str,
}

/// Tokens and rules, both changeable while it runs.
#[derive(Debug)]
pub struct Auth {
    users: Mutex<HashMap<String, User>>,
    deny: Mutex<Vec<Deny>>,
    anonymous: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Auth {
    /// With these users; `anonymous`: whether a request without a token is served as `system:anonymous`.
    pub fn new(users: &[User], anonymous: bool) -> Self {
        let users = users
            .iter()
            .map(|user| (user.token.clone(), user.clone()))
            .collect();
        Self {
            users: Mutex::new(users),
            deny: Mutex::default(),
            anonymous: AtomicBool::new(anonymous),
        }
    }

    /// Adds a user, or changes who a token stands for.
    pub fn add_user(&self, user: User) {
        lock(&self.users).insert(user.token.clone(), user);
    }

    /// Makes a token unknown, as after its expiry.
    pub fn revoke(&self, token: &str) {
        lock(&self.users).remove(token);
    }

    /// Adds a rule.
    pub fn deny(&self, rule: Deny) {
        lock(&self.deny).push(rule);
    }

    /// Removes all rules.
    pub fn allow_all(&self) {
        lock(&self.deny).clear();
    }

    /// The identity of a request.
    ///
    /// # Errors
    /// 401 without a known token, 403 for impersonation by somebody who may not.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Identity, Status> {
        let user = self.authenticate(headers)?;
        let wanted = header_text(headers, "impersonate-user");
        let groups: Vec<String> = headers
            .get_all("impersonate-group")
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        if wanted.is_empty() {
            if groups.is_empty()
                && !headers
                    .keys()
                    .any(|name| name.as_str().starts_with("impersonate-"))
            {
                return Ok(Identity {
                    user: user.name,
                    groups: user.groups,
                    impersonator: None,
                });
            }
            return Err(Status::bad_request(
                "requested impersonation without impersonating a user",
            ));
        }
        if !user.impersonate && !user.groups.iter().any(|group| group == MASTERS) {
            return Err(Status::forbidden_plain(format!(
                "users \"{wanted}\" is forbidden: User \"{}\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
                user.name
            )));
        }
        Ok(Identity {
            user: wanted,
            groups: with_authenticated(groups),
            impersonator: Some(user.name),
        })
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<User, Status> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            if self.anonymous.load(Ordering::Relaxed) {
                let mut user = User::new("", "system:anonymous");
                user.groups.push("system:unauthenticated".to_owned());
                return Ok(user);
            }
            return Err(Status::unauthorized());
        };
        let (scheme, token) = value
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Status::unauthorized());
        }
        let mut user = lock(&self.users)
            .get(token.trim())
            .cloned()
            .ok_or_else(Status::unauthorized)?;
        user.groups = with_authenticated(user.groups);
        Ok(user)
    }

    /// Whether the identity may.
    ///
    /// # Errors
    /// 403 when a rule says no.
    pub fn authorize(&self, identity: &Identity, question: Question<'_>) -> Result<(), Status> {
        let Question {
            verb,
            resource,
            subresource,
            namespace,
            name,
        } = question;
        let is = |rule: &Option<String>, value: &str| rule.as_deref().is_none_or(|rule| rule == value);
        let denied = lock(&self.deny).iter().any(|rule| {
            is(&rule.user, &identity.user)
                && is(&rule.verb, verb)
                && is(&rule.group, resource.group)
                && is(&rule.resource, resource.plural)
                && is(&rule.subresource, subresource)
                && is(&rule.namespace, namespace)
                && is(&rule.name, name)
        });
        if denied || identity.user == NOBODY {
            Err(Status::forbidden(&identity.user, question))
        } else {
            Ok(())
        }
    }
}

fn with_authenticated(mut groups: Vec<String>) -> Vec<String> {
    let group = "system:authenticated";
    if !groups.iter().any(|have| have == group) {
        groups.push(group.to_owned());
    }
    groups
}

/// A header as text, or empty.
pub fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::resources::*, *};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn auth() -> Auth {
        let mut root = User::new("r", "root");
        root.groups.push(MASTERS.to_owned());
        Auth::new(&[root, User::new("u", "una")], false)
    }

    #[test]
    fn tokens_are_people() {
        let auth = auth();
        assert_eq!(
            auth.identify(&headers(&[("authorization", "Bearer u")]))
                .unwrap()
                .user,
            "una"
        );
        assert_eq!(
            auth.identify(&headers(&[("authorization", "bearer u")]))
                .unwrap()
                .user,
            "una"
        );
        for bad in [
            &[][..],
            &[("authorization", "Bearer x")],
            &[("authorization", "Basic u")],
        ] {
            assert_eq!(auth.identify(&headers(bad)).unwrap_err().code, 401);
        }
        auth.revoke("u");
        assert_eq!(
            auth.identify(&headers(&[("authorization", "Bearer u")]))
                .unwrap_err()
                .code,
            401
        );
    }

    #[test]
    fn only_some_may_impersonate() {
        let auth = auth();
        let ask = |token: &str| {
            let bearer = format!("Bearer {token}");
            auth.identify(&headers(&[
                ("authorization", &bearer),
                ("impersonate-user", "ida"),
                ("impersonate-group", "g"),
            ]))
        };
        let ida = ask("r").unwrap();
        assert_eq!(
            (ida.user.as_str(), ida.impersonator.as_deref()),
            ("ida", Some("root"))
        );
        assert_eq!(ida.groups, ["g", "system:authenticated"]);
        assert_eq!(ask("u").unwrap_err().code, 403);
        let only_group = headers(&[("authorization", "Bearer r"), ("impersonate-group", "g")]);
        assert_eq!(auth.identify(&only_group).unwrap_err().code, 400);
    }

    #[test]
    fn a_rule_denies_what_it_names() {
        let auth = auth();
        auth.deny(Deny {
            user: Some("una".into()),
            resource: Some("secrets".into()),
            ..Deny::default()
        });
        let una = Identity {
            user: "una".into(),
            ..Identity::default()
        };
        let ask = |plural| Question {
            verb: "get",
            resource: &RESOURCES[by_plural(plural)],
            subresource: "",
            namespace: "n",
            name: "x",
        };
        let status = auth.authorize(&una, ask("secrets")).unwrap_err();
        assert_eq!(
            status.message,
            "secrets \"x\" is forbidden: User \"una\" cannot get resource \"secrets\" in API group \"\" in the namespace \"n\""
        );
        assert!(auth.authorize(&una, ask("pods")).is_ok());
        assert!(auth.authorize(&Identity::default(), ask("secrets")).is_ok());
    }
}
