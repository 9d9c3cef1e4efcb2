//! The Kubernetes API through k8s-proxy's local door: the few calls that agent-core may make.
//!
//! agent-core holds no Kubernetes credential. It shows the token of the edge between the two containers, and
//! k8s-proxy speaks for it as the fixed identity `agent-core`, whose policy allows exactly what is in here.

use std::{
    fmt::{self, Debug},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Event, Node, Pod, Secret},
    apimachinery::pkg::version::Info,
};
use kube::{
    Api, Client, Config, Error,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
};
use prometheus::IntCounterVec;
use runtime::{secret::SecretString, supervise::chain};
use url::Url;

use crate::wire::one_line;

/// One call; a healthy apiserver answers these in milliseconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DoorError {
    /// No answer, or none of the apiserver's own.
    #[error("k8s-proxy unreachable ({0})")]
    Unreachable(String),
    /// The answer is a no.
    #[error("refused with {code}: {message}")]
    Refused { code: u16, message: String },
    /// Somebody else wrote in between.
    #[error("changed in between")]
    Conflict,
}

/// The door.
#[derive(Clone)]
pub(crate) struct Door {
    client: Client,
    calls: IntCounterVec,
}

impl Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    /// A client of the door at `url`; nothing is dialled yet. `calls` counts by verb and result.
    pub(crate) fn new(url: &Url, token: SecretString, calls: IntCounterVec) -> Result<Self, DoorError> {
        let unreachable = |error: &dyn std::error::Error| DoorError::Unreachable(error.to_string());
        let uri = url
            .as_str()
            .parse::<http::Uri>()
            .map_err(|error| unreachable(&error))?;
        let mut config = Config::new(uri);
        config.connect_timeout = Some(CALL_TIMEOUT);
        config.read_timeout = Some(CALL_TIMEOUT);
        config.write_timeout = Some(CALL_TIMEOUT);
        // Each caller in here has its own pace of trying again.
        config.default_retry = false;
        config.auth_info.token = Some(token);
        let client = Client::try_from(config).map_err(|error| unreachable(&error))?;
        Ok(Self { client, calls })
    }

    /// A Secret; `None` only when the apiserver itself says that there is none.
    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, DoorError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        self.found("get secret", api.get(name)).await
    }

    /// Replaces a Secret as it was read: its resourceVersion is compared.
    pub(crate) async fn replace_secret(&self, namespace: &str, secret: &Secret) -> Result<Secret, DoorError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let name = secret.metadata.name.clone().unwrap_or_default();
        self.call(
            "update secret",
            api.replace(&name, &PostParams::default(), secret),
        )
        .await
    }

    pub(crate) async fn create_secret(&self, namespace: &str, secret: &Secret) -> Result<Secret, DoorError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        self.call("create secret", api.create(&PostParams::default(), secret))
            .await
    }

    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>, DoorError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        self.found("get configmap", api.get(name)).await
    }

    pub(crate) async fn create_event(&self, namespace: &str, event: &Event) -> Result<(), DoorError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        self.call("create event", api.create(&PostParams::default(), event))
            .await
            .map(drop)
    }

    pub(crate) async fn version(&self) -> Result<Info, DoorError> {
        self.call("get version", self.client.apiserver_version()).await
    }

    /// How many nodes there are, without listing them; `None` when the apiserver does not say.
    pub(crate) async fn nodes(&self) -> Result<Option<u64>, DoorError> {
        self.size("list nodes", &ApiResource::erase::<Node>(&())).await
    }

    /// How many pods there are, without listing them.
    pub(crate) async fn pods(&self) -> Result<Option<u64>, DoorError> {
        self.size("list pods", &ApiResource::erase::<Pod>(&())).await
    }

    /// One object's metadata, and how many more there are. Servers that cannot leave the rest of the object out
    /// (406) send one whole object. Nobody reads what is in it, so it has no type: readers for all of a Pod and a Node
    /// would be a twentieth of this program.
    async fn size(&self, what: &str, kind: &ApiResource) -> Result<Option<u64>, DoorError> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), kind);
        match self.call(what, api.list_metadata(&one())).await {
            Ok(list) => Ok(count(list.items.len(), &list.metadata)),
            Err(DoorError::Refused { code: 406, .. }) => {
                let list = self.call(what, api.list(&one())).await?;
                Ok(count(list.items.len(), &list.metadata))
            }
            Err(error) => Err(error),
        }
    }

    async fn found<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, DoorError> {
        match self.call(what, call).await {
            Ok(value) => Ok(Some(value)),
            Err(DoorError::Refused { code: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, DoorError> {
        let result = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(result) => result.map_err(classify),
            Err(_) => Err(DoorError::Unreachable(format!(
                "no answer within {} s",
                CALL_TIMEOUT.as_secs()
            ))),
        };
        let outcome = match &result {
            Ok(_) => "ok",
            Err(DoorError::Unreachable(_)) => "unreachable",
            Err(DoorError::Refused { .. }) => "refused",
            Err(DoorError::Conflict) => "conflict",
        };
        self.calls.with_label_values(&[what, outcome]).inc();
        result
    }
}

fn one() -> ListParams {
    ListParams::default().limit(1)
}

fn count(items: usize, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta) -> Option<u64> {
    let more = meta.continue_.as_deref().is_some_and(|token| !token.is_empty());
    let rest = match meta.remaining_item_count {
        Some(rest) => u64::try_from(rest).ok()?,
        // More to come, and nobody says how much: unknown is not zero.
        None if more => return None,
        None => 0,
    };
    Some(u64::try_from(items).ok()?.saturating_add(rest))
}

/// A 404 counts as such only with the apiserver's own reason: a proxy in between has a 404 of its own.
fn classify(error: Error) -> DoorError {
    let Error::Api(status) = error else {
        return DoorError::Unreachable(one_line(&chain(&error)));
    };
    let message = one_line(&status.message);
    match status.code {
        409 => DoorError::Conflict,
        404 if status.reason != "NotFound" => {
            DoorError::Unreachable(format!("404 that is not the apiserver's: {message}"))
        }
        code if code >= 500 => DoorError::Unreachable(format!("{code}: {message}")),
        code => DoorError::Refused { code, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;

    fn meta(remaining: Option<i64>, token: Option<&str>) -> ListMeta {
        ListMeta {
            remaining_item_count: remaining,
            continue_: token.map(str::to_owned),
            ..ListMeta::default()
        }
    }

    #[test]
    fn unknown_is_not_zero() {
        assert_eq!(count(1, &meta(Some(41), Some("t"))), Some(42));
        assert_eq!(count(0, &meta(None, None)), Some(0));
        assert_eq!(count(1, &meta(None, Some(""))), Some(1));
        assert_eq!(count(1, &meta(None, Some("t"))), None);
        assert_eq!(count(1, &meta(Some(-1), Some("t"))), None);
    }

    #[test]
    fn only_the_apiservers_own_404_means_that_there_is_none() {
        let status = |code, reason: &str| {
            let mut status = kube::core::Status::failure("m", reason);
            status.code = code;
            classify(Error::Api(Box::new(status)))
        };
        assert!(matches!(
            status(404, "NotFound"),
            DoorError::Refused { code: 404, .. }
        ));
        assert!(matches!(
            status(404, "Failed to parse error data"),
            DoorError::Unreachable(_)
        ));
        assert!(matches!(
            status(403, "Forbidden"),
            DoorError::Refused { code: 403, .. }
        ));
        assert!(matches!(
            status(503, "ServiceUnavailable"),
            DoorError::Unreachable(_)
        ));
        assert_eq!(status(409, "Conflict"), DoorError::Conflict);
    }
}
