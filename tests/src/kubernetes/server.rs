//! The listener: TLS or plain, HTTP/1.1 and HTTP/2 with the limits of the real API, and the ways to take it away.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    api,
    cluster::Cluster,
    connection::{Connection, Wire},
    fast::Fast,
    faults::{Asked, FaultKind},
};

// The HTTP/2 settings that a real kube-apiserver 1.34 announces, measured.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 26_148_865 + 65_535;
const MAX_FRAME: u32 = 256 * 1024;
const MAX_HEADER_LIST: u32 = 1_048_896;
/// Callers that cancel many young watches at once are normal here; the default of 20 would end their connection.
const MAX_PENDING_RESETS: usize = 10_000;

/// The server of one simulation.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) cluster: Arc<Cluster>,
    pub(super) address: SocketAddr,
    running: Mutex<Option<Running>>,
    connections: Arc<AtomicUsize>,
    next_connection: AtomicU64,
    acceptor: Option<Acceptor>,
    fast: Option<Arc<Fast>>,
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

#[derive(Debug)]
struct Running {
    accepting: JoinHandle<()>,
    /// Ends the connections of this generation.
    connections: CancellationToken,
}

impl Server {
    /// Binds and serves.
    pub(super) async fn start(
        cluster: Arc<Cluster>,
        listen: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        fast: Option<Arc<Fast>>,
    ) -> Result<Arc<Self>> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("binding {listen}"))?;
        let server = Arc::new(Self {
            cluster,
            address: listener.local_addr()?,
            running: Mutex::new(None),
            connections: Arc::new(AtomicUsize::new(0)),
            next_connection: AtomicU64::new(1),
            acceptor: acceptor.map(Acceptor),
            fast,
        });
        server.run(listener);
        Ok(server)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: &Arc<Self>, listener: TcpListener) {
        let connections = CancellationToken::new();
        let accepting = tokio::spawn(accept(Arc::downgrade(self), listener));
        *self.lock() = Some(Running {
            accepting,
            connections,
        });
    }

    /// Open TCP connections.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Breaks all connections; new ones are welcome.
    pub(super) fn cut_connections(&self) {
        if let Some(running) = self.lock().as_mut() {
            std::mem::take(&mut running.connections).cancel();
        }
    }

    /// Closes the listener and breaks all connections.
    pub(super) async fn down(&self) {
        let running = self.lock().take();
        if let Some(running) = running {
            running.connections.cancel();
            running.accepting.abort();
            // Only when the task has ended is the port free.
            let _ = running.accepting.await;
        }
    }

    /// Listens again on the same port.
    pub(super) async fn up(self: &Arc<Self>) -> Result<()> {
        if self.lock().is_none() {
            let listener = TcpListener::bind(self.address)
                .await
                .with_context(|| format!("binding {}", self.address))?;
            self.run(listener);
        }
        Ok(())
    }

    fn generation(&self) -> Option<CancellationToken> {
        self.lock().as_ref().map(|running| running.connections.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.lock().take() {
            running.accepting.abort();
            running.connections.cancel();
        }
    }
}

async fn accept(server: std::sync::Weak<Server>, listener: TcpListener) {
    while let Ok((tcp, _)) = listener.accept().await {
        let Some(server) = server.upgrade() else { return };
        let Some(generation) = server.generation() else {
            return;
        };
        let _ = tcp.set_nodelay(true);
        let id = server.next_connection.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(id, &generation);
        let count = Counted::new(server.connections.clone());
        let server = Arc::downgrade(&server);
        tokio::spawn(async move {
            let _count = count;
            let held = connection.clone();
            tokio::select! {
                () = held.broken() => {}
                () = serve(server, tcp, connection) => {}
            }
        });
    }
}

async fn serve(server: std::sync::Weak<Server>, tcp: TcpStream, connection: Arc<Connection>) {
    let Some(acceptor) = server.upgrade().map(|server| server.acceptor.clone()) else {
        return;
    };
    if let Some(cluster) = server.upgrade().map(|server| server.cluster.clone()) {
        cluster
            .faults
            .wait_while(Asked::default(), &FaultKind::StallConnections)
            .await;
    }
    let wire = Wire::new(tcp, connection.clone());
    match acceptor {
        Some(Acceptor(acceptor)) => {
            if let Ok(stream) = acceptor.accept(wire).await {
                speak(server, stream, connection).await;
            }
        }
        None => speak(server, wire, connection).await,
    }
}

async fn speak<S>(server: std::sync::Weak<Server>, stream: S, connection: Arc<Connection>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
    let fast = server.upgrade().and_then(|server| server.fast.clone());
    let service = service_fn(move |request| {
        let (server, connection) = (server.clone(), connection.clone());
        let at_once = fast.as_ref().and_then(|fast| fast.answer(&request));
        async move {
            if let Some(response) = at_once {
                return Ok(response);
            }
            let response = match server.upgrade() {
                Some(server) => api::handle(server, connection, request).await,
                None => std::future::pending().await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    // A client that goes away in the middle is normal here.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// Counts itself while it lives.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
