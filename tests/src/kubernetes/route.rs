//! From a path to what it means.

use std::borrow::Cow;

use http::Method;
use url::form_urlencoded;

use super::resources::{self, RESOURCES, ResourceId};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`, `/livez`, `/readyz` and what lies below.
    Health,
    /// `/version`.
    Version,
    /// `/api`, `/apis`, `/apis/<group>`, `/apis/<group>/<version>`.
    Discovery(Vec<String>),
    /// `/openapi/v3` and what lies below.
    OpenApi(Vec<String>),
    /// `/_sim/…`.
    Control(String),
    /// Reviews, which are created and never stored.
    Review(String),
    /// A resource.
    Target(Target),
    /// Nothing.
    Unknown,
}

/// A resource path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kind.
    pub resource: ResourceId,
    /// Namespace, empty for all or none.
    pub namespace: String,
    /// Name, empty for the collection.
    pub name: String,
    /// Subresource or empty.
    pub subresource: String,
}

/// Reads a path.
pub fn route(path: &str) -> Route {
    let decode = |part: &str| percent_decode(part).into_owned();
    let parts: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let names: Vec<&str> = parts.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Route::Health,
        ["version"] => Route::Version,
        ["openapi", "v3", ..] => Route::OpenApi(parts.into_iter().skip(2).collect()),
        ["_sim", rest @ ..] => Route::Control(rest.join("/")),
        ["api"] | ["apis"] | ["api", "v1"] | ["apis", _] | ["apis", _, _] => Route::Discovery(parts),
        [
            "apis",
            "authorization.k8s.io" | "authentication.k8s.io",
            "v1",
            review,
        ] => Route::Review((*review).to_owned()),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Route::Unknown,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Route {
    let found = match rest {
        ["namespaces", namespace, "status" | "finalize"] => {
            find(group, version, "namespaces", "", &[namespace, rest[2]])
        }
        ["namespaces", namespace, plural, below @ ..] => find(group, version, plural, namespace, below),
        [plural, below @ ..] => find(group, version, plural, "", below),
        [] => None,
    };
    match found {
        Some(target) if rest.len() <= 5 => Route::Target(target),
        _ => Route::Unknown,
    }
}

fn find(group: &str, version: &str, plural: &str, namespace: &str, below: &[&str]) -> Option<Target> {
    let resource = resources::find(group, version, plural)?;
    let kind = &RESOURCES[resource];
    if (!namespace.is_empty() && !kind.namespaced)
        || below.len() > 2
        || below.iter().any(|part| part.is_empty())
    {
        return None;
    }
    let part = |place: usize| below.get(place).copied().unwrap_or_default().to_owned();
    Some(Target {
        resource,
        namespace: namespace.to_owned(),
        name: part(0),
        subresource: part(1),
    })
}

/// The verb of a method on a target, if there is one.
pub fn verb(method: &Method, target: &Target, query: &Query) -> Option<&'static str> {
    let collection = target.name.is_empty();
    let verb = match method.as_str() {
        "GET" | "HEAD" if query.flag("watch") && target.subresource.is_empty() => "watch",
        "GET" | "HEAD" if collection => "list",
        "GET" | "HEAD" => "get",
        "POST" if collection => "create",
        "PUT" if !collection => "update",
        "PATCH" if !collection => "patch",
        "DELETE" if collection => "deletecollection",
        "DELETE" if target.subresource.is_empty() => "delete",
        _ => return None,
    };
    // Without its namespace a namespaced kind can be read, but neither made nor named.
    let reads = matches!(verb, "list" | "watch");
    let placed = !RESOURCES[target.resource].namespaced || !target.namespace.is_empty();
    (placed || (reads && collection)).then_some(verb)
}

/// A query string, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads it.
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value, or empty.
    pub fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// Whether a flag is set.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1" | "True" | "TRUE" | "t" | "T")
    }

    /// A number, if it is there and is one.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }
}

fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    // The plus sign stands for itself in a path.
    let kept = text.replace('+', "%2B");
    let decoded = form_urlencoded::parse(kept.as_bytes())
        .next()
        .map(|(key, _)| key.into_owned());
    Cow::Owned(decoded.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::resources::by_plural, *};

    fn target(plural: &str, namespace: &str, name: &str, subresource: &str) -> Route {
        Route::Target(Target {
            resource: by_plural(plural),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        })
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/pods", target("pods", "", "", "")),
            ("/api/v1/namespaces", target("namespaces", "", "", "")),
            ("/api/v1/namespaces/shop", target("namespaces", "", "shop", "")),
            (
                "/api/v1/namespaces/shop/status",
                target("namespaces", "", "shop", "status"),
            ),
            (
                "/api/v1/namespaces/shop/pods/a%2Db/log",
                target("pods", "shop", "a-b", "log"),
            ),
            ("/api/v1/nodes/n1", target("nodes", "", "n1", "")),
            (
                "/apis/apps/v1/namespaces/shop/deployments/web/scale",
                target("deployments", "shop", "web", "scale"),
            ),
            (
                "/apis/coordination.k8s.io/v1/leases",
                target("leases", "", "", ""),
            ),
            ("/healthz", Route::Health),
            ("/readyz/etcd", Route::Health),
            ("/version", Route::Version),
            ("/_sim/faults", Route::Control("faults".to_owned())),
            ("/api", Route::Discovery(vec!["api".to_owned()])),
            ("/api/v1/things", Route::Unknown),
            ("/apis/apps/v1beta1/deployments", Route::Unknown),
            ("/api/v1/namespaces/shop/nodes", Route::Unknown),
            ("/api/v1/namespaces/shop/pods/a/b/c", Route::Unknown),
            ("/", Route::Unknown),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    #[test]
    fn verbs() {
        let ask = |method: Method, path: &str, query: &str| {
            let Route::Target(target) = route(path) else {
                panic!("{path}")
            };
            verb(&method, &target, &Query::parse(query))
        };
        assert_eq!(ask(Method::GET, "/api/v1/pods", ""), Some("list"));
        assert_eq!(ask(Method::GET, "/api/v1/pods", "watch=1"), Some("watch"));
        assert_eq!(ask(Method::GET, "/api/v1/namespaces/n/pods/p", ""), Some("get"));
        assert_eq!(
            ask(Method::POST, "/api/v1/pods", ""),
            None,
            "the namespace is missing"
        );
        assert_eq!(
            ask(Method::DELETE, "/api/v1/namespaces/n/pods", ""),
            Some("deletecollection")
        );
        assert_eq!(ask(Method::PUT, "/api/v1/namespaces/n/pods", ""), None);
    }

    proptest! {
        /// No path breaks the router.
        #[test]
        fn any_path_routes(path in "/(api|apis|_sim)?[a-z0-9%/+. ]{0,40}", query in ".{0,20}") {
            let _ = (route(&path), Query::parse(&query));
        }
    }
}
