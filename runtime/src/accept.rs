//! The one accept loop: a cap, a supervised task for each connection, and an end that lets open requests finish.

use std::{fmt::Display, io, pin::pin, sync::Arc, time::Duration};

use hyper_util::server::graceful::GracefulConnection;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::{debug, warn};

use crate::supervise::Supervisor;

/// Pause after an accept that failed, for example because the descriptors are used up.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the drain and hands each connection to `serve`, which runs as a task of `supervisor` called `name`.
/// At most `limit` connections are open at once; more wait in the kernel's queue.
///
/// # Errors
/// None at present: an accept that fails is tried again.
pub async fn accept<F>(
    listener: TcpListener,
    name: &'static str,
    limit: usize,
    supervisor: Supervisor,
    serve: impl Fn(TcpStream) -> F,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(limit));
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = supervisor.draining() => return Ok(()),
        };
        match accepted {
            Ok((stream, _)) => {
                stream.set_nodelay(true).ok();
                let served = serve(stream);
                supervisor.spawn(name, async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(name, %error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Runs an HTTP connection to its end. From the drain on it takes no further request; at the cut it is closed.
pub async fn until_drained<C>(connection: C, name: &'static str, supervisor: &Supervisor)
where
    C: GracefulConnection,
    C::Error: Display,
{
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = supervisor.draining() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = supervisor.cut() => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(name, %error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Outcome;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn no_more_than_the_limit_are_open_and_the_rest_wait() {
        let supervisor = Supervisor::new(Duration::from_secs(5));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let greeted = accept(
            listener,
            "test",
            1,
            supervisor.clone(),
            async |mut stream: TcpStream| {
                stream.write_all(b"x").await.ok();
                stream.read_exact(&mut [0]).await.ok();
            },
        );
        supervisor.spawn_critical("accept", greeted);
        let mut first = TcpStream::connect(address).await.unwrap();
        first.read_exact(&mut [0]).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        tokio::select! {
            biased;
            _ = second.read_exact(&mut byte) => panic!("the second was served beside the first"),
            () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
        }
        drop(first);
        second.read_exact(&mut byte).await.unwrap();
        drop(second);
        supervisor.drain("test");
        assert_eq!(supervisor.finish().await, Outcome::Clean);
    }
}
