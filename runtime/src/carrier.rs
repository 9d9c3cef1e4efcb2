//! An ordered byte stream over the binary messages of a WebSocket; message borders mean nothing.
//!
//! What is written is kept until a flush or until a message is full, so that the heads and bodies of small frames
//! share one message; nothing is ever held past a flush.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

/// Largest message that is sent, bytes. Larger ones were measured to bring nothing.
const MESSAGE: usize = 64 * 1024;
/// Largest message that a peer needs to send, bytes; for [`crate::websocket::config`].
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// The byte stream. Its end is the WebSocket's close or the end of the connection under it.
#[derive(Debug)]
pub struct Carrier<S> {
    socket: WebSocketStream<S>,
    inbound: Bytes,
    outbound: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier<S> {
    /// Over an open WebSocket.
    pub fn new(socket: WebSocketStream<S>) -> Self {
        Self {
            socket,
            inbound: Bytes::new(),
            outbound: BytesMut::new(),
        }
    }

    /// Hands what was written to the WebSocket as one message.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outbound.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(self.outbound.split().freeze());
        Poll::Ready(Pin::new(&mut self.socket).start_send(message).map_err(broken))
    }

    /// Makes room for another piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.outbound.len() >= MESSAGE {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(MESSAGE - self.outbound.len()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Carrier<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.inbound.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => this.inbound = bytes,
                Some(Ok(Message::Text(_))) => {
                    let why = "a text message on a WebSocket that carries bytes";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = this.inbound.len().min(buf.remaining());
        if let Some(piece) = this.inbound.get(..count) {
            buf.put_slice(piece);
        }
        this.inbound.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Carrier<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let room = ready!(this.poll_room(cx))?;
        let piece = buf.get(..room.min(buf.len())).unwrap_or_default();
        this.outbound.extend_from_slice(piece);
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut room = ready!(this.poll_room(cx))?;
        let mut count = 0;
        for buf in bufs {
            let piece = buf.get(..room.min(buf.len())).unwrap_or_default();
            this.outbound.extend_from_slice(piece);
            room -= piece.len();
            count += piece.len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.socket).poll_close(cx)) {
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) | Ok(()) => {
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    if let tungstenite::Error::Io(error) = error {
        return error;
    }
    let closed = matches!(
        error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed
    );
    if closed {
        io::Error::new(io::ErrorKind::BrokenPipe, "the WebSocket is closed")
    } else {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio_tungstenite::tungstenite::protocol::Role;

    async fn pair(buffer: usize) -> (Carrier<DuplexStream>, Carrier<DuplexStream>) {
        let (ours, theirs) = tokio::io::duplex(buffer);
        let config = Some(websocket::config(MAX_MESSAGE));
        let client = WebSocketStream::from_raw_socket(ours, Role::Client, config).await;
        let server = WebSocketStream::from_raw_socket(theirs, Role::Server, config).await;
        (Carrier::new(client), Carrier::new(server))
    }

    #[tokio::test]
    async fn bytes_arrive_whole_and_in_order_both_ways() {
        let (client, server) = pair(1000).await;
        let sent: Vec<u8> = (0..300_000_u32).map(|index| (index % 251) as u8).collect();
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let (mut server_read, mut server_write) = tokio::io::split(server);
        let up = async {
            for piece in sent.chunks(7000) {
                client_write.write_all(piece).await.unwrap();
            }
            client_write.shutdown().await.unwrap();
        };
        let down = async {
            server_write.write_all(&sent).await.unwrap();
            server_write.flush().await.unwrap();
        };
        let (mut got_up, mut got_down) = (Vec::new(), vec![0; sent.len()]);
        let read_up = async { server_read.read_to_end(&mut got_up).await.unwrap() };
        let read_down = async { client_read.read_exact(&mut got_down).await.unwrap() };
        tokio::join!(up, down, read_up, read_down);
        assert!(got_up == sent && got_down == sent);
    }

    #[tokio::test]
    async fn one_flush_is_one_message_and_text_is_an_error() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let config = Some(websocket::config(MAX_MESSAGE));
        let mut carrier = Carrier::new(WebSocketStream::from_raw_socket(ours, Role::Client, config).await);
        let mut peer = WebSocketStream::from_raw_socket(theirs, Role::Server, config).await;
        carrier.write_all(b"head").await.unwrap();
        carrier.write_all(b"body").await.unwrap();
        carrier.flush().await.unwrap();
        let message = futures_util::StreamExt::next(&mut peer).await.unwrap().unwrap();
        assert_eq!(message.into_data(), "headbody");
        futures_util::SinkExt::send(&mut peer, Message::text("x"))
            .await
            .unwrap();
        let error = carrier.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
