//! What may stand between a client and the server: a proxy that speaks CONNECT and SOCKS5, and a front that writes
//! down the request it passes on.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The only name that the proxy resolves by itself, so that a client cannot have gone around it.
const NAME: &str = "tunnel.test";

/// A proxy with one user; the first byte says which protocol a client speaks.
pub(crate) struct ProxyDouble {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl ProxyDouble {
    pub(crate) const NAME: &'static str = NAME;

    /// Lets `user:pass` through, and nobody else; everybody when it is empty.
    pub(crate) async fn start(user: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let notes = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                tokio::spawn(async move { serve(tcp, user, &notes).await });
            }
        });
        Self { address, asked, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients asked for, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for ProxyDouble {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut tcp: TcpStream, user: &str, notes: &Mutex<Vec<String>>) -> Option<()> {
    let mut first = [0];
    tcp.peek(&mut first).await.ok()?;
    let target = if first == [5] {
        socks(&mut tcp, user).await?
    } else {
        connect(&mut tcp, user).await?
    };
    notes.lock().unwrap().push(target.clone());
    let mut server = TcpStream::connect(target.replace(NAME, "127.0.0.1")).await.ok()?;
    let answer: &[u8] = if first == [5] {
        &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    } else {
        b"HTTP/1.1 200 OK\r\n\r\n"
    };
    tcp.write_all(answer).await.ok()?;
    copy_bidirectional(&mut tcp, &mut server).await.ok()?;
    Some(())
}

async fn connect(tcp: &mut TcpStream, user: &str) -> Option<String> {
    use base64::Engine as _;
    let head = head(tcp).await?;
    let wanted = format!(
        "Proxy-Authorization: Basic {}\r\n",
        base64::engine::general_purpose::STANDARD.encode(user)
    );
    if !user.is_empty() && !head.contains(&wanted) {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n";
        tcp.write_all(refusal).await.ok()?;
        return None;
    }
    let mut words = head.split(' ');
    (words.next()? == "CONNECT").then_some(())?;
    Some(words.next()?.to_owned())
}

async fn socks(tcp: &mut TcpStream, user: &str) -> Option<String> {
    let mut start = [0; 2];
    tcp.read_exact(&mut start).await.ok()?;
    let mut methods = vec![0; start[1].into()];
    tcp.read_exact(&mut methods).await.ok()?;
    if user.is_empty() {
        tcp.write_all(&[5, 0]).await.ok()?;
    } else {
        if !methods.contains(&2) {
            tcp.write_all(&[5, 0xff]).await.ok()?;
            return None;
        }
        tcp.write_all(&[5, 2]).await.ok()?;
        tcp.read_u8().await.ok()?;
        let mut said = Vec::new();
        for _ in 0..2 {
            let mut text = vec![0; tcp.read_u8().await.ok()?.into()];
            tcp.read_exact(&mut text).await.ok()?;
            said.push(String::from_utf8(text).ok()?);
        }
        let good = said.join(":") == user;
        tcp.write_all(&[1, u8::from(!good)]).await.ok()?;
        good.then_some(())?;
    }
    let mut request = [0; 4];
    tcp.read_exact(&mut request).await.ok()?;
    let host = match request[3] {
        1 => {
            let mut address = [0; 4];
            tcp.read_exact(&mut address).await.ok()?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        3 => {
            let mut name = vec![0; tcp.read_u8().await.ok()?.into()];
            tcp.read_exact(&mut name).await.ok()?;
            String::from_utf8(name).ok()?
        }
        _ => return None,
    };
    Some(format!("{host}:{}", tcp.read_u16().await.ok()?))
}

async fn head(tcp: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// Passes everything on to the server and keeps the head of each request.
pub(crate) struct Front {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Front {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let notes = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                tokio::spawn(async move {
                    let head = head(&mut tcp).await?;
                    notes.lock().unwrap().push(head.clone());
                    let mut server = TcpStream::connect(server).await.ok()?;
                    server.write_all(head.as_bytes()).await.ok()?;
                    copy_bidirectional(&mut tcp, &mut server).await.ok()
                });
            }
        });
        Self { address, heads, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The request heads so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}
