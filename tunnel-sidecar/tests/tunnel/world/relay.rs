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
    /// Only what the sidecar sends vanishes.
    Mute,
    /// Half of what the server sends next passes, then both connections are reset.
    Reset,
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
        Self::start_delayed(target, Duration::ZERO).await
    }

    /// The same, each way longer by `delay`.
    pub(crate) async fn start_delayed(target: SocketAddr, delay: Duration) -> Self {
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
                    tokio::select! { () = pair(client, target, faults, delay) => {}, _ = cuts.changed() => {} }
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

async fn pair(client: TcpStream, target: SocketAddr, faults: watch::Receiver<Fault>, delay: Duration) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let ((client_read, client_write), (server_read, server_write)) =
        (client.into_split(), server.into_split());
    if delay.is_zero() {
        let up = one_way(
            client_read,
            server_write,
            faults.clone(),
            &[Fault::BlackHole, Fault::Mute],
        );
        let down = one_way(
            server_read,
            client_write,
            faults,
            &[Fault::BlackHole, Fault::Deaf],
        );
        // Either end of the relay closing ends both, as with a proxy in front of a server.
        tokio::select! { () = up => {}, () = down => {} }
        return;
    }
    let (up, down) = (
        late(client_read, server_write, delay),
        late(server_read, client_write, delay),
    );
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
        if stalls.contains(&Fault::Deaf) && *faults.borrow() == Fault::Reset {
            to.write_all(&buffer[..read / 2]).await.ok();
            // The half must not be thrown away with the connection.
            tokio::time::sleep(Duration::from_millis(20)).await;
            for end in [to.as_ref(), from.as_ref()] {
                end.set_zero_linger().ok();
            }
            return;
        }
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

/// Passes everything on, each piece `delay` later than it came.
async fn late(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) {
    // Enough for a gigabit at this delay.
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(1024);
    let reading = async move {
        loop {
            let mut piece = vec![0; 64 * 1024];
            let read = from.read(&mut piece).await.unwrap_or(0);
            piece.truncate(read);
            let due = tokio::time::Instant::now() + delay;
            if sender.send((due, piece)).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if piece.is_empty() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
