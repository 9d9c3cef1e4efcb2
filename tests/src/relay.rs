//! A TCP relay between two real peers that delays, stalls and cuts.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// What happens to the bytes that cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They pass.
    None,
    /// They wait this long, each way.
    Delay(Duration),
    /// Both ways are stopped, nothing is closed: a black hole.
    BlackHole,
    /// Only what the client sends is stopped.
    StallToServer,
    /// Only what the server sends is stopped.
    StallToClient,
}

/// A relay to one address.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
    cut: watch::Sender<u64>,
    refuse: watch::Sender<bool>,
    accepted: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Listens on a free port of the loopback and relays to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (fault, faults) = watch::channel(Fault::None);
        let (cut, cuts) = watch::channel(0);
        let (refuse, refusals) = watch::channel(false);
        let (accepted, mut tasks) = (Arc::<AtomicU64>::default(), JoinSet::new());
        let count = Arc::clone(&accepted);
        tasks.spawn(async move {
            let mut pairs = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                if *refusals.borrow() {
                    continue;
                }
                let (faults, mut cuts) = (faults.clone(), cuts.clone());
                cuts.mark_unchanged();
                pairs.spawn(async move {
                    let pair = pair(client, target, faults);
                    tokio::select! { _ = pair => {}, _ = cuts.changed() => {} }
                });
            }
        });
        Ok(Self {
            address,
            fault: Arc::new(fault),
            cut,
            refuse,
            accepted,
            _tasks: tasks,
        })
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that were accepted so far, also those that were refused afterwards.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Changes what happens to bytes of every connection, present and future.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Ends every open connection at once.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// While true, new connections are closed as soon as they are accepted.
    pub fn refuse(&self, on: bool) {
        self.refuse.send_replace(on);
    }
}

async fn pair(client: TcpStream, target: SocketAddr, faults: watch::Receiver<Fault>) -> Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = one_way(client_read, server_write, faults.clone(), Fault::StallToServer);
    let down = one_way(server_read, client_write, faults, Fault::StallToClient);
    tokio::try_join!(up, down)?;
    Ok(())
}

async fn one_way(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut faults: watch::Receiver<Fault>,
    stalled_by: Fault,
) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let delay = match *faults
            .wait_for(|fault| *fault != Fault::BlackHole && *fault != stalled_by)
            .await?
        {
            Fault::Delay(delay) => Some(delay),
            _ => None,
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        if count == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
    }
}
