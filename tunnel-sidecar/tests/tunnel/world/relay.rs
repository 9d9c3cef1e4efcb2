//! A relay between sidecar and server that stalls, cuts and counts.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They pass.
    None,
    /// They vanish both ways, and nothing is closed.
    BlackHole,
    /// Only what the server sends vanishes.
    Deaf,
    /// What the server sends passes at about 1.2 MiB a second.
    Slow,
}

/// A relay to one address.
pub(crate) struct Relay {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    cut: watch::Sender<u64>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, cut) = (watch::Sender::new(Fault::None), watch::Sender::new(0));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (faults, cuts, counter) = (fault.subscribe(), cut.subscribe(), Arc::clone(&accepted));
        let task = tokio::spawn(async move {
            let mut pairs = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let (faults, mut cuts) = (faults.clone(), cuts.clone());
                cuts.mark_unchanged();
                pairs.spawn(async move {
                    tokio::select! { () = pair(client, target, faults) => {}, _ = cuts.changed() => {} }
                });
            }
        });
        Self {
            address,
            fault,
            cut,
            accepted,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Changes what happens to bytes of every connection.
    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pair(client: TcpStream, target: SocketAddr, faults: watch::Receiver<Fault>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let ((client_read, client_write), (server_read, server_write)) =
        (client.into_split(), server.into_split());
    let up = one_way(client_read, server_write, faults.clone(), &[Fault::BlackHole]);
    let down = one_way(
        server_read,
        client_write,
        faults,
        &[Fault::BlackHole, Fault::Deaf],
    );
    // Either end of the relay closing ends both, as with a proxy in front of a server.
    tokio::select! { () = up => {}, () = down => {} }
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut faults: watch::Receiver<Fault>,
    stalls: &[Fault],
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if faults.wait_for(|fault| !stalls.contains(fault)).await.is_err() || read == 0 {
            return;
        }
        let slow = stalls.contains(&Fault::Deaf) && *faults.borrow() == Fault::Slow;
        if slow {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
