//! The apiserver: connections of our own, so that what one call does to a connection is ours to decide.
//!
//! ```text
//!  ordinary calls ─► h1 pool: one call at a time on a connection; a dropped answer closes it, which cancels the call
//!  watches, logs  ─► h2 pool: at most 90 on a connection, and pings that find a dead one; h1 where there is no h2
//!  exec and so on ─► h1, a connection each, switched to WebSocket or SPDY and never used again
//! ```

mod body;
mod credential;
mod h1;
mod h2;
pub mod kubeconfig;
mod settings;
mod upgrade;

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, Uri, header};
use prometheus::IntGaugeVec;
use runtime::{
    dial::{self, DialError},
    supervise::Supervisor,
    tls::{self, MaybeTls, TlsError},
};

pub use body::{AnswerBody, BodyError, BoxError, RequestBody};
pub use credential::{Credential, TokenSource};
pub(crate) use h2::Supervised;
pub use settings::{ClientCertificate, Parts, Settings, SettingsError};
pub use upgrade::Switched;

/// For the TCP connection, and again for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often idle connections are looked through.
const JANITOR_INTERVAL: Duration = Duration::from_secs(15);

/// What kind of call a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Ends by itself, soon.
    Ordinary,
    /// May last for hours.
    Endless,
}

/// No answer from the apiserver.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No TLS session.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection broke.
    #[error("the connection to the apiserver broke before it answered")]
    Http(#[source] hyper::Error),
    /// The connection that others waited for too did not come about.
    #[error("{0}")]
    Shared(String),
    /// The request cannot be written for it.
    #[error("the request cannot be sent to the apiserver")]
    Request(#[source] http::Error),
}

impl UpstreamError {
    /// A word for metrics.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Dial(_) | Self::Shared(_) => "dial",
            Self::Tls(_) => "tls",
            Self::Http(_) => "connection",
            Self::Request(_) => "request",
        }
    }
}

/// The way to the apiserver; clones share its connections.
#[derive(Clone, Debug)]
pub struct Upstream {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    authority: HeaderValue,
    h1: h1::Pool,
    h2: h2::Pool,
    supervisor: Supervisor,
    open: IntGaugeVec,
}

impl Upstream {
    /// Connects at the first call. `open` counts connections by protocol.
    ///
    /// # Errors
    /// When the server's address is no authority.
    pub fn new(settings: Settings, supervisor: Supervisor, open: IntGaugeVec) -> Result<Self, SettingsError> {
        let authority = settings.authority()?;
        let inner = Inner {
            settings,
            authority,
            h1: h1::Pool::default(),
            h2: h2::Pool::default(),
            supervisor,
            open,
        };
        let upstream = Self {
            inner: Arc::new(inner),
        };
        let (swept, supervisor) = (upstream.clone(), upstream.inner.supervisor.clone());
        upstream.inner.supervisor.spawn("upstream janitor", async move {
            let mut ticks = tokio::time::interval(JANITOR_INTERVAL);
            loop {
                tokio::select! {
                    _ = ticks.tick() => swept.sweep(false),
                    () = supervisor.draining() => break,
                }
            }
            // Idle connections would hold the drain until its deadline.
            swept.sweep(true);
        });
        Ok(upstream)
    }

    /// The apiserver's address, for people.
    pub fn address(&self) -> &str {
        self.inner.settings.address()
    }

    /// Our own credential.
    pub fn credential(&self) -> &Credential {
        &self.inner.settings.credential
    }

    /// Sends a request whose URI is a path and query; returns once the head of the answer is here.
    ///
    /// # Errors
    /// When no answer came. The request may or may not have been carried out, unless it could not be sent at all.
    pub async fn send(
        &self,
        mut request: Request<RequestBody>,
        class: Class,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        match class {
            Class::Ordinary => {
                request
                    .headers_mut()
                    .insert(header::HOST, self.inner.authority.clone());
                self.send_h1(request).await
            }
            Class::Endless => match h2::acquire(self).await? {
                h2::Acquired::Lease(lease) => {
                    let uri = request.uri().path_and_query().map_or("/", |path| path.as_str());
                    let authority = self.inner.authority.to_str().unwrap_or_default();
                    let uri: Uri = format!("{}://{authority}{uri}", self.inner.settings.url.scheme())
                        .parse()
                        .map_err(|error: http::uri::InvalidUri| UpstreamError::Request(error.into()))?;
                    *request.uri_mut() = uri;
                    lease.send(request).await
                }
                h2::Acquired::OnlyH1(io) => {
                    request
                        .headers_mut()
                        .insert(header::HOST, self.inner.authority.clone());
                    let sender = self.handshake_h1(*io).await?;
                    self.send_fresh(sender, request, true).await
                }
            },
        }
    }

    async fn dial(&self, h2: bool) -> Result<MaybeTls, UpstreamError> {
        let settings = &self.inner.settings;
        let tcp = dial::tcp(&settings.host, settings.port, CONNECT_TIMEOUT).await?;
        let Some(tls) = &settings.tls else {
            return Ok(MaybeTls::Plain(tcp));
        };
        let config = Arc::clone(if h2 { &tls.h2 } else { &tls.h1 });
        let stream = tls::connect(tcp, &tls.server_name, config, CONNECT_TIMEOUT).await?;
        Ok(MaybeTls::Tls(Box::new(stream)))
    }

    /// Runs a connection until it ends, counted, as a task of its own.
    fn drive(&self, protocol: &'static str, connection: impl Future<Output = ()> + Send + 'static) {
        let gauge = self.inner.open.with_label_values(&[protocol]);
        gauge.inc();
        self.inner.supervisor.spawn("upstream connection", async move {
            connection.await;
            gauge.dec();
        });
    }

    fn sweep(&self, all: bool) {
        self.inner.h1.sweep(all);
        self.inner.h2.sweep(all);
    }
}
