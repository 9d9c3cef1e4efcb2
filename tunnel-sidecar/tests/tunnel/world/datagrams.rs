//! Local services that speak UDP.

use std::net::SocketAddr;

use tokio::{net::UdpSocket, task::JoinHandle};

/// A service; ends when dropped.
pub(crate) struct UdpTarget {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl UdpTarget {
    /// Sends back what it gets.
    pub(crate) async fn echo() -> Self {
        Self::echo_at(0).await
    }

    /// The same on a port.
    pub(crate) async fn echo_at(port: u16) -> Self {
        Self::start(port, |datagram| datagram.to_vec()).await
    }

    /// Answers with so many bytes, whatever it gets.
    pub(crate) async fn talker(bytes: usize) -> Self {
        Self::start(0, move |_| vec![7; bytes]).await
    }

    async fn start(port: u16, answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let socket = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_535];
            loop {
                // A peer that is gone makes the next receive fail; the service goes on.
                if let Ok((size, peer)) = socket.recv_from(&mut buffer).await {
                    socket.send_to(&answer(&buffer[..size]), peer).await.ok();
                }
            }
        });
        Self { address, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for UdpTarget {
    fn drop(&mut self) {
        self.task.abort();
    }
}
