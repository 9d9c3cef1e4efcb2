//! Whose credential a call carries. The three modes are never mixed, and whatever is unclear is refused.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::AUTHORIZATION};

use super::Ask;
use crate::{
    headers,
    identity::{Mode, Who},
    policy,
    status::Failure,
};

/// The person a control plane speaks for.
const USER: HeaderName = HeaderName::from_static("pipeops-user");
/// That person's groups, separated by commas.
const GROUPS: HeaderName = HeaderName::from_static("pipeops-groups");
const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");

/// Cleans the headers, then adds what the door's mode says. Returns whether our own token goes with the call.
///
/// # Errors
/// 401 when a credential is missing, 403 when one is where it must not be.
pub(super) fn prepare(ask: &Ask) -> Result<(HeaderMap, bool, Arc<Who>), Failure> {
    let caller = &ask.caller;
    let mut headers = headers::clean_request(&ask.headers);
    let named = person(&ask.headers)?;
    let forbidden = |sentence: &str| Failure::new(StatusCode::FORBIDDEN, "credential", sentence);
    match caller.mode {
        Mode::Agent | Mode::Caller if named.is_some() => {
            let mode = caller.mode.as_str();
            Err(forbidden(&format!(
                "this door is in mode {mode} and speaks for nobody else: drop pipeops-user"
            )))
        }
        Mode::Agent => Ok((headers, true, caller.who())),
        Mode::Caller => {
            let own = ask
                .authorization
                .as_ref()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| {
                    let sentence =
                        "this door passes the caller's own credential on: send your Kubernetes Authorization";
                    Failure::new(StatusCode::UNAUTHORIZED, "credential", sentence)
                })?;
            let mut own = own.clone();
            own.set_sensitive(true);
            headers.insert(AUTHORIZATION, own);
            Ok((headers, false, caller.who()))
        }
        Mode::Impersonate => {
            let Some(named) = named else {
                let sentence = "this door speaks for a person: name one in pipeops-user";
                return Err(Failure::new(StatusCode::UNAUTHORIZED, "credential", sentence));
            };
            let subject = policy::Subject {
                user: &named.user,
                groups: &named.groups,
            };
            if let Some(refused) = policy::refuse_system(&subject) {
                return Err(forbidden(&refused.reason));
            }
            headers.insert(IMPERSONATE_USER, value(&named.user)?);
            for group in &named.groups {
                headers.append(IMPERSONATE_GROUP, value(group)?);
            }
            Ok((headers, true, Arc::new(named)))
        }
    }
}

fn value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text).map_err(|_| unreadable())
}

fn unreadable() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "credential",
        "pipeops-user or pipeops-groups is not readable",
    )
}

/// The person named in the caller's headers. Two names are refused: which of them would count?
fn person(headers: &HeaderMap) -> Result<Option<Who>, Failure> {
    let text = |value: &HeaderValue| {
        value
            .to_str()
            .map(|text| text.trim().to_owned())
            .map_err(|_| unreadable())
    };
    let users: Vec<String> = headers
        .get_all(&USER)
        .iter()
        .map(text)
        .collect::<Result<_, _>>()?;
    let groups: Vec<String> = headers
        .get_all(&GROUPS)
        .iter()
        .map(text)
        .collect::<Result<_, _>>()?;
    let groups: Vec<String> = groups
        .iter()
        .flat_map(|list| list.split(','))
        .map(|group| group.trim().to_owned())
        .filter(|group| !group.is_empty())
        .collect();
    match users.as_slice() {
        [] if groups.is_empty() => Ok(None),
        [user] if !user.is_empty() => Ok(Some(Who {
            user: user.clone(),
            groups,
            impersonated: true,
        })),
        _ => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::Caller, streams::Cancel, upstream::RequestBody};
    use bytes::Bytes;
    use http::Method;
    use proptest::prelude::*;

    fn ask(mode: Mode, pairs: &[(&str, &str)], authorization: Option<&str>) -> Ask {
        Ask {
            door: "test".into(),
            caller: Arc::new(Caller::new("control-plane", vec!["cp".to_owned()], mode)),
            request_id: String::new(),
            method: Method::GET,
            uri: "/api".parse().unwrap(),
            headers: pairs
                .iter()
                .map(|(name, value)| {
                    (
                        name.parse::<HeaderName>().unwrap(),
                        HeaderValue::from_str(value).unwrap(),
                    )
                })
                .collect(),
            authorization: authorization.map(|text| HeaderValue::from_str(text).unwrap()),
            body: RequestBody::Full(Bytes::new()),
            rewatch_clean_end: false,
            cancel: Cancel::default(),
        }
    }

    fn code(ask: &Ask) -> u16 {
        prepare(ask).map_or_else(|failure| failure.code.as_u16(), |_| 200)
    }

    #[test]
    fn mode_agent_carries_our_token_and_never_the_callers() {
        let (headers, own, who) = prepare(&ask(
            Mode::Agent,
            &[("Authorization", "Bearer x")],
            Some("Bearer x"),
        ))
        .unwrap();
        assert!(own && headers.is_empty() && !who.impersonated && who.user == "control-plane");
    }

    #[test]
    fn mode_caller_carries_the_callers_token_and_never_ours() {
        let (headers, own, _) = prepare(&ask(
            Mode::Caller,
            &[("authorization", "Bearer door")],
            Some("Bearer USER"),
        ))
        .unwrap();
        assert!(!own);
        assert_eq!(headers["authorization"], "Bearer USER");
        for missing in [None, Some("")] {
            assert_eq!(
                code(&ask(Mode::Caller, &[("Authorization", "Bearer door")], missing)),
                401
            );
        }
    }

    #[test]
    fn mode_impersonate_names_exactly_the_person_it_was_told() {
        let pairs = [
            ("Pipeops-User", "alice"),
            ("Pipeops-Groups", "dev, ops"),
            ("Impersonate-User", "root"),
            ("Impersonate-Extra-x", "y"),
            ("Impersonate-Uid", "1"),
        ];
        let (headers, own, who) = prepare(&ask(Mode::Impersonate, &pairs, Some("Bearer x"))).unwrap();
        assert!(own && who.impersonated);
        assert_eq!(
            (who.user.as_str(), who.groups.as_slice()),
            ("alice", ["dev".to_owned(), "ops".to_owned()].as_slice())
        );
        assert_eq!(headers["impersonate-user"], "alice");
        let groups: Vec<_> = headers.get_all("impersonate-group").iter().collect();
        assert_eq!(groups, ["dev", "ops"]);
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn what_is_unclear_is_refused() {
        assert_eq!(code(&ask(Mode::Impersonate, &[], None)), 401);
        assert_eq!(
            code(&ask(Mode::Impersonate, &[("pipeops-groups", "dev")], None)),
            400
        );
        assert_eq!(
            code(&ask(
                Mode::Impersonate,
                &[("pipeops-user", "a"), ("pipeops-user", "b")],
                None
            )),
            400
        );
        assert_eq!(code(&ask(Mode::Impersonate, &[("pipeops-user", " ")], None)), 400);
        assert_eq!(
            code(&ask(Mode::Impersonate, &[("pipeops-user", "system:admin")], None)),
            403
        );
        assert_eq!(
            code(&ask(
                Mode::Impersonate,
                &[("pipeops-user", "a"), ("pipeops-groups", "system:masters")],
                None
            )),
            403
        );
        assert_eq!(
            code(&ask(
                Mode::Impersonate,
                &[("pipeops-user", "a"), ("pipeops-groups", "system:authenticated")],
                None
            )),
            200
        );
        assert_eq!(code(&ask(Mode::Agent, &[("pipeops-user", "a")], None)), 403);
        assert_eq!(
            code(&ask(Mode::Caller, &[("pipeops-user", "a")], Some("Bearer x"))),
            403
        );
    }

    proptest! {
        #[test]
        fn credentials_are_never_mixed(
            mode in prop_oneof![Just(Mode::Agent), Just(Mode::Caller), Just(Mode::Impersonate)],
            user in prop::option::of("[a-z:]{0,8}"), groups in prop::option::of("[a-z:,]{0,12}"),
            smuggled in prop::option::of("[a-z]{1,5}"), authorization in prop::option::of("Bearer [a-z]{1,5}"),
        ) {
            let mut pairs = Vec::new();
            if let Some(user) = &user { pairs.push(("pipeops-user", user.as_str())); }
            if let Some(groups) = &groups { pairs.push(("pipeops-groups", groups.as_str())); }
            if let Some(smuggled) = &smuggled {
                pairs.push(("impersonate-user", smuggled.as_str()));
                pairs.push(("x_remote_user", smuggled.as_str()));
            }
            if let Ok((headers, own, who)) = prepare(&ask(mode, &pairs, authorization.as_deref())) {
                prop_assert_eq!(own, mode != Mode::Caller);
                prop_assert_eq!(headers.contains_key("authorization"), mode == Mode::Caller);
                prop_assert_eq!(headers.contains_key("impersonate-user"), mode == Mode::Impersonate);
                prop_assert_eq!(who.impersonated, mode == Mode::Impersonate);
                prop_assert!(headers.keys().all(|name| !name.as_str().contains("remote")));
            }
        }
    }
}
