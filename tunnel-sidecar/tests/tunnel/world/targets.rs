//! Local services a forward may lead to.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// A service; ends when dropped.
pub(crate) struct Target {
    address: SocketAddr,
    open: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Target {
    /// Sends back what it gets.
    pub(crate) async fn echo() -> Self {
        Self::start(|mut tcp| async move {
            let (mut read, mut write) = tcp.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
        })
        .await
    }

    /// The same at an address.
    pub(crate) async fn echo_at(address: &str) -> Self {
        Self::start_at(address, |mut tcp| async move {
            let (mut read, mut write) = tcp.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
        })
        .await
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sends so many bytes and closes.
    pub(crate) async fn talker(bytes: Vec<u8>) -> Self {
        let bytes = Arc::new(bytes);
        Self::start(move |mut tcp| {
            let bytes = Arc::clone(&bytes);
            async move {
                tcp.write_all(&bytes).await.ok();
            }
        })
        .await
    }

    /// Reads nothing, sends nothing, closes nothing.
    pub(crate) async fn stalled() -> Self {
        Self::start(|tcp| async move {
            std::future::pending::<()>().await;
            drop(tcp);
        })
        .await
    }

    /// Reads to the end and says how much that was.
    pub(crate) async fn counter() -> (Self, watch::Receiver<Option<usize>>) {
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        let target = Self::start(move |mut tcp| {
            let sender = Arc::clone(&sender);
            async move {
                let mut all = Vec::new();
                tcp.read_to_end(&mut all).await.ok();
                sender.send_replace(Some(all.len()));
            }
        })
        .await;
        (target, receiver)
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0", serve).await
    }

    async fn start_at<F: Future<Output = ()> + Send + 'static>(
        address: &str,
        serve: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (count, open) = watch::channel(0);
        let count = Arc::new(count);
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (serving, count) = (serve(tcp), Arc::clone(&count));
                served.spawn(async move {
                    count.send_modify(|open| *open += 1);
                    serving.await;
                    count.send_modify(|open| *open -= 1);
                });
            }
        });
        Self { address, open, task }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Waits until so many connections are open.
    pub(crate) async fn until_open(&self, count: usize) {
        let mut open = self.open.clone();
        let reached = open.wait_for(|open| *open == count);
        tokio::time::timeout(super::PATIENCE, reached)
            .await
            .expect("connections at the target")
            .unwrap();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}
