//! Reviews: questions that are posted, answered and not kept.

use serde_json::{Value, json};

use super::{
    auth::{Auth, Identity, Question},
    object,
    resources::RESOURCES,
    status::Status,
};

/// Answers a review.
///
/// # Errors
/// 404 for a review that is not offered.
pub fn answer(auth: &Auth, identity: &Identity, review: &str, mut posted: Value) -> Result<Value, Status> {
    match review {
        "selfsubjectreviews" => {
            let info = json!({"username": identity.user, "groups": identity.groups});
            object::as_object(&mut posted).insert("status".to_owned(), json!({"userInfo": info}));
        }
        "selfsubjectaccessreviews" => {
            let text =
                |key: &str| object::text(&posted, &format!("spec.resourceAttributes.{key}")).to_owned();
            let (verb, group, plural) = (text("verb"), text("group"), text("resource"));
            let (subresource, namespace, name) = (text("subresource"), text("namespace"), text("name"));
            let kind = RESOURCES
                .iter()
                .find(|kind| kind.plural == plural && kind.group == group);
            let refusal = kind.and_then(|resource| {
                let question = Question {
                    verb: &verb,
                    resource,
                    subresource: &subresource,
                    namespace: &namespace,
                    name: &name,
                };
                auth.authorize(identity, question).err()
            });
            let status = json!({
                "allowed": refusal.is_none(), "reason": refusal.map(|status| status.message).unwrap_or_default()
            });
            object::as_object(&mut posted).insert("status".to_owned(), status);
        }
        _ => return Err(Status::no_such_resource()),
    }
    Ok(posted)
}
