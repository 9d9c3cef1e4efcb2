//! Buffers that exist only while bytes are in them: an idle connection holds none.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::Poll,
};

use tokio::io::{AsyncRead, ReadBuf};

/// The largest data message of the server; a read of a target fills one message.
const SIZE: usize = 32 * 1024;
/// Buffers kept for the next reader; more are given back to the system.
const KEPT: usize = 8;

/// The buffers of one process.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Reads what is there into a buffer that is taken only when there is something. Empty at the end of the stream.
    pub(crate) async fn read(&self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
        poll_fn(|cx| {
            let mut space = self.take();
            let mut buffer = ReadBuf::new(&mut space);
            let polled = Pin::new(&mut *from).poll_read(cx, &mut buffer);
            let filled = buffer.filled().len();
            match polled {
                Poll::Ready(Ok(())) => {
                    space.truncate(filled);
                    Poll::Ready(Ok(space))
                }
                Poll::Ready(Err(error)) => {
                    self.give_back(space);
                    Poll::Ready(Err(error))
                }
                Poll::Pending => {
                    self.give_back(space);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes a buffer back.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let mut free = self.lock();
        if free.len() < KEPT {
            free.push(buffer);
        }
    }

    fn take(&self) -> Vec<u8> {
        let mut buffer = self.lock().pop().unwrap_or_default();
        // Only what an earlier, shorter read cut off is filled again.
        buffer.resize(SIZE, 0);
        buffer
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_waiting_reader_holds_no_buffer() {
        let buffers = Buffers::default();
        let (mut near, mut far) = tokio::io::duplex(64);
        {
            let waiting = buffers.read(&mut near);
            tokio::pin!(waiting);
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            assert_eq!(buffers.lock().len(), 1, "given back while it waits");
            far.write_all(b"abc").await.unwrap();
            let read = waiting.await.unwrap();
            assert_eq!(read, b"abc");
            buffers.give_back(read);
        }
        drop(far);
        assert!(buffers.read(&mut near).await.unwrap().is_empty());
    }
}
