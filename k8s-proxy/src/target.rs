//! What a request asks of Kubernetes: verb, resource, namespace, name. The same reading as the apiserver's own
//! (`RequestInfoFactory`), so that the policy decides about what will really happen.

use std::borrow::Cow;

use http::{Method, uri::PathAndQuery};

use crate::path;

/// Subresources whose GET opens a two-way connection into a container or a node; the apiserver asks for `create`.
const CONNECTING: [&str; 3] = ["exec", "attach", "portforward"];

/// A request as the policy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Target {
    /// `get`, `list`, `watch`, `create` …
    pub verb: &'static str,
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, empty when the request is not in one.
    pub namespace: String,
    /// Plural resource name; empty for paths that are no resource (`/version`).
    pub resource: String,
    /// For example `log` or `scale`.
    pub subresource: String,
    /// Object name, if one is named.
    pub name: String,
    /// The path without the query.
    pub path: String,
    /// The answer is a watch.
    pub watch: bool,
    /// The answer is a log that is followed.
    pub follow: bool,
    /// `limit`, when given.
    pub limit: Option<String>,
    /// Whether `continue` is given.
    pub continues: bool,
}

impl Target {
    /// Reads a request whose path was checked before. `upgrade` says that the caller asks for a two-way connection.
    pub fn read(method: &Method, uri: &PathAndQuery, upgrade: bool) -> Self {
        let query = uri.query().unwrap_or_default();
        let mut target = Self {
            path: uri.path().to_owned(),
            limit: parameter(query, "limit").map(Cow::into_owned),
            continues: parameter(query, "continue").is_some_and(|value| !value.is_empty()),
            ..Self::default()
        };
        let parts: Vec<Cow<'_, str>> = uri
            .path()
            .split('/')
            .filter(|part| !part.is_empty())
            .map(path::segment_text)
            .collect();
        let parts: Vec<&str> = parts.iter().map(|part| &**part).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                target.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                target.group = (*group).to_owned();
                target.version = (*version).to_owned();
                rest
            }
            _ => {
                target.verb = plain_verb(method);
                return target;
            }
        };
        let (rest, old_watch) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
            // The oldest proxy paths name their verb first; the apiserver still reads them so.
            ["proxy", rest @ ..] if !rest.is_empty() => {
                "proxy".clone_into(&mut target.subresource);
                (rest, false)
            }
            rest => (rest, false),
        };
        target.read_resource(rest);
        target.read_verb(method, query, old_watch, upgrade);
        target
    }

    fn read_resource(&mut self, parts: &[&str]) {
        let parts = match parts {
            ["namespaces", namespace, rest @ ..] => {
                (*namespace).clone_into(&mut self.namespace);
                match rest {
                    // These belong to the namespace object itself.
                    [] | ["status" | "finalize", ..] => parts,
                    rest => rest,
                }
            }
            parts => parts,
        };
        let mut parts = parts.iter().copied();
        parts.next().unwrap_or_default().clone_into(&mut self.resource);
        parts.next().unwrap_or_default().clone_into(&mut self.name);
        if let Some(subresource) = parts.next() {
            subresource.clone_into(&mut self.subresource);
        }
    }

    fn read_verb(&mut self, method: &Method, query: &str, old_watch: bool, upgrade: bool) {
        let read = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        // `watch=true` beside a name in the path means nothing to the apiserver: the answer is one object.
        self.watch = read && (old_watch || (self.name.is_empty() && truthy(query, "watch")));
        self.follow = read && self.subresource == "log" && truthy(query, "follow");
        let connecting = CONNECTING.contains(&self.subresource.as_str());
        self.verb = if self.watch {
            "watch"
        } else if read && (connecting || upgrade) {
            "create"
        } else if read && self.name.is_empty() {
            "list"
        } else if *method == Method::DELETE && self.name.is_empty() {
            "deletecollection"
        } else {
            plain_verb(method)
        };
        if self.name.is_empty() && matches!(self.verb, "list" | "watch" | "deletecollection") {
            self.name = name_selector(query).unwrap_or_default();
        }
    }

    /// Whether the answer may last for hours.
    pub fn endless(&self) -> bool {
        self.watch || self.follow
    }

    /// Whether nothing changes by it.
    pub fn reads(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }

    /// Whether it names a resource and not a path like `/version`.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// `pods` or `pods/log`.
    pub fn resource_path(&self) -> Cow<'_, str> {
        if self.subresource.is_empty() {
            Cow::Borrowed(&self.resource)
        } else {
            Cow::Owned(format!("{}/{}", self.resource, self.subresource))
        }
    }

    /// A coarse class for metrics: few values, none of them chosen by the caller.
    pub fn class(&self) -> &'static str {
        match (self.resource.as_str(), self.group.as_str()) {
            ("", _) => "nonresource",
            ("pods", _) if self.subresource == "log" => "logs",
            ("pods", _) => "pods",
            ("nodes", _) => "nodes",
            ("namespaces", _) => "namespaces",
            ("secrets", _) => "secrets",
            ("configmaps", _) => "configmaps",
            ("services" | "endpoints" | "endpointslices", _) => "services",
            ("events", _) => "events",
            (_, "apps" | "batch" | "autoscaling") => "workloads",
            (_, "rbac.authorization.k8s.io") => "rbac",
            (_, "") => "core",
            _ => "other",
        }
    }

    /// The path with its variable parts replaced, as OpenTelemetry's `http.route` wants it.
    pub fn route(&self) -> String {
        if !self.is_resource() {
            return self.path.split('/').take(3).collect::<Vec<_>>().join("/");
        }
        let mut route = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if !self.namespace.is_empty() && self.resource != "namespaces" {
            route.push_str("/namespaces/{namespace}");
        }
        route.push('/');
        route.push_str(&self.resource);
        if !self.name.is_empty() {
            route.push_str("/{name}");
        }
        if !self.subresource.is_empty() {
            route.push('/');
            route.push_str(&self.subresource);
        }
        route
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "unknown",
    }
}

/// The first value of a query parameter.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

/// Kubernetes' reading of a boolean parameter: only absence, `false` and `0` are false.
pub fn truthy(query: &str, name: &str) -> bool {
    parameter(query, name).is_some_and(|value| !(value.eq_ignore_ascii_case("false") || value == "0"))
}

fn name_selector(query: &str) -> Option<String> {
    let selector = parameter(query, "fieldSelector")?;
    let name = selector
        .split(',')
        .find_map(|term| term.trim().strip_prefix("metadata.name="))?;
    Some(name.trim_start_matches('=').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(method: &Method, uri: &str) -> Target {
        Target::read(method, &uri.parse().unwrap(), false)
    }

    #[test]
    fn requests_are_read_as_the_apiserver_reads_them() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/pods", "list pods - -"),
            ("GET", "/api/v1/pods?watch=true", "watch pods - -"),
            ("GET", "/api/v1/pods?watch=0", "list pods - -"),
            ("GET", "/api/v1/pods?watch", "watch pods - -"),
            ("GET", "/api/v1/watch/pods", "watch pods - -"),
            ("GET", "/api/v1/namespaces/a/pods/x?watch=true", "get pods a x"),
            ("GET", "/api/v1/watch/namespaces/a/pods/x", "watch pods a x"),
            ("GET", "/api/v1/namespaces/a/pods/x", "get pods a x"),
            ("HEAD", "/api/v1/namespaces/a/pods/x", "get pods a x"),
            ("GET", "/api/v1/namespaces", "list namespaces - -"),
            ("GET", "/api/v1/namespaces/a", "get namespaces a a"),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update namespaces/finalize a a",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/x/log?follow=true",
                "get pods/log a x",
            ),
            ("GET", "/api/v1/namespaces/a/pods/x/exec", "create pods/exec a x"),
            ("POST", "/api/v1/namespaces/a/pods/x/exec", "create pods/exec a x"),
            (
                "POST",
                "/apis/apps/v1/namespaces/a/deployments",
                "create deployments a -",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/x/scale",
                "patch deployments/scale a x",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection deployments a -",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments/x",
                "delete deployments a x",
            ),
            (
                "GET",
                "/api/v1/secrets?fieldSelector=metadata.name%3Dx",
                "list secrets - x",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/services/x:80/proxy/metrics",
                "get services/proxy a x:80",
            ),
            ("GET", "/version", "get - - -"),
            ("GET", "/apis/apps/v1", "get - - -"),
            ("GET", "/api/v1/", "get - - -"),
            ("BREW", "/version", "unknown - - -"),
        ] {
            let target = read(&method.parse().unwrap(), uri);
            let dash = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text.to_owned()
                }
            };
            let got = format!(
                "{} {} {} {}",
                target.verb,
                dash(&target.resource_path()),
                dash(&target.namespace),
                dash(&target.name)
            );
            assert_eq!(got, expected, "{method} {uri}");
        }
    }

    #[test]
    fn endless_answers_are_known() {
        assert!(read(&Method::GET, "/api/v1/pods?watch=1").endless());
        assert!(read(&Method::GET, "/api/v1/namespaces/a/pods/x/log?follow=true").endless());
        assert!(!read(&Method::GET, "/api/v1/namespaces/a/pods/x/log").endless());
        assert!(!read(&Method::POST, "/api/v1/pods?watch=1").endless());
    }

    #[test]
    fn a_route_names_no_object() {
        assert_eq!(
            read(&Method::GET, "/apis/apps/v1/namespaces/a/deployments/x/scale").route(),
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"
        );
        assert_eq!(
            read(&Method::GET, "/api/v1/namespaces/a").route(),
            "/api/v1/namespaces/{name}"
        );
        assert_eq!(read(&Method::GET, "/openapi/v3/apis/apps").route(), "/openapi/v3");
    }

    proptest! {
        #[test]
        fn reading_never_panics(path in "(/[a-z%0-9:.-]{0,6}){0,8}", query in "[a-z=&%0-9]{0,20}") {
            if let Ok(uri) = format!("/{path}?{query}").parse() {
                let target = Target::read(&Method::GET, &uri, false);
                prop_assert!(!target.verb.is_empty());
            }
        }
    }
}
