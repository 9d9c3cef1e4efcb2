//! Users at the server's ports, and the service they reach through the tunnel.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const PIECE: usize = 256 * 1024;
/// Nothing here takes as long, on any machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a user asks of the service: one byte, then how much.
const SINK: u8 = 0;
const SOURCE: u8 = 1;
const ECHO: u8 = 2;

/// The service; gone when dropped.
pub(super) struct Service {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Service {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(async move { serve(stream).await.ok() });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _tasks: tasks,
        })
    }
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let what = stream.read_u8().await?;
    let size = stream.read_u64().await?;
    match what {
        SINK => {
            take(&mut stream, size).await?;
            stream.write_u8(1).await?;
        }
        SOURCE => give(&mut stream, size).await?,
        _ => {
            let mut byte = [0];
            while stream.read(&mut byte).await? == 1 {
                stream.write_all(&byte).await?;
            }
        }
    }
    // The user closes first: chisel ends both ways when one ends.
    while stream.read(&mut [0; 16]).await? > 0 {}
    Ok(())
}

async fn take(stream: &mut TcpStream, mut size: u64) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    while size > 0 {
        let n = stream.read(&mut buffer).await?;
        ensure!(n > 0, "closed with {size} bytes to come");
        size = size.saturating_sub(n as u64);
    }
    Ok(())
}

async fn give(stream: &mut TcpStream, mut size: u64) -> Result<()> {
    let buffer = vec![0x5a; PIECE];
    while size > 0 {
        let n = size.min(PIECE as u64);
        stream.write_all(&buffer[..usize::try_from(n)?]).await?;
        size -= n;
    }
    Ok(())
}

/// Which way the bytes go, as the tunnel's client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the server to the service.
    In,
    /// From the service to the server.
    Out,
}

async fn user(port: u16, what: u8, size: u64) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut head = vec![what];
    head.extend_from_slice(&size.to_be_bytes());
    stream.write_all(&head).await?;
    Ok(stream)
}

/// Moves `size` bytes over one connection to `port`.
pub(super) async fn bulk(port: u16, way: Way, size: u64) -> Result<()> {
    let moving = async {
        match way {
            Way::In => {
                let mut stream = user(port, SINK, size).await?;
                give(&mut stream, size).await?;
                ensure!(stream.read_u8().await? == 1, "the service has everything");
            }
            Way::Out => take(&mut user(port, SOURCE, size).await?, size).await?,
        }
        Ok(())
    };
    timeout(PATIENCE, moving).await?
}

/// Half of `streams` each way at the same time, `size` bytes each.
pub(super) async fn mixed(port: u16, streams: usize, size: u64) -> Result<()> {
    let mut all = JoinSet::new();
    for n in 0..streams {
        let way = if n % 2 == 0 { Way::In } else { Way::Out };
        all.spawn(bulk(port, way, size));
    }
    for one in all.join_all().await {
        one?;
    }
    Ok(())
}

/// Microseconds of `count` round trips of one byte over one connection.
pub(super) async fn round_trips(port: u16, count: usize) -> Result<Vec<f64>> {
    let mut stream = user(port, ECHO, 0).await?;
    let mut times = Vec::with_capacity(count);
    for n in 0..count + count / 10 {
        let start = Instant::now();
        stream.write_u8(7).await?;
        ensure!(timeout(PATIENCE, stream.read_u8()).await?? == 7, "an echo");
        // The first ones warm up.
        if n >= count / 10 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(times)
}

/// Opens `count` connections, `parallel` at a time, each with one byte there and back. Returns connections per second.
pub(super) async fn connections(port: u16, count: usize, parallel: usize) -> Result<f64> {
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..parallel {
        all.spawn(async move {
            for _ in 0..count / parallel {
                let mut stream = user(port, ECHO, 0).await?;
                stream.write_u8(7).await?;
                ensure!(timeout(PATIENCE, stream.read_u8()).await?? == 7, "an echo");
            }
            anyhow::Ok(())
        });
    }
    for one in all.join_all().await {
        one?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Waits until a whole connection through `port` works.
pub(super) async fn works(port: u16) -> Result<()> {
    let trying = async {
        loop {
            if let Ok(mut stream) = user(port, ECHO, 0).await
                && stream.write_u8(7).await.is_ok()
                && stream.read_u8().await.is_ok()
            {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    Ok(timeout(PATIENCE, trying).await?)
}

/// Waits until somebody listens on `port`.
pub(super) async fn listens(port: u16) -> Result<Instant> {
    let trying = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        Instant::now()
    };
    Ok(timeout(PATIENCE, trying).await?)
}
