//! `Status` objects: the only shape in which this API says that something failed.

use axum::body::Body;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use super::{auth::Question, resources::Resource};

/// A refusal, to be sent as a `Status` object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// HTTP status, repeated in the body.
    pub code: u16,
    /// Machine readable reason, empty where the real API sends none.
    pub reason: &'static str,
    /// Sentence for people.
    pub message: String,
    /// `details`, when there are any.
    pub details: Option<Value>,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
    /// `metadata.continue`: how to go on after a page has expired.
    pub next: Option<String>,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            retry_after: None,
            next: None,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let mut details = serde_json::Map::new();
        if !name.is_empty() {
            details.insert("name".to_owned(), json!(name));
        }
        if !resource.group.is_empty() {
            details.insert("group".to_owned(), json!(resource.group));
        }
        details.insert("kind".to_owned(), json!(resource.plural));
        self.details = Some(Value::Object(details));
        self
    }

    /// 404 for an object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} \"{name}\" not found", resource.qualified()),
        )
        .about(resource, name)
    }

    /// 404 for a path below a known resource.
    pub fn no_such_resource() -> Self {
        let mut status = Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
        status.details = Some(json!({}));
        status
    }

    /// 409 on create.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", resource.qualified()),
        )
        .about(resource, name)
    }

    /// 409 on a stale resourceVersion.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.qualified()
        );
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403, with the sentence of the real authoriser.
    pub fn forbidden(user: &str, question: Question<'_>) -> Self {
        let Question {
            verb,
            resource,
            subresource,
            namespace,
            name,
        } = question;
        let what = if subresource.is_empty() {
            resource.plural.to_owned()
        } else {
            format!("{}/{subresource}", resource.plural)
        };
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let subject = if name.is_empty() {
            format!("{} is", resource.qualified())
        } else {
            format!("{} \"{name}\" is", resource.qualified())
        };
        let message = format!(
            "{subject} forbidden: User \"{user}\" cannot {verb} resource \"{what}\" in API group \"{}\" {place}",
            resource.group
        );
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 403 for a path that is no resource, or for impersonation.
    pub fn forbidden_plain(message: impl Into<String>) -> Self {
        let mut status = Self::new(403, "Forbidden", message);
        status.details = Some(json!({}));
        status
    }

    /// 422: one cause with a field.
    pub fn invalid(resource: &Resource, name: &str, field: &str, cause: &'static str, why: &str) -> Self {
        let label = match cause {
            "FieldValueRequired" => "Required value",
            "FieldValueForbidden" => "Forbidden",
            _ => "Invalid value",
        };
        let kind = if resource.group.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let why = if why.is_empty() {
            label.to_owned()
        } else {
            format!("{label}: {why}")
        };
        let mut status = Self::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {field}: {why}"),
        );
        let mut details = serde_json::Map::new();
        if !name.is_empty() {
            details.insert("name".to_owned(), json!(name));
        }
        if !resource.group.is_empty() {
            details.insert("group".to_owned(), json!(resource.group));
        }
        details.insert("kind".to_owned(), json!(resource.kind));
        details.insert(
            "causes".to_owned(),
            json!([{"reason": cause, "message": why, "field": field}]),
        );
        status.details = Some(Value::Object(details));
        status
    }

    /// 422 for list and watch options.
    pub fn invalid_options(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let mut status = Self::new(422, "Invalid", message);
        status.details = Some(json!({
            "group": "meta.k8s.io", "kind": "ListOptions",
            "causes": [{"reason": "FieldValueForbidden", "message": format!("Forbidden: {why}"), "field": field}]
        }));
        status
    }

    /// 422 for a patch that does not fit.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        let mut status = Self::new(422, "Invalid", message);
        status.details = Some(json!({}));
        status
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 for a position that was compacted away.
    pub fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// 504 for a position that is not there yet.
    pub fn too_large_revision(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(504, "Timeout", message);
        status.details = Some(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1
        }));
        status.retry_after = Some(1);
        status
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let mut status = Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(json!({}));
        status
    }

    /// 406.
    pub fn not_acceptable() -> Self {
        let mut status = Self::new(
            406,
            "NotAcceptable",
            "406: Not Acceptable\n\nAvailable representations: application/json, application/json;stream=watch",
        );
        status.details = Some(json!({}));
        status
    }

    /// 413.
    pub fn too_large_body(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415 for an object.
    pub fn unsupported_media_type() -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml",
        )
    }

    /// 415 for a patch.
    pub fn unsupported_patch_type() -> Self {
        let mut status = Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
        status.details = Some(json!({}));
        status
    }

    /// 422 for an apply that does not say who applies.
    pub fn field_manager_required() -> Self {
        let why = "Required value: is required for apply patch";
        let mut status = Self::new(
            422,
            "Invalid",
            format!("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: {why}"),
        );
        status.details = Some(json!({
            "group": "meta.k8s.io", "kind": "PatchOptions",
            "causes": [{"reason": "FieldValueRequired", "message": why, "field": "fieldManager"}]
        }));
        status
    }

    /// 500 without a reason: what the real API answers where nobody thought of a better one.
    pub fn plain_500(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 429, 5xx and whatever else a fault asks for.
    pub fn injected(code: u16, retry_after: Option<u64>) -> Self {
        let (reason, message) = match code {
            429 => ("TooManyRequests", "Too many requests, please try again later."),
            500 => ("InternalError", "Internal error occurred: injected by a fault"),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => (
                "Timeout",
                "the server was unable to return a response in the time allotted",
            ),
            _ => ("", "injected by a fault"),
        };
        let mut status = Self::new(code, reason, message);
        status.retry_after = retry_after;
        status.details = retry_after.map(|seconds| json!({"retryAfterSeconds": seconds}));
        status
    }

    /// The object.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message, "code": self.code
        });
        if let Some(object) = value.as_object_mut() {
            if !self.reason.is_empty() {
                object.insert("reason".to_owned(), json!(self.reason));
            }
            if let Some(details) = &self.details {
                object.insert("details".to_owned(), details.clone());
            }
            if let Some(next) = &self.next {
                object.insert("metadata".to_owned(), json!({"continue": next}));
            }
        }
        value
    }

    /// The object as the whole answer.
    pub fn to_response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.to_value().to_string()));
        *response.status_mut() = http::StatusCode::from_u16(self.code).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::{super::resources::*, *};

    #[test]
    fn not_found_has_the_shape_of_the_real_one() {
        let pods = &RESOURCES[by_plural("pods")];
        assert_eq!(
            Status::not_found(pods, "x").to_value(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "pods \"x\" not found", "reason": "NotFound",
                "details": {"name": "x", "kind": "pods"}, "code": 404
            })
        );
    }

    #[test]
    fn groups_are_named() {
        let status = Status::already_exists(&RESOURCES[by_plural("deployments")], "web");
        assert_eq!(status.message, "deployments.apps \"web\" already exists");
        assert_eq!(
            status.details,
            Some(json!({"name": "web", "group": "apps", "kind": "deployments"}))
        );
    }

    #[test]
    fn retry_after_is_a_header_and_a_detail() {
        let response = Status::injected(429, Some(7)).to_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        assert_eq!(
            Status::injected(429, Some(7)).details,
            Some(json!({"retryAfterSeconds": 7}))
        );
    }
}
