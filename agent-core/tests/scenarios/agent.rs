//! An agent-core under test, and waiting with a deadline.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_core::{App, config};
use runtime::{
    config::Env,
    supervise::{Outcome, Supervisor},
    telemetry::Telemetry,
};
use serde_json::Value;

/// Far beyond anything that should take place, so that only a missing event fails a test.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// Polls until `look` finds something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("never seen: {what}"))
}

pub(crate) struct Agent {
    pub(crate) supervisor: Supervisor,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) dir: PathBuf,
}

/// The settings that every test shares: fast, and everything below `dir`.
fn settings(dir: &Path, api: &str) -> BTreeMap<String, String> {
    let path = |name: &str| dir.join(name).display().to_string();
    [
        ("PIPEOPS_API_URL", api.to_owned()),
        ("PIPEOPS_TOKEN_FILE", path("token")),
        ("PIPEOPS_CLUSTER_NAME", "lab".to_owned()),
        ("PIPEOPS_HTTP_LISTEN", "127.0.0.1:0".to_owned()),
        ("PIPEOPS_GRPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("PIPEOPS_PRIVATE_DIR", path("private")),
        ("PIPEOPS_EDGE_TUNNEL_DIR", path("edge-tunnel")),
        ("PIPEOPS_EDGE_PROXY_DIR", path("edge-proxy")),
        ("PIPEOPS_STATE_FILE", path("state.yaml")),
        ("PIPEOPS_TERMINATION_LOG", path("termination-log")),
        ("PIPEOPS_DRAIN_TIMEOUT", "10s".to_owned()),
        ("PIPEOPS_HEARTBEAT_INTERVAL", "100ms".to_owned()),
        ("PIPEOPS_TUNNEL_POLL_INTERVAL", "100ms".to_owned()),
        ("PIPEOPS_REGISTRATION_BACKOFF_MIN", "20ms".to_owned()),
        ("PIPEOPS_REGISTRATION_BACKOFF_MAX", "100ms".to_owned()),
        ("PIPEOPS_KUBERNETES_DOOR", "http://127.0.0.1:9".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

impl Agent {
    pub(crate) async fn start(dir: &Path, api: &str, more: &[(&str, &str)]) -> Self {
        let mut env = settings(dir, api);
        env.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        if !dir.join("token").exists() {
            std::fs::write(dir.join("token"), "cp-token\n").unwrap();
        }
        let config =
            config::load(&BTreeMap::new(), None, &Env::from_pairs(env)).unwrap_or_else(|e| panic!("{e}"));
        let supervisor = Supervisor::new(config.drain_timeout);
        let root = dir.join("root");
        let bound = App::bind_below(&root, config, &Telemetry::disabled())
            .await
            .unwrap();
        let (http, grpc) = (bound.http_address(), bound.grpc_address());
        bound.run(&supervisor);
        Self {
            supervisor,
            http,
            grpc,
            dir: dir.to_path_buf(),
        }
    }

    pub(crate) async fn stop(self) -> Outcome {
        self.supervisor.drain("the test is over");
        self.supervisor.finish().await
    }

    pub(crate) fn operator_token(&self) -> String {
        std::fs::read_to_string(self.dir.join("private/operator-token")).unwrap()
    }

    pub(crate) fn edge(&self, name: &str) -> PathBuf {
        self.dir.join(format!("edge-{name}/token"))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = client()
            .get(format!("http://{}{path}", self.http))
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let request = client().get(format!("http://{}{path}", self.http));
        request
            .bearer_auth(self.operator_token())
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    /// Waits until `/readyz` holds all of `words`; returns its text.
    pub(crate) async fn readyz(&self, words: &[&str]) -> String {
        eventually(&format!("{words:?} in /readyz"), async || {
            let (_, text) = self.get("/readyz").await;
            words.iter().all(|word| text.contains(word)).then_some(text)
        })
        .await
    }
}

pub(crate) fn client() -> reqwest::Client {
    runtime::tls::install_provider();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub(crate) fn state(dir: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(dir.join("state.yaml")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| {
            (
                name.trim_matches('"').to_owned(),
                value.trim_matches('"').to_owned(),
            )
        })
        .collect()
}
