//! Our client against the unmodified Go chisel server v1.11.3.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start their doubles as plain tasks"
)]

mod peer;

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der},
    rsa::KeySize,
    signature::{Ed25519KeyPair, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chisel_ssh::{
    Advice, Ciphers, ClientConfig, ConnectError, Fingerprint, Kex, OpenError, Password, RefusalCause,
    RejectReason, Session, SessionEnd, Trust, chisel,
};
use peer::{PATIENCE, Server, echo, remote, user};
use std::{io::Write, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{interval, timeout},
};

const AUTH: [&str; 3] = ["--reverse", "--auth", "user:pass:word"];

/// Connects, and echoes on every channel whose target port is not 1.
async fn echoing(server: &Server, config: ClientConfig) -> (Session, JoinHandle<SessionEnd>) {
    let (session, mut events, driver) = timeout(PATIENCE, server.connect(config)).await.unwrap().unwrap();
    tokio::spawn(async move {
        while let Some(open) = events.next().await {
            if open.target().ends_with(":1") {
                open.reject(RejectReason::ConnectFailed, "nobody listens there");
            } else {
                tokio::spawn(echo(open.accept()));
            }
        }
    });
    (session, tokio::spawn(driver))
}

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    data.truncate(size);
    data
}

fn sha256(data: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, data).as_ref().to_vec()
}

/// Sends data through a port of the server and checks that the same comes back.
async fn round_trip(port: u16, seed: u64, size: usize) {
    let (mut from, mut to) = user(port).await.into_split();
    let data = noise(seed, size);
    let wanted = sha256(&data);
    let writing = tokio::spawn(async move {
        to.write_all(&data).await.unwrap();
        to
    });
    let mut back = vec![0; size];
    timeout(4 * PATIENCE, from.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(sha256(&back), wanted);
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn password_and_pinned_fingerprint_with_every_kind_of_host_key() {
    let Some(binary) = peer::binary() else { return };
    let key = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(key)
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let mut rsa_file = tempfile::NamedTempFile::new().unwrap();
    write!(
        rsa_file,
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(rsa.as_ref())
    )
    .unwrap();
    let rsa_path = rsa_file.path().to_str().unwrap();
    for (arguments, algorithm) in [
        (vec![], "ecdsa-sha2-nistp256"),
        (vec!["--keyfile", path], "ssh-ed25519"),
        (vec!["--keyfile", rsa_path], "rsa-sha2-512"),
    ] {
        let server = Server::start(&binary, &[&AUTH[..], &arguments].concat()).await;
        let (session, driver) = echoing(&server, server.config(&[remote(7)])).await;
        assert_eq!(session.fingerprint(), server.fingerprint);
        let used = session.algorithms();
        assert_eq!((used.kex, used.host_key), ("mlkem768x25519-sha256", algorithm));
        assert_eq!(
            (used.cipher_in, used.cipher_out),
            ("aes128-gcm@openssh.com", "aes128-gcm@openssh.com")
        );
        timeout(PATIENCE, session.ping()).await.unwrap().unwrap();
        session.disconnect("test is over");
        assert!(matches!(
            timeout(PATIENCE, driver).await.unwrap().unwrap(),
            SessionEnd::Local
        ));
        assert!(session.is_closed());
        assert!(session.ping().await.is_err());
    }
}

/// Each method, guessed and not guessed; the server's first choice makes only one of the guesses right.
#[tokio::test]
async fn every_key_exchange_method() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    for (kex, name) in [
        (None, "mlkem768x25519-sha256"),
        (Some(Kex::MlKem768X25519), "mlkem768x25519-sha256"),
        (Some(Kex::Curve25519), "curve25519-sha256"),
        (Some(Kex::EcdhP256), "ecdh-sha2-nistp256"),
    ] {
        for guess in [true, false] {
            let remote = remote(7);
            let mut config = server.config(std::slice::from_ref(&remote));
            config.kex = kex;
            config.guess_kex = guess;
            config.limits.rekey_bytes = 1024 * 1024;
            let (session, driver) = echoing(&server, config).await;
            assert_eq!(session.algorithms().kex, name);
            round_trip(remote.local_port, 3, 3 * 1024 * 1024).await;
            assert!(session.stats().rekeys >= 1, "{name}: {:?}", session.stats());
            session.disconnect("done");
            assert!(matches!(driver.await.unwrap(), SessionEnd::Local));
        }
    }
}

#[tokio::test]
async fn a_server_without_authentication_and_trust_on_first_use() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &["--reverse"]).await;
    let remote = remote(7);
    let mut config = server.config(std::slice::from_ref(&remote));
    config.trust = Trust::FirstUse;
    config.user = String::new();
    config.password = Password::default();
    let (session, _driver) = echoing(&server, config).await;
    assert_eq!(session.fingerprint(), server.fingerprint);
    round_trip(remote.local_port, 5, 1000).await;
}

#[tokio::test]
async fn channels_of_ours_reach_targets_of_the_server() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    let (session, _driver) = echoing(&server, server.config(&[])).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.into_split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    for size in [1, 100_000, 5 << 20] {
        let channel = timeout(PATIENCE, session.open(&target)).await.unwrap().unwrap();
        let (mut from, mut to) = tokio::io::split(channel);
        let data = noise(9, size);
        let wanted = sha256(&data);
        let writing = tokio::spawn(async move {
            to.write_all(&data).await.unwrap();
            to
        });
        let mut back = vec![0; size];
        timeout(4 * PATIENCE, from.read_exact(&mut back))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(sha256(&back), wanted);
        writing.await.unwrap();
    }
    // The server confirms first and dials then.
    let closed = peer::free_port();
    let mut channel = session.open(&format!("127.0.0.1:{closed}")).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, channel.read(&mut [0; 1]))
            .await
            .unwrap()
            .unwrap(),
        0
    );
    // A server without --socks5 refuses at the open.
    let refused = timeout(PATIENCE, session.open("socks"))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(&refused, OpenError::Refused { code: 1, text } if text.contains("SOCKS5")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn refusals_have_their_kind() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    let attempt = async |config: ClientConfig| {
        timeout(PATIENCE, server.connect(config))
            .await
            .unwrap()
            .unwrap_err()
    };

    let mut config = server.config(&[remote(7)]);
    config.password = Password::new("wrong-canary".to_owned());
    let error = attempt(config).await;
    assert!(
        matches!(&error, ConnectError::AuthFailed { user } if user == "user"),
        "{error:?}"
    );
    assert!(!format!("{error:?} {error}").contains("canary"));
    assert_eq!(error.advice(), Advice::RetrySlowly);

    let mut config = server.config(&[remote(7)]);
    config.trust = Trust::Pinned(
        "CcGApgqyR4vWWQZ+XfQp9aUjOPWfbhwLl1nGOD2MONU="
            .parse::<Fingerprint>()
            .unwrap(),
    );
    let error = attempt(config).await;
    assert!(
        matches!(&error, ConnectError::FingerprintMismatch { seen, .. } if *seen == server.fingerprint),
        "{error:?}"
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.port())).unwrap();
    let error = attempt(server.config(&[chisel::Remote {
        local_port: taken.1,
        ..remote(7)
    }]))
    .await;
    let ConnectError::ConfigRefused {
        cause: RefusalCause::CannotListen { remote: named },
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert!(named.contains(&taken.1.to_string()), "{named}");
    assert_eq!(error.advice(), Advice::Retry);

    let forward_only = Server::start(&binary, &["--auth", "user:pass:word"]).await;
    let error = timeout(PATIENCE, forward_only.connect(forward_only.config(&[remote(7)])))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ConnectError::ConfigRefused {
                cause: RefusalCause::ReverseDisabled,
                ..
            }
        ),
        "{error:?}"
    );

    let mut rules = tempfile::NamedTempFile::new().unwrap();
    write!(rules, "{{\"user:pass:word\": [\"^R:127.0.0.1:1$\"]}}").unwrap();
    let ruled = Server::start(
        &binary,
        &["--reverse", "--authfile", rules.path().to_str().unwrap()],
    )
    .await;
    let error = timeout(PATIENCE, ruled.connect(ruled.config(&[remote(7)])))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            &error,
            ConnectError::ConfigRefused {
                cause: RefusalCause::Denied { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_connection_closed_at_once_is_told_as_such() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { drop(listener.accept().await) });
    let io = TcpStream::connect(address).await.unwrap();
    let error = chisel_ssh::connect(io, ClientConfig::new("x:1", "/"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Closed { .. } | ConnectError::Io { .. }),
        "{error:?}"
    );
    assert_eq!(error.advice(), Advice::Retry);
}

#[tokio::test]
async fn three_forwards_carry_many_streams_both_ways() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    let remotes = [remote(7), remote(8), remote(9)];
    let (session, _driver) = echoing(&server, server.config(&remotes)).await;
    let streams: Vec<_> = (0..9_u64)
        .map(|n| {
            let port = remotes[(n % 3) as usize].local_port;
            let size = 3 * 1024 * 1024 + usize::try_from(n).unwrap() * 12_345;
            tokio::spawn(round_trip(port, 77 + n, size))
        })
        .collect();
    for stream in streams {
        stream.await.unwrap();
    }
    // Every channel is given back once its user has gone.
    let gone = async {
        while session.stats().channels_open > 0 {
            timeout(PATIENCE, session.ping()).await.unwrap().unwrap();
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(session.stats().queued_bytes, 0);
    // Numbers are used again.
    for n in 0..20 {
        round_trip(remotes[0].local_port, n, 10).await;
    }
}

#[tokio::test]
async fn a_rejected_open_closes_the_user_and_nothing_else() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    let remotes = [remote(1), remote(7)];
    let (session, _driver) = echoing(&server, server.config(&remotes)).await;
    let mut user = user(remotes[0].local_port).await;
    let end = timeout(PATIENCE, user.read(&mut [0; 10])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    round_trip(remotes[1].local_port, 3, 100_000).await;
    assert!(!session.is_closed());
}

#[tokio::test]
async fn a_stalled_reader_stops_only_its_own_stream() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    let remotes = [remote(7), remote(8)];
    let (session, mut events, driver) = server.connect(server.config(&remotes)).await.unwrap();
    tokio::spawn(driver);
    let flooding = tokio::spawn({
        let port = remotes[0].local_port;
        async move {
            let mut user = user(port).await;
            // Ends with an error when the test is over; it never finishes.
            let _ = user.write_all(&vec![7; 100 * 1024 * 1024]).await;
        }
    });
    let stalled = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert!(stalled.target().ends_with(":7"));
    let stalled = stalled.accept();
    // The window is full when nothing more arrives; pings measure the round trips.
    let full = async {
        while session.stats().queued_bytes < 2 * 1024 * 1024 {
            session.ping().await.unwrap();
        }
    };
    timeout(PATIENCE, full).await.unwrap();
    tokio::spawn(async move {
        while let Some(open) = events.next().await {
            tokio::spawn(echo(open.accept()));
        }
    });
    for n in 0..3 {
        round_trip(remotes[1].local_port, n, 2 * 1024 * 1024).await;
        timeout(PATIENCE, session.ping()).await.unwrap().unwrap();
    }
    assert_eq!(
        session.stats().queued_bytes,
        2 * 1024 * 1024,
        "never more than the window"
    );
    assert!(!flooding.is_finished());
    // Read again, it flows again.
    let mut stalled = stalled;
    let mut data = vec![0; 5 * 1024 * 1024];
    timeout(PATIENCE, stalled.read_exact(&mut data))
        .await
        .unwrap()
        .unwrap();
    assert!(data.iter().all(|byte| *byte == 7));
    flooding.abort();
}

#[tokio::test]
async fn an_idle_session_survives_the_servers_keepalive() {
    let Some(binary) = peer::binary() else { return };
    // The server's default keepalive: a ping each 25 seconds.
    let server = Server::start(&binary, &AUTH).await;
    let remote = remote(7);
    let (session, driver) = echoing(&server, server.config(std::slice::from_ref(&remote))).await;
    let before = session.stats().bytes_out;
    let mut again = interval(Duration::from_millis(200));
    let pinged = async {
        while session.stats().bytes_out == before {
            again.tick().await;
        }
    };
    timeout(Duration::from_secs(40), pinged)
        .await
        .expect("the server's ping is answered");
    let ended = timeout(Duration::from_secs(6), driver).await;
    assert!(ended.is_err(), "the session ended: {ended:?}");
    round_trip(remote.local_port, 1, 100_000).await;
}

#[tokio::test]
async fn keys_are_renewed_by_us_under_load_with_every_cipher() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    for (ciphers, name) in [
        (Ciphers::AesFirst, "aes128-gcm@openssh.com"),
        (Ciphers::ChaChaFirst, "chacha20-poly1305@openssh.com"),
    ] {
        let remotes = [remote(7), remote(8)];
        let mut config = server.config(&remotes);
        config.ciphers = ciphers;
        config.limits.rekey_bytes = 1024 * 1024;
        let (session, driver) = echoing(&server, config).await;
        assert_eq!(session.algorithms().cipher_in, name);
        let streams: Vec<_> = (0..4)
            .map(|n| tokio::spawn(round_trip(remotes[n % 2].local_port, n as u64, 4 * 1024 * 1024)))
            .collect();
        for stream in streams {
            stream.await.unwrap();
        }
        // How many depends on how much was under way while keys were exchanged: more than the first exchange is the point.
        assert!(session.stats().rekeys >= 2, "{:?}", session.stats());
        session.disconnect("done");
        assert!(matches!(driver.await.unwrap(), SessionEnd::Local));
    }
}

/// The Go server asks for new keys after 1 GiB with ChaCha20.
#[tokio::test]
async fn keys_are_renewed_by_the_server() {
    let Some(binary) = peer::binary() else { return };
    const TOTAL: u64 = 1100 * 1024 * 1024;
    let server = Server::start(&binary, &AUTH).await;
    let remote = remote(7);
    let mut config = server.config(std::slice::from_ref(&remote));
    config.ciphers = Ciphers::ChaChaFirst;
    let (session, mut events, driver) = server.connect(config).await.unwrap();
    tokio::spawn(driver);
    tokio::spawn(async move {
        let mut user = user(remote.local_port).await;
        let block = vec![9; 256 * 1024];
        for _ in 0..TOTAL / block.len() as u64 {
            user.write_all(&block).await.unwrap();
        }
        // Held open until the other end has read everything.
        let _ = user.read(&mut [0]).await;
    });
    let mut channel = timeout(PATIENCE, events.next()).await.unwrap().unwrap().accept();
    let mut buffer = vec![0; 256 * 1024];
    let mut seen = 0;
    while seen < TOTAL {
        let n = timeout(PATIENCE, channel.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(n > 0 && buffer[..n].iter().all(|byte| *byte == 9));
        seen += n as u64;
    }
    assert!(session.stats().rekeys >= 1, "{:?}", session.stats());
    timeout(PATIENCE, session.ping()).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_servers_death_ends_the_session() {
    let Some(binary) = peer::binary() else { return };
    let server = Server::start(&binary, &AUTH).await;
    let remote = remote(7);
    let (session, mut events, driver) = server
        .connect(server.config(std::slice::from_ref(&remote)))
        .await
        .unwrap();
    let driver = tokio::spawn(driver);
    let mut user = user(remote.local_port).await;
    user.write_all(b"hello").await.unwrap();
    let mut channel = timeout(PATIENCE, events.next()).await.unwrap().unwrap().accept();
    let mut data = [0; 5];
    channel.read_exact(&mut data).await.unwrap();
    drop(server);
    let end = timeout(PATIENCE, driver).await.unwrap().unwrap();
    assert!(matches!(end, SessionEnd::Closed | SessionEnd::Io(_)), "{end:?}");
    assert_eq!(
        channel.read(&mut data).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(channel.write(&data).await.is_err());
    assert!(events.next().await.is_none());
    timeout(PATIENCE, session.closed()).await.unwrap();
}
