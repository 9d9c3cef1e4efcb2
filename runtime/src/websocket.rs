//! A WebSocket as a client: dial, TLS, upgrade, each within one timeout.

use std::{io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Collected, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest as _,
        error::{ProtocolError, SubProtocolError},
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};
use url::Url;

use crate::{
    dial::{self, DialError},
    tls::{self, MaybeTls, TlsError},
};

/// Read and write buffers of a WebSocket. Larger ones were measured to bring nothing but memory.
const BUFFER: usize = 32 * 1024;
/// Bytes of a refusal that are kept: enough for a sentence.
const EXCERPT: usize = 256;

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
    let stream = open(&to).await?;
    let protocol = |source| ConnectError::Protocol {
        url: url.clone(),
        source,
    };
    let request = handshake(&to).map_err(protocol)?;
    let upgrade = client_async_with_config(request, wrap(stream), Some(config(to.max_message)));
    match timeout(to.timeout, upgrade).await {
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
        Ok(Err(error)) => Err(protocol(Box::new(error))),
    }
}

/// Connects, offering [`Connect::subprotocol`] without insisting on it; returns whether the peer took it.
///
/// The handshake is written here because a WebSocket library refuses an answer that does not repeat what was
/// offered, and a peer that knows only the older protocol does just that.
///
/// # Errors
/// See [`ConnectError`].
pub async fn negotiate<S>(
    to: Connect<'_>,
    wrap: impl FnOnce(MaybeTls) -> S,
) -> Result<(WebSocketStream<S>, bool), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let url = to.url;
    let stream = open(&to).await?;
    let failed = |source: tungstenite::Error| ConnectError::Protocol {
        url: url.clone(),
        source: Box::new(source),
    };
    let mut request = handshake(&to)
        .map_err(|source| failed(*source))?
        .map(|()| Empty::<Bytes>::new());
    // hyper writes the request target as it is given, and a server wants a path.
    let target = request.uri().path_and_query().cloned();
    *request.uri_mut() = target.map_or_else(Uri::default, Uri::from);
    let answered = timeout(to.timeout, exchange(request, wrap(stream))).await;
    match answered {
        Err(_) => Err(ConnectError::Timeout {
            url: url.clone(),
            timeout: to.timeout,
        }),
        Ok(Err(source)) => Err(failed(source)),
        Ok(Ok(Answer::Refused {
            status,
            retry_after,
            body,
        })) => Err(ConnectError::Refused {
            url: url.clone(),
            status,
            retry_after,
            body: excerpt(&body),
        }),
        Ok(Ok(Answer::Switched { picked, io, read })) => {
            let taken = match (&picked, to.subprotocol) {
                (None, _) => false,
                (Some(picked), Some(offered)) if picked.as_bytes() == offered.as_bytes() => true,
                (Some(_), _) => {
                    let wrong = SubProtocolError::InvalidSubProtocol;
                    return Err(failed(ProtocolError::SecWebSocketSubProtocolError(wrong).into()));
                }
            };
            let config = Some(config(to.max_message));
            let socket = WebSocketStream::from_partially_read(io, read, Role::Client, config).await;
            Ok((socket, taken))
        }
    }
}

enum Answer<S> {
    Switched {
        picked: Option<HeaderValue>,
        io: S,
        /// What came behind the answer's head.
        read: Vec<u8>,
    },
    Refused {
        status: StatusCode,
        retry_after: Option<Duration>,
        body: Bytes,
    },
}

/// Sends the handshake and reads its answer.
async fn exchange<S>(request: Request<Empty<Bytes>>, stream: S) -> Result<Answer<S>, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = |error: hyper::Error| tungstenite::Error::Io(io::Error::other(error));
    let wrong = |error: ProtocolError| Err(tungstenite::Error::Protocol(error));
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let expected = key.map(|key| derive_accept_key(key.as_bytes()));
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, EXCERPT * 16).collect().await;
            return Ok(Answer::Refused {
                status: parts.status,
                retry_after: retry_after(&parts.headers),
                body: body.map(Collected::to_bytes).unwrap_or_default(),
            });
        }
        let headers = response.headers();
        let word = |name: &HeaderName| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        if !word(&header::UPGRADE).eq_ignore_ascii_case("websocket") {
            return wrong(ProtocolError::MissingUpgradeWebSocketHeader);
        }
        if expected.as_deref() != Some(word(&header::SEC_WEBSOCKET_ACCEPT)) {
            return wrong(ProtocolError::SecWebSocketAcceptKeyMismatch);
        }
        let picked = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
        let upgraded = hyper::upgrade::on(response).await.map_err(http)?;
        match upgraded.downcast::<TokioIo<S>>() {
            Ok(parts) => Ok(Answer::Switched {
                picked,
                io: parts.io.into_inner(),
                read: parts.read_buf.to_vec(),
            }),
            Err(_) => wrong(ProtocolError::HandshakeIncomplete),
        }
    };
    let (mut talk, drive) = (pin!(talk), connection.with_upgrades());
    tokio::select! {
        answer = &mut talk => answer,
        _ = drive => talk.await,
    }
}

/// Dials, and speaks TLS where the URL says so.
async fn open(to: &Connect<'_>) -> Result<MaybeTls, ConnectError> {
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
    Ok(if secure {
        MaybeTls::Tls(Box::new(
            tls::connect(tcp, host, Arc::clone(&to.tls), to.timeout).await?,
        ))
    } else {
        MaybeTls::Plain(tcp)
    })
}

/// The request of the handshake.
fn handshake(to: &Connect<'_>) -> Result<Request<()>, Box<tungstenite::Error>> {
    let wrong = |error: http::Error| tungstenite::Error::HttpFormat(error);
    let mut request = to.url.as_str().into_client_request()?;
    if let Some(bearer) = to.bearer {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.expose_secret()))
            .map_err(|error| wrong(error.into()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    if let Some(subprotocol) = to.subprotocol {
        let value = HeaderValue::from_str(subprotocol).map_err(|error| wrong(error.into()))?;
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(request)
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
    String::from_utf8_lossy(body.get(..EXCERPT.min(body.len())).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
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

    #[tokio::test]
    async fn a_subprotocol_is_offered_and_its_refusal_is_no_error() {
        tls::install_provider();
        for (picked, expected) in [
            (None, Some(false)),
            (Some("h2"), Some(true)),
            (Some("other"), None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = Url::parse(&format!("ws://{}/x?y=1", listener.local_addr().unwrap())).unwrap();
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let key = request
                    .lines()
                    .find_map(|line| line.strip_prefix("Sec-Websocket-Key: "))
                    .unwrap();
                let accept = derive_accept_key(key.as_bytes());
                let protocol = picked.map_or_else(String::new, |picked| {
                    format!("Sec-WebSocket-Protocol: {picked}\r\n")
                });
                // The first frame comes in the same packet as the answer, and must not be lost.
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n\u{2}\u{1}x"
                );
                let mut answer = answer.into_bytes();
                let at = answer.len() - 3;
                answer[at] = 0x82;
                stream.write_all(&answer).await.unwrap();
                (request, stream)
            };
            let client = negotiate(
                Connect {
                    url: &url,
                    bearer: None,
                    subprotocol: Some("h2"),
                    tls: tls::client_config(Some(test_root().as_bytes()), &[]).unwrap(),
                    timeout: Duration::from_secs(10),
                    max_message: 1024,
                },
                |stream| stream,
            );
            let ((request, _stream), connected) = tokio::join!(server, client);
            assert!(request.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("Sec-Websocket-Protocol: h2\r\n"), "{request}");
            match (connected, expected) {
                (Ok((mut socket, taken)), Some(expected)) => {
                    assert_eq!(taken, expected);
                    let first = socket.next().await.unwrap().unwrap();
                    assert_eq!(first.into_data(), "x");
                }
                (Err(ConnectError::Protocol { .. }), None) => {}
                (connected, _) => panic!("{picked:?}: {connected:?}"),
            }
        }
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
