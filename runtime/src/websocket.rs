//! A WebSocket as a client: dial, TLS, upgrade, each within one timeout.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _, protocol::WebSocketConfig},
};
use url::Url;

use crate::{
    dial::{self, DialError},
    tls::{self, MaybeTls, TlsError},
};

/// Read and write buffers of a WebSocket. Larger ones were measured to bring nothing but memory.
const BUFFER: usize = 32 * 1024;

/// Why no WebSocket came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL has no host, or a scheme other than `ws` and `wss`.
    #[error("{0} is not a ws:// or wss:// URL with a host")]
    Url(Url),
    /// The peer answered something else than 101.
    #[error("{url} answered {status} to the WebSocket handshake")]
    Refused {
        /// Who.
        url: Url,
        /// What it answered.
        status: StatusCode,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// The first bytes of its answer.
        body: String,
    },
    /// TCP failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TLS failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The upgrade did not end in time.
    #[error("{url} did not answer the WebSocket handshake within {timeout:?}")]
    Timeout {
        /// Who.
        url: Url,
        /// How long was waited.
        timeout: Duration,
    },
    /// The peer does not speak WebSocket.
    #[error("the WebSocket handshake with {url} failed")]
    Protocol {
        /// Who.
        url: Url,
        /// What went wrong.
        source: Box<tungstenite::Error>,
    },
}

/// What to connect to, and how.
#[derive(Debug)]
pub struct Connect<'a> {
    /// `ws://` or `wss://`.
    pub url: &'a Url,
    /// Sent as `Authorization: Bearer`.
    pub bearer: Option<&'a SecretString>,
    /// Offered as `Sec-WebSocket-Protocol`.
    pub subprotocol: Option<&'a str>,
    /// Used for `wss`.
    pub tls: Arc<ClientConfig>,
    /// For each of: connection, TLS, upgrade.
    pub timeout: Duration,
    /// Largest message that is accepted, bytes.
    pub max_message: usize,
}

/// A configuration with our buffer sizes and a limit for what is accepted.
pub fn config(max_message: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message))
}

/// Connects.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(to: Connect<'_>) -> Result<WebSocketStream<MaybeTls>, ConnectError> {
    connect_over(to, |stream| stream).await
}

/// Connects with something of the caller's, for example a watchdog, between the socket and the WebSocket.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_over<S>(
    to: Connect<'_>,
    wrap: impl FnOnce(MaybeTls) -> S,
) -> Result<WebSocketStream<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let url = to.url;
    let secure = match url.scheme() {
        "ws" => false,
        "wss" => true,
        _ => return Err(ConnectError::Url(url.clone())),
    };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(ConnectError::Url(url.clone()));
    };
    let tcp = dial::tcp(host, port, to.timeout).await?;
    let stream = if secure {
        MaybeTls::Tls(Box::new(
            tls::connect(tcp, host, Arc::clone(&to.tls), to.timeout).await?,
        ))
    } else {
        MaybeTls::Plain(tcp)
    };
    let protocol = |source| ConnectError::Protocol {
        url: url.clone(),
        source: Box::new(source),
    };
    let mut request = url.as_str().into_client_request().map_err(protocol)?;
    if let Some(bearer) = to.bearer {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose_secret()))
            .map_err(|error| protocol(tungstenite::Error::HttpFormat(error.into())))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    if let Some(subprotocol) = to.subprotocol {
        let value = HeaderValue::from_str(subprotocol)
            .map_err(|error| protocol(tungstenite::Error::HttpFormat(error.into())))?;
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    let upgrade = client_async_with_config(request, wrap(stream), Some(config(to.max_message)));
    match tokio::time::timeout(to.timeout, upgrade).await {
        Err(_) => Err(ConnectError::Timeout {
            url: url.clone(),
            timeout: to.timeout,
        }),
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(tungstenite::Error::Http(response))) => Err(ConnectError::Refused {
            url: url.clone(),
            status: response.status(),
            retry_after: retry_after(response.headers()),
            body: excerpt(response.body().as_deref().unwrap_or_default()),
        }),
        Ok(Err(error)) => Err(protocol(error)),
    }
}

/// `Retry-After` in seconds; the date form is ignored, because a wrong clock would make it a trap.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    /// A peer cannot silence us for longer than this.
    const LONGEST: Duration = Duration::from_secs(3600);
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST))
}

fn excerpt(body: &[u8]) -> String {
    /// Enough for a sentence.
    const LONGEST: usize = 256;
    String::from_utf8_lossy(body.get(..LONGEST.min(body.len())).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    #[tokio::test]
    async fn a_refusal_keeps_status_and_retry_after() {
        tls::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("ws://{}/x", listener.local_addr().unwrap())).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let answer = "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy";
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request[..count].to_vec()).unwrap()
        };
        let bearer = SecretString::from("canary");
        let client = connect(Connect {
            url: &url,
            bearer: Some(&bearer),
            subprotocol: None,
            tls: tls::client_config(Some(test_root().as_bytes()), &[]).unwrap(),
            timeout: Duration::from_secs(10),
            max_message: 1024,
        });
        let (request, refused) = tokio::join!(server, client);
        assert!(request.to_lowercase().contains("authorization: bearer canary"));
        let error = refused.unwrap_err();
        assert!(!format!("{error:?} {error}").contains("canary"));
        let ConnectError::Refused {
            status, retry_after, ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!(
            (status.as_u16(), retry_after),
            (503, Some(Duration::from_secs(7)))
        );
    }

    fn test_root() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec!["test".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .pem()
    }
}
