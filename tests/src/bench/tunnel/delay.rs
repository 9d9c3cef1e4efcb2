//! A line with a delay: what goes in comes out later, as much as wants to be under way. (The relay of the scenarios sleeps per piece,
//! which limits the bandwidth.)

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Read at once.
const PIECE: usize = 64 * 1024;
/// Pieces under way: 64 MiB, more than the largest window twice.
const UNDER_WAY: usize = 1024;

/// The line; gone when dropped.
pub(super) struct DelayLine {
    pub(super) address: SocketAddr,
    /// When the latest connection was accepted.
    accepted: watch::Receiver<Option<Instant>>,
    _tasks: JoinSet<()>,
}

impl DelayLine {
    /// A line to `target` with this delay each way.
    pub(super) async fn start(target: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (first, accepted) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pairs = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                first.send_replace(Some(Instant::now()));
                pairs.spawn(async move { pair(near, target, delay).await.ok() });
            }
        });
        Ok(Self {
            address,
            accepted,
            _tasks: tasks,
        })
    }

    /// When the latest connection was accepted; waits for one.
    pub(super) async fn accepted(&self) -> Result<Instant> {
        let mut accepted = self.accepted.clone();
        let at = *accepted.wait_for(Option::is_some).await?;
        Ok(at.unwrap_or_else(Instant::now))
    }
}

async fn pair(near: TcpStream, target: SocketAddr, delay: Duration) -> Result<()> {
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::try_join!(
        one_way(near_read, far_write, delay),
        one_way(far_read, near_write, delay)
    )?;
    Ok(())
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) -> Result<()> {
    let (pieces, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        loop {
            let mut piece = vec![0; PIECE];
            let n = from.read(&mut piece).await?;
            piece.truncate(n);
            if n == 0 || pieces.send((Instant::now() + delay, piece)).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            to.write_all(&piece).await?;
        }
        anyhow::Ok(to.shutdown().await?)
    };
    tokio::try_join!(reading, writing)?;
    Ok(())
}
