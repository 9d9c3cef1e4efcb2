//! A scripted SSH server for tests: it speaks the wire over an in-memory pipe, step by step, and can misbehave at each. `tests/real_server.rs` proves it
//! honest against the real one.

use crate::{
    cipher::Cipher,
    connect,
    exchange::{Direction, Hash, KeySource, Transcript, tests::answer},
    hostkey::{HostKeyAlgorithm, tests::TestKey},
    http::accept_value,
    kexinit::{Agreement, KexInit, STRICT_SERVER, tests::server_offer},
    msg,
    packet::{Opener, Sealer},
    websocket::{Header, Opcode, mask},
    wire::{Put, Reader},
    *,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::timeout,
};

const VERSION: &[u8] = b"SSH-chisel-v3-server";
/// Far more than any step in memory takes, and longer than any timeout of the client, for tests with a paused clock.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a client's attempt ends with.
pub(crate) type Connected = Result<(Session, SessionEvents, Driver<DuplexStream>), ConnectError>;

pub(crate) struct Double {
    pub(crate) io: DuplexStream,
    /// Unmasked bytes not yet read as packets.
    plain: Vec<u8>,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) key: TestKey,
    pub(crate) offer: KexInit,
    pub(crate) bad_signature: bool,
    /// Announces strict key exchange without keeping to it.
    pub(crate) counts_on: bool,
    /// First packets of the client that were for another method or key.
    pub(crate) wrong_guesses: u32,
    client_version: Vec<u8>,
    session_id: Option<Hash>,
    /// Keys for what follows the client's NEWKEYS.
    pending: Option<(KeySource, Cipher, bool)>,
    /// WebSocket control frames seen, with their payload.
    pub(crate) controls: Vec<(Opcode, Vec<u8>)>,
}

/// A client with defaults, and what it asks for. Its windows do not grow, so it sends no pings of its own.
pub(crate) fn config() -> ClientConfig {
    let mut config = ClientConfig::new("server.example:80", "/sub");
    config.limits.max_window = config.limits.initial_window;
    config.user = "me".to_owned();
    config.password = Password::new("hunter2-canary".to_owned());
    config.config_json = b"{\"json\":1}".to_vec();
    config
}

/// A double and a client that connects to it.
pub(crate) fn start(config: ClientConfig) -> (Double, JoinHandle<Connected>) {
    let (ours, theirs) = duplex(1024 * 1024);
    let client = tokio::spawn(connect(theirs, config));
    let double = Double {
        io: ours,
        plain: Vec::new(),
        sealer: Sealer::new(),
        opener: Opener::new(),
        key: TestKey::generate(HostKeyAlgorithm::EcdsaP256),
        offer: server_offer(),
        bad_signature: false,
        counts_on: false,
        wrong_guesses: 0,
        client_version: Vec::new(),
        session_id: None,
        pending: None,
        controls: Vec::new(),
    };
    (double, client)
}

/// A session that is set up, its driver running.
pub(crate) struct Running {
    pub(crate) double: Double,
    pub(crate) session: Session,
    pub(crate) events: SessionEvents,
    pub(crate) driver: JoinHandle<SessionEnd>,
}

pub(crate) async fn running(config: ClientConfig) -> Running {
    let (mut double, client) = start(config);
    double.set_up().await;
    let (session, events, driver) = client.await.unwrap().unwrap();
    Running {
        double,
        session,
        events,
        driver: tokio::spawn(driver),
    }
}

/// How a session ended; one that does not end fails the test.
pub(crate) async fn ended(driver: JoinHandle<SessionEnd>) -> SessionEnd {
    timeout(PATIENCE, driver).await.unwrap().unwrap()
}

impl Running {
    /// How the session ended.
    pub(crate) async fn end(self) -> SessionEnd {
        ended(self.driver).await
    }

    /// Opens a channel as number `peer` of the double, which the client accepts.
    pub(crate) async fn channel(&mut self, peer: u32) -> (u32, Channel) {
        self.double
            .send(&open_message(peer, 1 << 21, "127.0.0.1:80"))
            .await;
        let channel = self.events.next().await.unwrap().accept();
        let confirmation = self.double.receive().await;
        let mut reader = Reader::new(&confirmation[1..]);
        assert_eq!(
            (confirmation[0], reader.u32().unwrap()),
            (msg::CHANNEL_OPEN_CONFIRMATION, peer)
        );
        let id = reader.u32().unwrap();
        assert_eq!(Some(id), channel.id());
        (id, channel)
    }
}

/// A CHANNEL_OPEN as chisel sends it.
pub(crate) fn open_message(peer: u32, window: u32, target: &str) -> Vec<u8> {
    let mut message = vec![msg::CHANNEL_OPEN];
    message.put_string(b"chisel");
    message.put_u32(peer);
    message.put_u32(window);
    message.put_u32(32 * 1024);
    message.put_raw(target.as_bytes());
    message
}

/// A message that starts with a channel number.
pub(crate) fn channel_message(number: u8, id: u32, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![number];
    message.put_u32(id);
    message.put_raw(rest);
    message
}

/// A CHANNEL_DATA message.
pub(crate) fn data_message(id: u32, data: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    rest.put_string(data);
    channel_message(msg::CHANNEL_DATA, id, &rest)
}

impl Double {
    /// Everything up to the accepted configuration.
    pub(crate) async fn set_up(&mut self) {
        self.upgrade().await;
        self.versions().await;
        self.key_exchange().await;
        self.log_in().await;
        let config = self.receive().await;
        assert_eq!(config, b"\x50\0\0\0\x06config\x01{\"json\":1}");
        self.send(&[msg::REQUEST_SUCCESS]).await;
    }

    pub(crate) async fn upgrade(&mut self) {
        let request = self.read_request().await;
        let (_, key) = request.split_once("Sec-WebSocket-Key: ").unwrap();
        let key: [u8; 16] = STANDARD.decode(&key[..24]).unwrap().try_into().unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            accept_value(key)
        );
        self.io.write_all(answer.as_bytes()).await.unwrap();
    }

    pub(crate) async fn read_request(&mut self) -> String {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(self.io.read_u8().await.unwrap());
        }
        String::from_utf8(request).unwrap()
    }

    pub(crate) async fn versions(&mut self) {
        self.send_bytes(&[VERSION, b"\r\n"].concat()).await;
        while !self.plain.ends_with(b"\r\n") {
            assert!(self.read_message().await, "the client sends its version");
        }
        self.client_version = self.plain.drain(..).collect();
        self.client_version.truncate(self.client_version.len() - 2);
        assert_eq!(self.client_version, b"SSH-chisel-v3-client");
    }

    /// A key exchange to its end, the client's KEXINIT yet to be read.
    pub(crate) async fn key_exchange(&mut self) {
        let exchange = self.offers().await;
        self.reply(exchange, true).await;
        assert_eq!(self.receive_for_newkeys().await, [msg::NEWKEYS]);
    }

    /// Both KEXINITs, and the client's value.
    pub(crate) async fn offers(&mut self) -> (Vec<u8>, Agreement, Vec<u8>) {
        self.send(&self.offer.encode()).await;
        let theirs = self.receive().await;
        self.values(theirs).await
    }

    /// The client's value, its KEXINIT known.
    pub(crate) async fn values(&mut self, client_init: Vec<u8>) -> (Vec<u8>, Agreement, Vec<u8>) {
        let theirs = KexInit::parse(&client_init).unwrap();
        let agreement = theirs.agree(&self.offer).unwrap();
        if theirs.first_packet_follows && !agreement.same_guess {
            assert_eq!(self.receive().await[0], msg::KEX_INIT);
            self.wrong_guesses += 1;
        }
        let message = self.receive().await;
        assert_eq!(message[0], msg::KEX_INIT);
        let value = Reader::new(&message[1..]).string().unwrap().to_vec();
        (client_init, agreement, value)
    }

    /// KEX_REPLY and, if wanted, NEWKEYS; the keys of both directions are prepared.
    pub(crate) async fn reply(&mut self, exchange: (Vec<u8>, Agreement, Vec<u8>), newkeys: bool) {
        let (client_init, agreement, client_value) = exchange;
        let (value, secret) = answer(agreement.method, &client_value);
        let blob = self.key.blob();
        let hash = Transcript {
            client_version: &self.client_version,
            server_version: VERSION,
            client_init: &client_init,
            server_init: &self.offer.encode(),
            host_key: &blob,
            client_value: &client_value,
            server_value: &value,
        }
        .hash(&secret);
        let mut signature = self.key.sign(&hash);
        if self.bad_signature {
            *signature.last_mut().unwrap() ^= 1;
        }
        let mut message = vec![msg::KEX_REPLY];
        for part in [&blob, &value, &signature] {
            message.put_string(part);
        }
        self.send(&message).await;
        let session_id = *self.session_id.get_or_insert(hash);
        let source = KeySource::new(secret, hash, session_id);
        let strict = self.offer.announces(STRICT_SERVER);
        if newkeys {
            self.send(&[msg::NEWKEYS]).await;
            let sealer = &mut self.sealer;
            source
                .keys(Direction::ServerToClient, agreement.cipher_in, |keys| {
                    sealer.change_keys(keys, strict && !self.counts_on)
                })
                .unwrap();
        }
        self.pending = Some((source, agreement.cipher_out, strict));
    }

    /// The client's NEWKEYS; what follows is read with the new keys.
    pub(crate) async fn receive_for_newkeys(&mut self) -> Vec<u8> {
        let message = self.receive().await;
        let (source, cipher, strict) = self.pending.take().unwrap();
        let opener = &mut self.opener;
        source
            .keys(Direction::ClientToServer, cipher, |keys| {
                opener.change_keys(keys, strict)
            })
            .unwrap();
        message
    }

    /// The single flight of the client is read before anything is answered.
    pub(crate) async fn log_in(&mut self) {
        assert_eq!(self.receive().await, b"\x05\0\0\0\x0cssh-userauth");
        let login = self.receive().await;
        assert_eq!(
            login,
            b"\x32\0\0\0\x02me\0\0\0\x0essh-connection\0\0\0\x08password\0\0\0\0\x0ehunter2-canary"
        );
        self.send(b"\x06\0\0\0\x0cssh-userauth").await;
        self.send(&[msg::USERAUTH_SUCCESS]).await;
    }

    /// Sends bytes of the SSH stream as one message.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.send_frame(Opcode::Binary, bytes).await;
    }

    pub(crate) async fn send_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut out = Vec::new();
        Header {
            last: true,
            opcode,
            length: payload.len() as u64,
            key: None,
        }
        .append(&mut out);
        out.extend_from_slice(payload);
        // A client that has already left is noticed when reading.
        let _ = self.io.write_all(&out).await;
    }

    /// A packet, sealed but not sent.
    pub(crate) fn sealed(&mut self, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.sealer.seal(&mut out, &[message]).unwrap();
        out
    }

    pub(crate) async fn send(&mut self, message: &[u8]) {
        let packet = self.sealed(message);
        self.send_bytes(&packet).await;
    }

    /// The next message of the client; empty when it has left.
    pub(crate) async fn receive(&mut self) -> Vec<u8> {
        loop {
            if let Some(opened) = self.opener.open(&mut self.plain).unwrap() {
                let message = self.plain[opened.payload].to_vec();
                self.plain.drain(..opened.consumed);
                return message;
            }
            if !self.read_message().await {
                return Vec::new();
            }
        }
    }

    /// Reads one WebSocket frame; false at the end.
    async fn read_message(&mut self) -> bool {
        let mut head = Vec::new();
        let header = loop {
            if let Some((header, _)) = Header::parse(&head).unwrap() {
                break header;
            }
            match timeout(PATIENCE, self.io.read_u8())
                .await
                .expect("the client says something")
            {
                Ok(byte) => head.push(byte),
                Err(_) => return false,
            }
        };
        let mut payload = vec![0; usize::try_from(header.length).unwrap()];
        if self.io.read_exact(&mut payload).await.is_err() {
            return false;
        }
        mask(&mut payload, header.key.expect("a client masks"));
        if header.opcode.is_control() {
            self.controls.push((header.opcode, payload));
        } else {
            self.plain.extend_from_slice(&payload);
        }
        true
    }

    /// Whether the client sends nothing more: a ping is answered next.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        self.send(b"\x50\0\0\0\x04ping\x01").await;
        self.receive().await == b"\x51pong"
    }
}
