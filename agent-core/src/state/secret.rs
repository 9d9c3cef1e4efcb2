//! State in a Kubernetes Secret: read, and written by compare-and-set.

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{AGENT_ID, Stored};
use crate::{
    config::StateConfig,
    kubernetes::{Door, DoorError},
};

/// Writers are one pod, and for a moment two; more conflicts in a row are somebody else's loop.
const TRIES: usize = 5;

/// The texts in a Secret.
pub(super) fn read(secret: &Secret) -> Stored {
    let data = secret.data.iter().flatten();
    data.filter_map(|(name, value)| Some((name.as_str(), std::str::from_utf8(&value.0).ok()?)))
        .collect()
}

/// Writes `stored` over what the Secret holds and returns the outcome. Values that the Secret has and we lack
/// stay. With `claim`, an agent id that is there already wins over ours: two first starts must end as one agent.
pub(super) async fn write(
    door: &Door,
    config: &StateConfig,
    stored: &Stored,
    claim: bool,
) -> Result<Stored, DoorError> {
    let (namespace, name) = (&config.namespace, &config.secret_name);
    for _ in 0..TRIES {
        let result = match door.secret(namespace, name).await? {
            Some(mut secret) => {
                let there = read(&secret);
                let mut merged = there.clone();
                merged.merge(stored);
                if claim && let Some(theirs) = there.get(AGENT_ID) {
                    merged.set(AGENT_ID, theirs);
                }
                if merged == there {
                    return Ok(merged);
                }
                put(&mut secret, &merged);
                door.replace_secret(namespace, &secret).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    ..ObjectMeta::default()
                };
                let mut secret = Secret {
                    metadata,
                    type_: Some("Opaque".to_owned()),
                    ..Secret::default()
                };
                put(&mut secret, stored);
                door.create_secret(namespace, &secret).await
            }
        };
        match result {
            Ok(secret) => return Ok(read(&secret)),
            Err(DoorError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    Err(DoorError::Conflict)
}

/// Sets our values; whatever else the Secret holds, also bytes that are no text, stays.
fn put(secret: &mut Secret, stored: &Stored) {
    let data = secret.data.get_or_insert_default();
    for (name, value) in stored.iter() {
        data.insert(name.to_owned(), ByteString(value.as_bytes().to_vec()));
    }
}
