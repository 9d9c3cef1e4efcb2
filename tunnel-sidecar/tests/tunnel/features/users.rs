//! Users of a forward, and what they see.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// One try; what is not there by then is tried again.
const TRY: Duration = Duration::from_secs(2);

/// What a user saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// What was wanted.
    Works,
    /// An answer of so many bytes.
    Bytes(usize),
}

/// Bytes there and back; more than one window's worth of pieces.
pub(crate) async fn tcp_comes_back(port: u16) -> Option<Seen> {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    comes_back(tcp).await
}

async fn comes_back(mut tcp: TcpStream) -> Option<Seen> {
    let sent: Vec<u8> = (0..100_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let (mut read, mut write) = tcp.split();
    let mut back = vec![0; sent.len()];
    let both = async {
        let (wrote, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        wrote.ok()?;
        got.ok()
    };
    timeout(TRY, both).await.ok()??;
    assert_eq!(back, sent, "bytes arrive as they were sent");
    Some(Seen::Works)
}

/// Several peers, several sizes; each gets its own back and nothing of the others.
pub(crate) async fn datagrams_come_back(port: u16) -> Option<Seen> {
    let mut peers = Vec::new();
    for _ in 0..3 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(("127.0.0.1", port)).await.ok()?;
        peers.push(socket);
    }
    for size in [1, 0, 200, 1400, 9000] {
        let datagram = |peer: usize| {
            let mut datagram = vec![u8::try_from(peer).unwrap() + b'a'; size];
            if let Some(last) = datagram.last_mut() {
                *last = u8::try_from(size % 251).unwrap();
            }
            datagram
        };
        for (peer, socket) in peers.iter().enumerate() {
            socket.send(&datagram(peer)).await.ok()?;
        }
        for (peer, socket) in peers.iter().enumerate() {
            let mut back = vec![0; 65_535];
            let got = timeout(TRY, socket.recv(&mut back)).await.ok()?.ok()?;
            assert_eq!(back[..got], datagram(peer), "peer {peer} gets its own");
        }
    }
    Some(Seen::Works)
}

/// Asks for an answer, whatever its size.
pub(crate) async fn answer_of(port: u16) -> Option<Seen> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(("127.0.0.1", port)).await.ok()?;
    socket.send(b"?").await.ok()?;
    let mut back = vec![0; 65_535];
    let got = timeout(TRY, socket.recv(&mut back)).await.ok()?.ok()?;
    Some(Seen::Bytes(got))
}

/// The echo through SOCKS: by IPv4 address, by IPv6 address, by name.
pub(crate) async fn socks_connects(port: u16, tcp: u16, tcp6: u16) -> Option<Seen> {
    let mut v6 = vec![4];
    v6.extend_from_slice(&std::net::Ipv6Addr::LOCALHOST.octets());
    for (address, target) in [
        (vec![1, 127, 0, 0, 1], tcp),
        (v6, tcp6),
        (b"\x03\x09localhost".to_vec(), tcp),
    ] {
        match socks(port, 1, &address, target).await? {
            Ok(stream) => comes_back(stream).await?,
            Err(code) => panic!("SOCKS answered {code} for {address:?}:{target}"),
        };
    }
    Some(Seen::Works)
}

/// What a SOCKS server makes of a request: a connection, or its code. `None`: nobody is there yet.
pub(crate) async fn socks(
    port: u16,
    command: u8,
    address: &[u8],
    target: u16,
) -> Option<Result<TcpStream, u8>> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    tcp.write_all(&[5, 1, 0]).await.ok()?;
    let mut chosen = [0; 2];
    timeout(TRY, tcp.read_exact(&mut chosen)).await.ok()?.ok()?;
    assert_eq!(chosen, [5, 0]);
    let mut request = vec![5, command, 0];
    request.extend_from_slice(address);
    request.extend_from_slice(&target.to_be_bytes());
    tcp.write_all(&request).await.ok()?;
    let mut head = [0; 4];
    timeout(crate::world::PATIENCE, tcp.read_exact(&mut head))
        .await
        .ok()?
        .ok()?;
    if head[1] != 0 {
        return Some(Err(head[1]));
    }
    let rest = if head[3] == 4 { 18 } else { 6 };
    let mut bound = vec![0; rest];
    tcp.read_exact(&mut bound).await.ok()?;
    Some(Ok(tcp))
}
