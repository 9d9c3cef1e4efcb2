//! A user who never stops: numbered records through a forward to an echo and back, one connection after the other.
//!
//! What comes back is compared byte for byte, so a byte that is missing before a later one, changed or doubled is seen.
//! Bytes that were under way when a connection ended are counted apart: the user was told by the end.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Bytes of a record; the first 16 are its number and its connection's.
const RECORD: usize = 1024;
/// Between two records.
const PACE: Duration = Duration::from_millis(5);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(10);
/// A user who gets nothing back for so long gives the connection up.
const GIVES_UP: Duration = Duration::from_secs(20);

/// What the user has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Records that came back whole.
    pub(crate) answered: u64,
    /// Connections that ended, and bytes that were under way then.
    pub(crate) ended: u64,
    pub(crate) unanswered: u64,
    /// Tries that got no connection, or one that ended before anything came back.
    pub(crate) refused: u64,
    /// Bytes missing, changed or doubled before others that came.
    pub(crate) wrong: u64,
    /// The longest time between two answers.
    pub(crate) gap: Duration,
    last: Option<Instant>,
}

/// The user; leaves when dropped.
pub(crate) struct Flow {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Flow {
    /// Starts, and waits for the first answer.
    pub(crate) async fn start(address: SocketAddr) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            for number in 0_u64.. {
                let Ok(Ok(tcp)) = timeout(GIVES_UP, TcpStream::connect(address)).await else {
                    lock(&noted).refused += 1;
                    sleep(AGAIN).await;
                    continue;
                };
                one(number, tcp, &noted).await;
                sleep(AGAIN).await;
            }
        });
        let flow = Self { seen, task };
        flow.good_after(Instant::now()).await;
        flow
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits for an answer that came later than `moment`, and says when it came.
    pub(crate) async fn good_after(&self, moment: Instant) -> Instant {
        super::eventually("a user to get answers", || async {
            lock(&self.seen).last.filter(|last| *last > moment)
        })
        .await
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(connection: u64, number: u64) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD);
    record.extend_from_slice(&connection.to_be_bytes());
    record.extend_from_slice(&number.to_be_bytes());
    let mut state = connection ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while record.len() < RECORD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        record.push(state.to_le_bytes()[3]);
    }
    record
}

async fn one(connection: u64, tcp: TcpStream, seen: &Mutex<Seen>) {
    let (mut read, mut write) = tcp.into_split();
    let sent = Arc::new(Mutex::new(0_u64));
    let counter = Arc::clone(&sent);
    let sending = async move {
        for number in 0_u64.. {
            *counter.lock().unwrap() += 1;
            if write.write_all(&record(connection, number)).await.is_err() {
                break;
            }
            sleep(PACE).await;
        }
        std::future::pending::<()>().await;
    };
    let receiving = async {
        let mut back = vec![0; RECORD];
        for number in 0_u64.. {
            match timeout(GIVES_UP, read.read_exact(&mut back)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return number,
            }
            let mut seen = lock(seen);
            if back != record(connection, number) {
                seen.wrong += 1;
            }
            let now = Instant::now();
            let before = seen.last.unwrap_or(now);
            seen.gap = seen.gap.max(now - before);
            seen.last = Some(now);
            seen.answered += 1;
        }
        0
    };
    tokio::pin!(sending, receiving);
    let answered = tokio::select! { () = sending => 0, answered = receiving => answered };
    let mut seen = lock(seen);
    if answered == 0 {
        seen.refused += 1;
    } else {
        seen.ended += 1;
        seen.unanswered += (*sent.lock().unwrap() - answered) * RECORD as u64;
    }
}
