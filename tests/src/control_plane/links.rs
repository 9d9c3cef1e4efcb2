//! All open links, however they came about: the proxy dialled, or the control plane did.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        client::IntoClientRequest,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::link::{Direction, LinkLimits, ProxyLink};

/// Links to one cluster at once; the proxy of one pod needs one, two while it replaces it.
const MAX_LINKS: usize = 64;
/// Time for a WebSocket handshake that we begin.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Open links, oldest first.
#[derive(Debug)]
pub(super) struct Links {
    open: Mutex<Vec<Arc<ProxyLink>>>,
    next: AtomicU64,
    /// Counts up with each new link.
    news: watch::Sender<u64>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            next: AtomicU64::new(1),
            news: watch::Sender::new(0),
        }
    }
}

impl Links {
    /// Open links of a cluster, newest last.
    pub(super) fn of(&self, cluster: &str) -> Vec<Arc<ProxyLink>> {
        let mut open = self.lock();
        open.retain(|link| link.is_open());
        open.iter()
            .filter(|link| link.cluster() == cluster)
            .cloned()
            .collect()
    }

    /// The newest open link of a cluster.
    pub(super) fn newest(&self, cluster: &str) -> Option<Arc<ProxyLink>> {
        self.of(cluster).pop()
    }

    /// Waits for an open link with a number above `after`.
    pub(super) async fn wait(&self, cluster: &str, after: u64) -> Arc<ProxyLink> {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            if let Some(link) = self.newest(cluster).filter(|link| link.id() > after) {
                return link;
            }
            // The sender lives as long as `self`.
            let _ = news.changed().await;
        }
    }

    /// Cuts the links of a cluster, or all.
    pub(super) fn cut(&self, cluster: Option<&str>, reason: &str) {
        self.lock().retain(|link| {
            let hit = cluster.is_none_or(|cluster| link.cluster() == cluster);
            if hit {
                link.cut(reason);
            }
            !hit
        });
    }

    /// Serves a WebSocket that is open.
    fn add<S>(
        &self,
        socket: WebSocketStream<S>,
        cluster: &str,
        direction: Direction,
        limits: LinkLimits,
    ) -> Result<Arc<ProxyLink>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        if self.of(cluster).len() >= MAX_LINKS {
            bail!("cluster {cluster} has {MAX_LINKS} links already");
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let link = ProxyLink::start(socket, id, cluster, direction, limits);
        self.lock().push(Arc::clone(&link));
        self.news.send_modify(|count| *count += 1);
        tracing::info!(cluster, link = id, ?direction, "link open");
        Ok(link)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ProxyLink>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.cut(None, "the control plane stopped");
    }
}

/// What a WebSocket handshake of a proxy has to look like; an error is the status and the sentence for it.
pub(super) fn handshake(headers: &http::HeaderMap) -> Result<String, (http::StatusCode, &'static str)> {
    let has = |name: http::HeaderName, word: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    if !has(http::header::CONNECTION, "upgrade") || !has(http::header::UPGRADE, "websocket") {
        return Err((http::StatusCode::UPGRADE_REQUIRED, "this is a WebSocket"));
    }
    if !has(http::header::SEC_WEBSOCKET_VERSION, "13") {
        return Err((http::StatusCode::BAD_REQUEST, "the WebSocket version is not 13"));
    }
    let key = headers
        .get(http::header::SEC_WEBSOCKET_KEY)
        .ok_or((http::StatusCode::BAD_REQUEST, "no key"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

/// Takes over a connection whose handshake was answered.
pub(super) async fn accepted(
    links: &Links,
    upgrade: hyper::upgrade::OnUpgrade,
    cluster: &str,
    limits: LinkLimits,
) -> Result<()> {
    let stream = TokioIo::new(upgrade.await.context("the connection ended before its upgrade")?);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(&limits))).await;
    links.add(socket, cluster, Direction::FromProxy, limits)?;
    Ok(())
}

/// Dials a proxy's WebSocket.
pub(super) async fn dial(
    links: &Links,
    cluster: &str,
    url: &str,
    bearer: &str,
    limits: LinkLimits,
) -> Result<Arc<ProxyLink>> {
    let mut request = url
        .into_client_request()
        .with_context(|| format!("{url} is no WebSocket URL"))?;
    request
        .headers_mut()
        .insert(http::header::AUTHORIZATION, format!("Bearer {bearer}").parse()?);
    let authority = request.uri().authority().context("the URL has no host")?;
    if request.uri().scheme_str() != Some("ws") {
        bail!("only ws:// is dialled: what the tunnel brings is on the loopback");
    }
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let dialling = async {
        let tcp = TcpStream::connect(&address)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        tcp.set_nodelay(true)?;
        let (socket, _) = client_async_with_config(request, tcp, Some(config(&limits)))
            .await
            .with_context(|| format!("WebSocket handshake with {url}"))?;
        Ok::<_, anyhow::Error>(socket)
    };
    let socket = timeout(HANDSHAKE, dialling)
        .await
        .with_context(|| format!("{url} took too long"))??;
    links.add(socket, cluster, Direction::ToProxy, limits)
}

/// The URL of a proxy's WebSocket behind a forward.
pub(super) fn forward_url(address: SocketAddr) -> String {
    format!("ws://{address}/ws/k8s")
}

fn config(limits: &LinkLimits) -> WebSocketConfig {
    let max = Some(limits.max_frame_in);
    WebSocketConfig::default()
        .max_message_size(max)
        .max_frame_size(max)
}
