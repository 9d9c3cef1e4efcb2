//! The HTTP client of the control plane: one call each for registration, heartbeat and tunnel status.
//!
//! Answers are sorted here into what the session understands: done, final no, not known, try again.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use proto::v1::ProxyLimits;
use reqwest::Client;
use runtime::{
    dial::url_is_loopback,
    secret::{ExposeSecret as _, SecretString, sha256},
    supervise::chain,
    tls::{TlsError, client_config},
    trace,
};
use serde_json::Value;
use tracing::{Instrument as _, debug, info_span};
use url::Url;

use crate::{
    config::{ControlPlaneConfig, TokenSource},
    session::refusal::{Refusal, is_final, sentence},
    wire::{self, MAX_BODY, complaint, register, says_unknown},
};

/// Reaching the control plane; the answer has the limit of its call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer waits are not obeyed: a slip of the peer must not silence an agent for a day.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Below the idle limits of common load balancers, above the beat.
const POOL_IDLE: Duration = Duration::from_secs(50);
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The trust store is unusable.
    #[error("cannot prepare TLS towards the control plane")]
    Tls(#[from] TlsError),
    /// The HTTP client refuses its settings.
    #[error("cannot prepare the HTTP client for the control plane")]
    Http(#[from] reqwest::Error),
}

/// What came of a registration.
#[derive(Debug)]
pub(crate) enum RegisterOutcome {
    Registered(register::Registered),
    Refused {
        sentence: String,
    },
    Failed {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// What came of a heartbeat.
#[derive(Clone, Debug)]
pub(crate) enum BeatOutcome {
    Accepted {
        /// What the answer asks k8s-proxy's callers to keep to.
        limits: ProxyLimits,
    },
    /// The control plane does not know the cluster, or not this token.
    Refused { reason: String },
    Failed {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Why a 2xx is not the control plane's own: an empty body or JSON is, and a page is that of somebody in between
    /// who answers every request alike.
    pub(crate) fn foreign(&self) -> Option<&'static str> {
        wire::is_page(&self.body).then_some(
            "with a page instead of JSON: something on the way answers in the control plane's place, such as a \
             captive portal that wants a login or a proxy; let this address through",
        )
    }
}

/// The control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    client: Client,
    url: Url,
    timeout: Duration,
    heartbeat_timeout: Duration,
    token: TokenSource,
    last_token: Mutex<SecretString>,
    user_agent: HeaderValue,
    cluster_name: String,
}

impl ControlPlane {
    pub(crate) fn new(
        config: &ControlPlaneConfig,
        agent_version: &str,
        cluster_name: String,
    ) -> Result<Self, ClientError> {
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // A call that times out closes its HTTP/1.1 connection, so a dead one is never used twice.
            .http1_only()
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(TCP_KEEPALIVE)
            // The bearer must not follow a redirect.
            .redirect(reqwest::redirect::Policy::none());
        if url_is_loopback(&config.url) {
            builder = builder.no_proxy();
        }
        if config.url.scheme() == "https" {
            let tls = client_config(config.ca_pem.as_deref(), &[b"http/1.1"])?;
            builder = builder.tls_backend_preconfigured((*tls).clone());
        }
        let token = config.token.read().unwrap_or_default();
        let user_agent = HeaderValue::from_str(&format!("PipeOps-Agent/{agent_version}"))
            .unwrap_or(HeaderValue::from_static("PipeOps-Agent"));
        Ok(Self {
            client: builder.build()?,
            url: config.url.clone(),
            timeout: config.timeout,
            heartbeat_timeout: config.heartbeat_timeout,
            token: config.token.clone(),
            last_token: Mutex::new(token),
            user_agent,
            cluster_name,
        })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// The token at this moment. While a file is being replaced, the last one read is used.
    pub(crate) fn token(&self) -> SecretString {
        let mut last = self.last_token.lock().unwrap_or_else(PoisonError::into_inner);
        match self.token.read() {
            Ok(token) => *last = token,
            Err(reason) => debug!(reason, "using the last control-plane token that could be read"),
        }
        last.clone()
    }

    pub(crate) fn token_digest(&self) -> [u8; 32] {
        sha256(self.token().expose_secret().as_bytes())
    }

    /// Registers; `service_token_sent` only words the refusal.
    pub(crate) async fn register(&self, body: &Value, service_token_sent: bool) -> RegisterOutcome {
        let span = info_span!("register");
        let answer = self
            .post(register::PATH, body, self.timeout)
            .instrument(span)
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(reason) => {
                return RegisterOutcome::Failed {
                    reason,
                    retry_after: None,
                };
            }
        };
        let status = answer.status.as_u16();
        // 409 names the cluster that is there already: the registration of an earlier start.
        if matches!(status, 200 | 201 | 409)
            && let Some(registered) = register::parse(&answer.body)
        {
            return RegisterOutcome::Registered(registered);
        }
        let said = self.said(&answer.body);
        if is_final(status) {
            let url = self.url.as_str().trim_end_matches('/');
            let cluster_name = &self.cluster_name;
            let refusal = Refusal {
                url,
                status,
                said: &said,
                cluster_name,
                service_token_sent,
            };
            return RegisterOutcome::Refused {
                sentence: sentence(refusal),
            };
        }
        let reason = if let (true, Some(foreign)) = (answer.status.is_success(), answer.foreign()) {
            format!("{} answered the registration with {status} {foreign}", self.url)
        } else if answer.status.is_success() {
            format!(
                "{} answered the registration with {status} and no cluster_id ({said})",
                self.url
            )
        } else {
            format!("{} answered the registration with {status} ({said})", self.url)
        };
        RegisterOutcome::Failed {
            reason,
            retry_after: answer.retry_after,
        }
    }

    /// Sends one heartbeat; returns the HTTP status too, 0 without an answer.
    pub(crate) async fn beat(
        &self,
        cluster_uuid: &str,
        body: &Value,
        limit: Option<Duration>,
    ) -> (u16, BeatOutcome) {
        let path = wire::heartbeat::path(cluster_uuid);
        let timeout = limit.unwrap_or(self.heartbeat_timeout);
        let span = info_span!("heartbeat");
        let answer = match self.post(&path, body, timeout).instrument(span).await {
            Ok(answer) => answer,
            Err(reason) => {
                return (
                    0,
                    BeatOutcome::Failed {
                        reason,
                        retry_after: None,
                    },
                );
            }
        };
        let status = answer.status.as_u16();
        let said = self.said(&answer.body);
        let outcome = match status {
            200..300 if answer.foreign().is_some() => BeatOutcome::Failed {
                reason: format!(
                    "heartbeats are answered with {status} {}",
                    answer.foreign().unwrap_or_default()
                ),
                retry_after: answer.retry_after,
            },
            200..300 => match says_unknown(&said) {
                false => BeatOutcome::Accepted {
                    limits: wire::limits::parse(&answer.body),
                },
                true => BeatOutcome::Refused {
                    reason: format!("the control plane says: {said}"),
                },
            },
            401 | 403 | 404 | 410 => BeatOutcome::Refused {
                reason: format!("heartbeats are answered with {status} ({said})"),
            },
            400..500 if says_unknown(&said) => BeatOutcome::Refused {
                reason: format!("heartbeats are answered with {status} ({said})"),
            },
            _ => BeatOutcome::Failed {
                reason: format!("heartbeats are answered with {status} ({said})"),
                retry_after: answer.retry_after,
            },
        };
        (status, outcome)
    }

    /// Any GET below the base URL.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer, String> {
        self.send(self.client.get(self.target(path)?), self.timeout).await
    }

    /// What the control plane says, without our token: one that echoes the request must not bring it into logs and
    /// conditions.
    fn said(&self, body: &[u8]) -> String {
        let token = self.token();
        let text = String::from_utf8_lossy(body);
        match token.expose_secret() {
            "" => complaint(body),
            secret => complaint(text.replace(secret, "[token]").as_bytes()),
        }
    }

    async fn post(&self, path: &str, body: &Value, timeout: Duration) -> Result<Answer, String> {
        self.send(self.client.post(self.target(path)?).json(body), timeout)
            .await
    }

    async fn send(&self, request: reqwest::RequestBuilder, timeout: Duration) -> Result<Answer, String> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", self.token().expose_secret()))
            .map_err(|_| "the control-plane token holds characters that no header may carry".to_owned())?;
        bearer.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, bearer);
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        trace::inject(&tracing::Span::current(), &mut headers);
        let host = self.url.host_str().unwrap_or_default();
        let call = async {
            let mut response = request.headers(headers).send().await?;
            let (status, retry_after) = (response.status(), retry_after(response.headers()));
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_BODY {
                    body.truncate(MAX_BODY);
                    break;
                }
            }
            Ok::<_, reqwest::Error>(Answer {
                status,
                retry_after,
                body,
            })
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let cause = wire::one_line(&chain(&error.without_url()));
                Err(format!("no answer from the control plane {host}: {cause}"))
            }
            Err(_) => {
                let limit = humantime::format_duration(timeout);
                Err(format!("no answer from the control plane {host} within {limit}"))
            }
        }
    }

    /// The base URL may have a path of its own.
    fn target(&self, path: &str) -> Result<Url, String> {
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(path, query)| (path, Some(query)));
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        url.set_query(query);
        if url.host() == self.url.host() {
            Ok(url)
        } else {
            Err(format!("{path} leads elsewhere"))
        }
    }
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = SystemTime::from(jiff::fmt::rfc2822::parse(text).ok()?.timestamp());
            at.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(text));
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("99999999999"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(after("Thu, 06 Nov 2994 08:49:37 GMT"), Some(LONGEST_RETRY_AFTER));
        assert_eq!((after("soon"), after("-1")), (None, None));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
