use super::*;
use crate::identity::Mode;
use http::Method;
use proptest::prelude::*;

fn target(method: &str, uri: &str) -> Target {
    Target::read(&method.parse::<Method>().unwrap(), &uri.parse().unwrap(), false)
}

fn anyone() -> Subject<'static> {
    Subject {
        user: "control-plane",
        groups: &[],
    }
}

fn decide(policy: &Policy, method: &str, uri: &str) -> String {
    let decision = policy.decide(&anyone(), &target(method, uri));
    format!(
        "{} {}",
        if decision.allowed { "allow" } else { "deny" },
        decision.rule
    )
}

#[test]
fn the_rules_we_ship_say_what_their_table_says() {
    let policy = Policy::builtin().unwrap();
    for (method, uri, expected) in [
        ("GET", "/api/v1/pods", "allow read"),
        ("GET", "/api/v1/pods?watch=true", "allow read"),
        ("GET", "/api/v1/namespaces/a/pods/x/log?follow=true", "allow read"),
        ("GET", "/apis/example.com/v1/widgets", "allow read"),
        (
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "allow read",
        ),
        ("GET", "/api/v1/secrets", "deny no-secrets"),
        ("GET", "/api/v1/namespaces/a/secrets/x", "deny no-secrets"),
        ("GET", "/api/v1/watch/secrets", "deny no-secrets"),
        ("POST", "/api/v1/namespaces/a/secrets", "deny no-secrets"),
        (
            "POST",
            "/api/v1/namespaces/a/serviceaccounts/x/token",
            "deny no-tokens",
        ),
        (
            "GET",
            "/api/v1/namespaces/a/pods/x/exec?command=sh",
            "deny no-way-into-containers",
        ),
        (
            "POST",
            "/api/v1/namespaces/a/pods/x/portforward",
            "deny no-way-into-containers",
        ),
        (
            "GET",
            "/api/v1/namespaces/a/services/x/proxy/y",
            "deny no-way-into-containers",
        ),
        (
            "GET",
            "/api/v1/proxy/namespaces/a/services/x",
            "deny no-way-into-containers",
        ),
        ("GET", "/api/v1/nodes/n/proxy/exec", "deny no-way-into-containers"),
        (
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "deny no-escalation",
        ),
        (
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "deny no-escalation",
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/x?fieldManager=kubectl",
            "allow workloads",
        ),
        ("POST", "/api/v1/namespaces/a/configmaps", "allow core-workloads"),
        ("POST", "/api/v1/namespaces", "allow namespaces"),
        ("DELETE", "/api/v1/namespaces/a", "deny default"),
        ("DELETE", "/api/v1/nodes/n", "deny default"),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "allow own-rights",
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "deny default",
        ),
        ("GET", "/version", "allow discovery"),
        ("GET", "/apis/apps/v1", "allow discovery"),
        ("GET", "/openapi/v3/apis/apps/v1", "allow discovery"),
        ("POST", "/version", "deny default"),
        ("GET", "/debug/pprof", "deny default"),
        ("GET", "/logs", "deny default"),
    ] {
        assert_eq!(decide(&policy, method, uri), expected, "{method} {uri}");
    }
}

#[test]
fn read_only_stops_every_write_and_nothing_else() {
    let policy = file::parse("readOnly: true", "test").unwrap();
    for (method, uri, expected) in [
        ("GET", "/api/v1/pods", "allow read"),
        ("POST", "/api/v1/namespaces/a/pods", "deny readOnly"),
        ("DELETE", "/api/v1/namespaces/a/pods", "deny readOnly"),
        ("GET", "/api/v1/namespaces/a/pods/x/exec", "deny readOnly"),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "allow own-rights",
        ),
    ] {
        assert_eq!(decide(&policy, method, uri), expected, "{method} {uri}");
    }
}

#[test]
fn the_owners_rules_come_first_and_the_first_match_decides() {
    let text = r#"
rules:
  - {name: ops-exec, effect: allow, groups: ["ops"], verbs: ["create"], resources: ["pods/exec"], namespaces: ["staging-*"]}
  - {name: no-kube-system, effect: deny, namespaces: ["kube-system"]}
"#;
    let policy = file::parse(text, "test").unwrap();
    let ops = ["ops".to_owned()];
    let ops = Subject {
        user: "alice",
        groups: &ops,
    };
    let exec = target("GET", "/api/v1/namespaces/staging-1/pods/x/exec");
    assert!(policy.decide(&ops, &exec).allowed);
    assert!(!policy.decide(&anyone(), &exec).allowed);
    assert!(
        !policy
            .decide(&ops, &target("GET", "/api/v1/namespaces/prod/pods/x/exec"))
            .allowed
    );
    assert_eq!(
        decide(&policy, "GET", "/api/v1/namespaces/kube-system/pods"),
        "deny no-kube-system"
    );
    let closed = file::parse("defaults: false\nrules: []", "test").unwrap();
    assert_eq!(decide(&closed, "GET", "/version"), "deny default");
}

#[test]
fn a_broken_file_is_refused_with_its_reason() {
    for text in [
        "",
        "  \n",
        "rules: 7",
        "rulez: []",
        "rules: [{name: a}]",
        "rules: [{name: a, effect: maybe}]",
        "{",
    ] {
        let error = file::parse(text, "test").unwrap_err().to_string();
        assert!(
            error.len() > "the policy is not readable: ".len(),
            "{text:?}: {error}"
        );
    }
    assert!(
        file::parse("rules: [{name: a, effect: deny, verbz: [x]}]", "t")
            .unwrap_err()
            .to_string()
            .contains("verbz")
    );
}

#[test]
fn names_of_the_system_are_refused_before_any_rule() {
    let policy = file::parse("defaults: false\nrules: [{name: all, effect: allow}]", "test").unwrap();
    let pods = target("GET", "/api/v1/pods");
    for (user, groups, allowed) in [
        ("alice", vec![], true),
        ("alice", vec!["system:authenticated"], true),
        ("alice", vec!["system:masters"], false),
        ("alice", vec!["SYSTEM:masters"], false),
        ("system:admin", vec![], false),
        ("system:serviceaccount:kube-system:x", vec![], false),
    ] {
        let groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
        assert_eq!(
            policy
                .decide(
                    &Subject {
                        user,
                        groups: &groups
                    },
                    &pods
                )
                .allowed,
            allowed,
            "{user} {groups:?}"
        );
    }
}

#[test]
fn nobody_is_impersonated_unless_the_owner_named_them() {
    let caller = Caller::new("control-plane", Vec::new(), Mode::Impersonate);
    let groups = ["developers".to_owned(), "system:authenticated".to_owned()];
    let alice = Subject {
        user: "alice",
        groups: &groups,
    };
    assert!(
        !Policy::builtin()
            .unwrap()
            .may_impersonate(&caller, &alice)
            .allowed
    );
    let policy = file::parse("impersonate: {users: [\"a*\"], groups: [developers]}", "test").unwrap();
    assert!(policy.may_impersonate(&caller, &alice).allowed);
    assert!(
        !policy
            .may_impersonate(
                &caller,
                &Subject {
                    user: "bob",
                    groups: &[]
                }
            )
            .allowed
    );
    let ops = ["ops".to_owned()];
    assert!(
        !policy
            .may_impersonate(
                &caller,
                &Subject {
                    user: "alice",
                    groups: &ops
                }
            )
            .allowed
    );
    let all = file::parse("impersonate: {users: [\"*\"], groups: [\"*\"]}", "test").unwrap();
    assert!(
        !all.may_impersonate(
            &caller,
            &Subject {
                user: "system:admin",
                groups: &[]
            }
        )
        .allowed
    );
}

fn scope() -> Scope {
    Scope {
        namespace: "pipeops".to_owned(),
        state_secret: "state".to_owned(),
        lease: "agent".to_owned(),
        pod_name: "agent-0".to_owned(),
    }
}

#[test]
fn agent_core_may_touch_its_own_objects_and_nothing_else() {
    const ALLOWED: [(&str, &str); 13] = [
        ("GET", "/api/v1/namespaces/pipeops/secrets/state"),
        ("HEAD", "/api/v1/namespaces/pipeops/secrets/state"),
        ("OPTIONS", "/api/v1/namespaces/pipeops/secrets/state"),
        ("PUT", "/api/v1/namespaces/pipeops/secrets/state"),
        ("PATCH", "/api/v1/namespaces/pipeops/secrets/state"),
        (
            "GET",
            "/apis/coordination.k8s.io/v1/namespaces/pipeops/leases/agent",
        ),
        (
            "HEAD",
            "/apis/coordination.k8s.io/v1/namespaces/pipeops/leases/agent",
        ),
        (
            "OPTIONS",
            "/apis/coordination.k8s.io/v1/namespaces/pipeops/leases/agent",
        ),
        (
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/pipeops/leases/agent",
        ),
        (
            "PATCH",
            "/apis/coordination.k8s.io/v1/namespaces/pipeops/leases/agent",
        ),
        ("GET", "/api/v1/namespaces/pipeops/pods/agent-0"),
        ("HEAD", "/api/v1/namespaces/pipeops/pods/agent-0"),
        ("OPTIONS", "/api/v1/namespaces/pipeops/pods/agent-0"),
    ];
    let scope = scope();
    let mut asked = 0;
    for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"] {
        for group in [
            "/api/v1",
            "/apis/apps/v1",
            "/apis/coordination.k8s.io/v1",
            "/apis/rbac.authorization.k8s.io/v1",
            "/apis/events.k8s.io/v1",
        ] {
            for resource in [
                "secrets",
                "leases",
                "pods",
                "nodes",
                "events",
                "configmaps",
                "deployments",
                "serviceaccounts",
                "clusterroles",
                "namespaces",
            ] {
                for namespace in ["", "/namespaces/pipeops", "/namespaces/other"] {
                    for name in [
                        "",
                        "/state",
                        "/agent",
                        "/agent-0",
                        "/other",
                        "/state/status",
                        "/agent-0/exec",
                        "/agent-0/log",
                    ] {
                        for query in [
                            "",
                            "?watch=true",
                            "?limit=2",
                            "?limit=1&continue=x",
                            "?limit=1&watch=1",
                        ] {
                            let uri = format!("{group}{namespace}/{resource}{name}{query}");
                            let path = uri.split('?').next().unwrap();
                            let event = method == "POST"
                                && name.is_empty()
                                && resource == "events"
                                && namespace == "/namespaces/pipeops"
                                && (group == "/api/v1" || group == "/apis/events.k8s.io/v1");
                            let expected = event || ALLOWED.contains(&(method, path));
                            let decision = Policy::decide_agent_core(&scope, &target(method, &uri));
                            assert_eq!(decision.allowed, expected, "{method} {uri}: {}", decision.reason);
                            asked += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(asked > 40_000, "{asked}");
    for (method, uri, expected) in [
        ("GET", "/version", true),
        ("POST", "/version", false),
        ("GET", "/version/x", false),
        ("GET", "/metrics", false),
        ("GET", "/api/v1/pods?limit=1", true),
        ("GET", "/api/v1/nodes?limit=1", true),
        ("GET", "/api/v1/namespaces/other/pods?limit=1", true),
        ("DELETE", "/api/v1/pods?limit=1", false),
        ("GET", "/api/v1/secrets?limit=1", false),
    ] {
        assert_eq!(
            Policy::decide_agent_core(&scope, &target(method, uri)).allowed,
            expected,
            "{method} {uri}"
        );
    }
}

#[test]
fn agent_core_may_touch_nothing_while_its_names_are_not_known() {
    for uri in [
        "/api/v1/namespaces//secrets/",
        "/api/v1/secrets",
        "/api/v1/namespaces/a/secrets/state",
    ] {
        assert!(
            !Policy::decide_agent_core(&Scope::default(), &target("GET", uri)).allowed,
            "{uri}"
        );
    }
}

proptest! {
    #[test]
    fn a_pattern_matches_as_written(prefix in "[a-z]{0,5}", rest in "[a-z]{0,5}") {
        let text = format!("{prefix}{rest}");
        prop_assert!(file::matches("*", &text));
        prop_assert!(file::matches(&text, &text));
        let pattern = format!("{prefix}*");
        prop_assert!(file::matches(&pattern, &text));
        let longer = format!("{text}x");
        prop_assert!(!file::matches(&longer, &text));
    }

    #[test]
    fn more_deny_rules_never_allow_more(method in "GET|POST|DELETE", resource in "pods|secrets|services", name in "[a-z]{0,3}") {
        let plain = Policy::builtin().unwrap();
        let stricter = file::parse("rules: [{name: d, effect: deny, names: [\"a*\"]}]", "t").unwrap();
        let target = target(&method, &format!("/api/v1/namespaces/x/{resource}/{name}"));
        prop_assert!(plain.decide(&anyone(), &target).allowed || !stricter.decide(&anyone(), &target).allowed);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\n]{0,80}") {
        file::parse(&text, "t").ok();
    }
}

#[test]
fn one_switch_opens_containers_for_whoever_is_let_in() {
    for (exec, allowed) in [("false", false), ("true", true)] {
        let policy = file::parse(&format!("exec: {exec}"), "test").unwrap();
        for (method, path) in [
            ("GET", "/api/v1/namespaces/a/pods/x/exec?command=sh"),
            ("POST", "/api/v1/namespaces/a/pods/x/attach"),
            ("GET", "/api/v1/namespaces/a/pods/x/portforward"),
            ("PATCH", "/api/v1/namespaces/a/pods/x/ephemeralcontainers"),
        ] {
            assert_eq!(
                policy.decide(&anyone(), &target(method, path)).allowed,
                allowed,
                "{exec}: {method} {path}"
            );
        }
        let proxy = target("GET", "/api/v1/namespaces/a/pods/x/proxy");
        assert!(!policy.decide(&anyone(), &proxy).allowed);
    }
    let read_only = file::parse("{exec: true, readOnly: true}", "test").unwrap();
    let exec = target("GET", "/api/v1/namespaces/a/pods/x/exec");
    assert!(
        !read_only.decide(&anyone(), &exec).allowed,
        "readOnly stops exec too"
    );
}
