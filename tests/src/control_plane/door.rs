//! A listener that can be taken away and brought back on the same port, with everything that came through it.
//!
//! ```text
//!  up:   bind ─► accept ─► (TLS) ─► hyper ─► router        down: no listener, every connection dropped
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{Router, extract::ConnectInfo};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// A peer that opens a connection and says nothing is dropped.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// One listening address and its server; dropping it ends both.
#[derive(Debug)]
pub(super) struct Door {
    address: SocketAddr,
    router: Router,
    tls: Option<Arc<ServerConfig>>,
    cut: watch::Sender<u64>,
    /// The accepting task, none while the door is down.
    running: Mutex<JoinSet<()>>,
}

/// Binds, so that the real address is known before anything is served.
pub(super) async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}"))
}

impl Door {
    /// Serves the router.
    pub(super) fn open(
        listener: TcpListener,
        router: Router,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self> {
        let address = listener.local_addr()?;
        let cut = watch::Sender::new(0);
        let mut running = JoinSet::new();
        running.spawn(accept(listener, router.clone(), tls.clone(), cut.subscribe()));
        Ok(Self {
            address,
            router,
            tls,
            cut,
            running: Mutex::new(running),
        })
    }

    /// Where it listens, or did.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection, and goes on listening.
    pub(super) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Takes the listener away with its connections; returns when the port is free.
    pub(super) async fn down(&self) {
        self.running.lock().await.shutdown().await;
    }

    /// Listens again on the same port.
    pub(super) async fn up(&self) -> Result<()> {
        let mut running = self.running.lock().await;
        if running.is_empty() {
            let listener = bind(self.address).await?;
            running.spawn(accept(
                listener,
                self.router.clone(),
                self.tls.clone(),
                self.cut.subscribe(),
            ));
        }
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<ServerConfig>>,
    mut cuts: watch::Receiver<u64>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((tcp, peer)) = accepted else {
                    // Out of descriptors: the next accept succeeds when some connection has ended.
                    connections.join_next().await;
                    continue;
                };
                connections.spawn(serve(tcp, peer, router.clone(), tls.clone()));
            }
            Some(_) = connections.join_next() => {}
            Ok(()) = cuts.changed() => connections.abort_all(),
        }
    }
}

async fn serve(tcp: TcpStream, peer: SocketAddr, router: Router, tls: Option<Arc<ServerConfig>>) {
    let _ = tcp.set_nodelay(true);
    match tls {
        None => serve_http(tcp, peer, router).await,
        Some(config) => match timeout(TLS_HANDSHAKE, TlsAcceptor::from(config).accept(tcp)).await {
            Ok(Ok(stream)) => serve_http(stream, peer, router).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        },
    }
}

async fn serve_http<S>(stream: S, peer: SocketAddr, router: Router)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, error, "connection ended");
    }
}
