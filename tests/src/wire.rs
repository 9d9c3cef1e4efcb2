//! A bare HTTP client for tests and benches: bytes as they came, nothing unpacked, nothing retried.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use runtime::tls::{self, MaybeTls};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::control_plane::ControlPlane;

/// For TCP, TLS and the first settings.
const CONNECT: Duration = Duration::from_secs(20);
/// As the reference control plane: a stream that stalls must leave the others their window.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024 * 1024;

/// Where to send requests, and with which credential.
#[derive(Clone, Debug)]
pub struct Target {
    host: String,
    port: u16,
    /// HTTP/1.1 and HTTP/2.
    tls: Option<[Arc<ClientConfig>; 2]>,
    headers: HeaderMap,
    /// Before every path.
    prefix: String,
}

impl Target {
    /// Plain HTTP with a bearer token.
    ///
    /// # Errors
    /// When the token is none.
    pub fn plain(address: SocketAddr, token: Option<&str>) -> Result<Self> {
        Ok(Self {
            host: address.ip().to_string(),
            port: address.port(),
            tls: None,
            headers: bearer(token)?,
            prefix: String::new(),
        })
    }

    /// HTTPS with a bearer token, trusting one authority; the path of `url` comes before every path.
    ///
    /// # Errors
    /// When URL, authority or token are none.
    pub fn https(url: &str, ca_pem: &str, token: Option<&str>) -> Result<Self> {
        let url: Url = url.parse()?;
        Ok(Self {
            host: url.host_str().context("a host")?.to_owned(),
            port: url.port_or_known_default().context("a port")?,
            tls: Some(tls_configs(ca_pem.as_bytes(), None)?),
            headers: bearer(token)?,
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// One cluster behind the front of a control plane.
    ///
    /// # Errors
    /// When its authority is not readable.
    pub fn front(control_plane: &ControlPlane, cluster: &str) -> Result<Self> {
        Self::https(
            &control_plane.front_url(cluster),
            control_plane.ca_pem(),
            Some(control_plane.front_token()),
        )
    }

    /// The apiserver of a kubeconfig with everything in it, by token or client certificate.
    ///
    /// # Errors
    /// When something is missing in it.
    pub fn kubeconfig(path: &Path) -> Result<Self> {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(path)?)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let data = |value: &Value| -> Result<Vec<u8>> {
            Ok(BASE64_STANDARD.decode(value.as_str().context("data in the kubeconfig")?)?)
        };
        let url: Url = cluster["server"].as_str().context("a server")?.parse()?;
        let identity = match user["client-certificate-data"].is_string() {
            true => Some((
                data(&user["client-certificate-data"])?,
                data(&user["client-key-data"])?,
            )),
            false => None,
        };
        let ca = data(&cluster["certificate-authority-data"])?;
        Ok(Self {
            host: url.host_str().context("a host")?.to_owned(),
            port: url.port_or_known_default().context("a port")?,
            tls: Some(tls_configs(&ca, identity)?),
            headers: bearer(user["token"].as_str())?,
            prefix: String::new(),
        })
    }

    async fn connect(&self, http2: bool) -> Result<MaybeTls> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let tcp = tokio::time::timeout(CONNECT, connecting).await??;
        tcp.set_nodelay(true)?;
        let Some([h1, h2]) = &self.tls else {
            return Ok(MaybeTls::Plain(tcp));
        };
        let config = Arc::clone(if http2 { h2 } else { h1 });
        Ok(MaybeTls::Tls(Box::new(
            tls::connect(tcp, &self.host, config, CONNECT).await?,
        )))
    }

    /// A connection for one call after the other.
    ///
    /// # Errors
    /// When there is no way there.
    pub async fn http1(&self) -> Result<Connection> {
        let io = TokioIo::new(self.connect(false).await?);
        let (sender, connection) = http1::handshake(io).await?;
        let driver = tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(self.connection(Sender::Http1(sender), driver))
    }

    /// A connection for many calls at once; plain HTTP/2 is spoken without asking.
    ///
    /// # Errors
    /// When there is no way there.
    pub async fn http2(&self) -> Result<Connection> {
        let io = TokioIo::new(self.connect(true).await?);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await?;
        let driver = tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(self.connection(Sender::Http2(sender), driver))
    }

    fn connection(&self, sender: Sender, driver: tokio::task::JoinHandle<()>) -> Connection {
        Connection {
            sender,
            target: Arc::new(self.clone()),
            driver: Arc::new(AbortOnDropHandle::new(driver)),
        }
    }

    /// One `GET` on a connection of its own.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.http1().await?.get(path, headers).await
    }
}

fn bearer(token: Option<&str>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_str(&format!("Bearer {token}"))?,
        );
    }
    Ok(headers)
}

fn tls_configs(ca: &[u8], identity: Option<(Vec<u8>, Vec<u8>)>) -> Result<[Arc<ClientConfig>; 2]> {
    tls::install_provider();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate?)?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
            builder.with_client_auth_cert(chain?, PrivateKeyDer::from_pem_slice(&key)?)?
        }
    };
    Ok([b"http/1.1".as_slice(), b"h2"].map(|protocol| {
        let mut config = config.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }))
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// An open connection; it is closed with the last of its answers.
pub struct Connection {
    sender: Sender,
    target: Arc<Target>,
    driver: Arc<AbortOnDropHandle<()>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Another handle of an HTTP/2 connection.
    ///
    /// # Errors
    /// On HTTP/1.1, which has none.
    pub fn share(&self) -> Result<Self> {
        let Sender::Http2(sender) = &self.sender else {
            anyhow::bail!("HTTP/1.1 carries one call at a time");
        };
        Ok(Self {
            sender: Sender::Http2(sender.clone()),
            target: Arc::clone(&self.target),
            driver: Arc::clone(&self.driver),
        })
    }

    /// `GET`.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.send(Method::GET, path, headers, Bytes::new()).await
    }

    /// Any request; returns with the head of the answer.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let target = &self.target;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        request.headers_mut().clone_from(&target.headers);
        for (name, value) in headers {
            request.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes())?,
                HeaderValue::from_str(value)?,
            );
        }
        let authority = format!("{}:{}", target.host, target.port);
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                *request.uri_mut() = format!("{}{path}", target.prefix).parse()?;
                request
                    .headers_mut()
                    .insert(header::HOST, HeaderValue::from_str(&authority)?);
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                let scheme = if target.tls.is_some() { "https" } else { "http" };
                *request.uri_mut() = format!("{scheme}://{authority}{}{path}", target.prefix).parse()?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        Ok(Answer {
            response,
            _connection: Arc::clone(&self.driver),
        })
    }
}

/// An answer whose body is still coming; dropping it gives the rest up.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    _connection: Arc<AbortOnDropHandle<()>>,
}

impl Answer {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The headers as they came.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// When it broke off.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.response.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body.
    ///
    /// # Errors
    /// When it broke off.
    pub async fn bytes(self) -> Result<Bytes> {
        Ok(self.response.into_body().collect().await?.to_bytes())
    }

    /// The whole body of a good answer.
    ///
    /// # Errors
    /// When the status is no success, or the body broke off.
    pub async fn good(self) -> Result<Bytes> {
        let status = self.status();
        let body = self.bytes().await?;
        ensure!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }
}
