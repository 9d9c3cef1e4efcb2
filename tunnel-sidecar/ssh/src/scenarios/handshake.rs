//! Setting up, and everything that can go wrong with it.

use crate::{
    cipher::Cipher,
    double::{config, ended, running, start},
    hostkey::{HostKeyAlgorithm, tests::TestKey},
    kexinit::{KexInit, STRICT_SERVER},
    *,
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn every_method_host_key_and_cipher() {
    for method in [
        "mlkem768x25519-sha256",
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
    ] {
        for host_key in HostKeyAlgorithm::ALL {
            for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
                let (mut double, client) = start(config());
                double.key = TestKey::generate(host_key);
                double.offer.lists[0] = format!("{method},{STRICT_SERVER}");
                double.offer.lists[1] = host_key.name().to_owned();
                double.offer.lists[2] = cipher.name().to_owned();
                double.offer.lists[3] = cipher.name().to_owned();
                double.set_up().await;
                let (session, _events, driver) = client.await.unwrap().unwrap();
                let driver = tokio::spawn(driver);
                let expected = Algorithms {
                    kex: method,
                    host_key: host_key.name(),
                    cipher_out: cipher.name(),
                    cipher_in: cipher.name(),
                };
                assert_eq!(session.algorithms(), expected);
                assert_eq!(session.fingerprint(), Fingerprint::of(&double.key.blob()));
                // The guess is right when both first choices are.
                let right = method == "mlkem768x25519-sha256" && host_key == HostKeyAlgorithm::EcdsaP256;
                assert_eq!(double.wrong_guesses, u32::from(!right), "{method} {host_key:?}");
                assert!(double.is_quiet().await);
                session.disconnect("bye");
                assert!(matches!(ended(driver).await, SessionEnd::Local));
            }
        }
    }
}

/// The sequence numbers of ChaCha20 are its nonces, so a session that goes on proves that both sides reset them, or both do not.
#[tokio::test]
async fn without_strict_key_exchange_only_gcm_is_used() {
    let mut double_config = config();
    double_config.ciphers = Ciphers::ChaChaFirst;
    let (mut double, client) = start(double_config);
    double.offer.lists[0] = "curve25519-sha256".to_owned();
    double.upgrade().await;
    double.versions().await;
    double.send(&double.offer.encode()).await;
    let error = client.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Protocol {
                source: ProtocolError::NotStrict,
                ..
            }
        ),
        "{error:?}"
    );

    let (mut double, client) = start(config());
    double.offer.lists[0] = "curve25519-sha256".to_owned();
    double.set_up().await;
    drop(client.await.unwrap().unwrap());
}

/// Prefix truncation begins with a message injected before the keys are in use.
#[tokio::test]
async fn only_key_exchange_messages_before_the_first_keys() {
    for strict in [true, false] {
        for message in [
            &[msg::IGNORE, 0, 0, 0, 0][..],
            &[msg::DEBUG, 0],
            &[msg::EXT_INFO, 0, 0, 0, 0],
            &[3, 0, 0, 0, 0],
            &[52],
            &[81],
        ] {
            for before_offer in [true, false] {
                let (mut double, client) = start(config());
                if !strict {
                    double.offer.lists[0] = "curve25519-sha256".to_owned();
                }
                double.upgrade().await;
                double.versions().await;
                if before_offer {
                    double.send(message).await;
                } else {
                    let _ = double.offers().await;
                    double.send(message).await;
                }
                let error = client.await.unwrap().unwrap_err();
                let ConnectError::Protocol {
                    step: Step::KeyExchange,
                    source,
                } = error
                else {
                    panic!("{error:?}")
                };
                assert!(
                    matches!(source, ProtocolError::Unexpected { number, .. } if number == message[0]),
                    "{source:?}"
                );
            }
        }
    }
}

/// The other half of prefix truncation: the first packet under keys is taken out, which would go unnoticed had an injected one moved the numbers before.
#[tokio::test]
async fn a_truncated_prefix_is_noticed_under_every_cipher() {
    for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        // Also the server that announces strict key exchange, sends one message too many, and does not start counting again.
        for counts_on in [false, true] {
            let (mut double, client) = start(config());
            double.offer.lists[2] = cipher.name().to_owned();
            double.offer.lists[3] = cipher.name().to_owned();
            double.upgrade().await;
            double.versions().await;
            double.counts_on = counts_on;
            double.key_exchange().await;
            if !counts_on {
                let _taken_out = double.sealed(&[msg::EXT_INFO, 0, 0, 0, 0]);
            } else if cipher != Cipher::ChaCha20Poly1305 {
                // The nonces of GCM count for themselves, so there is nothing to truncate.
                continue;
            }
            double.send(b"\x06\0\0\0\x0cssh-userauth").await;
            let error = client.await.unwrap().unwrap_err();
            let ConnectError::Protocol { source, .. } = error else {
                panic!("{error:?}")
            };
            // A length field under a wrong nonce may already be impossible.
            assert!(
                matches!(source, ProtocolError::Integrity | ProtocolError::PacketLength(_)),
                "{cipher:?}: {source:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_signature_ends_it_before_the_password() {
    let (mut double, client) = start(config());
    double.bad_signature = true;
    double.upgrade().await;
    double.versions().await;
    let exchange = double.offers().await;
    double.reply(exchange, true).await;
    assert_eq!(double.receive().await, [0_u8; 0], "nothing follows");
    let error = client.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Protocol {
                source: ProtocolError::Signature,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn another_host_key_ends_it_before_the_password() {
    let mut pinned = config();
    let known = TestKey::generate(HostKeyAlgorithm::EcdsaP256);
    pinned.trust = Trust::Pinned(Fingerprint::of(&known.blob()));
    let (mut double, client) = start(pinned.clone());
    double.upgrade().await;
    double.versions().await;
    let exchange = double.offers().await;
    double.reply(exchange, true).await;
    assert_eq!(double.receive().await, [0_u8; 0], "nothing follows");
    let error = client.await.unwrap().unwrap_err();
    let ConnectError::FingerprintMismatch { expected, seen } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        (expected, seen),
        (
            Fingerprint::of(&known.blob()),
            Fingerprint::of(&double.key.blob())
        )
    );

    let (mut double, client) = start(pinned);
    double.key = known;
    double.set_up().await;
    drop(client.await.unwrap().unwrap());
}

/// With the right guess everything up to the answer of the server is one round trip: KEX_INIT is there before the server has said anything but its version.
#[tokio::test]
async fn the_first_packet_of_the_exchange_goes_out_unasked_only_if_wanted() {
    for guess in [true, false] {
        let mut wanted = config();
        wanted.guess_kex = guess;
        let (mut double, client) = start(wanted);
        double.upgrade().await;
        double.versions().await;
        let init = double.receive().await;
        assert_eq!(KexInit::parse(&init).unwrap().first_packet_follows, guess);
        let exchange = if guess {
            double.values(init).await
        } else {
            double.send(&double.offer.encode()).await;
            double.values(init).await
        };
        if guess {
            double.send(&double.offer.encode()).await;
        }
        double.reply(exchange, true).await;
        double.receive_for_newkeys().await;
        double.log_in().await;
        double.receive().await;
        double.send(&[msg::REQUEST_SUCCESS]).await;
        drop(client.await.unwrap().unwrap());
        assert_eq!(double.wrong_guesses, 0);
    }
}

#[tokio::test]
async fn one_method_can_be_insisted_on() {
    for (kex, name) in [
        (Kex::MlKem768X25519, "mlkem768x25519-sha256"),
        (Kex::Curve25519, "curve25519-sha256"),
        (Kex::EcdhP256, "ecdh-sha2-nistp256"),
    ] {
        let mut only = config();
        only.kex = Some(kex);
        let (mut double, client) = start(only);
        double.set_up().await;
        let (session, _events, _driver) = client.await.unwrap().unwrap();
        assert_eq!(session.algorithms().kex, name);
    }
}

#[tokio::test]
async fn a_wrong_guess_of_the_server_is_skipped() {
    let (mut double, client) = start(config());
    double.offer.lists[0] = format!("ecdh-sha2-nistp256,{}", double.offer.lists[0]);
    double.offer.first_packet_follows = true;
    double.upgrade().await;
    double.versions().await;
    let exchange = double.offers().await;
    double.send(&[msg::KEX_REPLY, 1, 2, 3]).await;
    double.reply(exchange, true).await;
    double.receive_for_newkeys().await;
    double.log_in().await;
    double.receive().await;
    double.send(&[msg::REQUEST_SUCCESS]).await;
    drop(client.await.unwrap().unwrap());
}

#[tokio::test]
async fn key_exchange_messages_out_of_order() {
    for (number, at) in [
        (msg::NEWKEYS, 0),
        (msg::KEX_REPLY, 0),
        (msg::NEWKEYS, 1),
        (msg::KEXINIT, 1),
        (40, 1),
        (msg::KEX_REPLY, 2),
    ] {
        let (mut double, client) = start(config());
        double.upgrade().await;
        double.versions().await;
        if at > 0 {
            let exchange = double.offers().await;
            if at > 1 {
                double.reply(exchange, false).await;
            }
        }
        double.send(&[number]).await;
        let error = client.await.unwrap().unwrap_err();
        let ConnectError::Protocol { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(
            matches!(source, ProtocolError::Unexpected { .. }),
            "{number} at {at}: {source:?}"
        );
    }
}

#[tokio::test]
async fn refused_credentials_and_refused_remotes() {
    let (mut double, client) = start(config());
    double.upgrade().await;
    double.versions().await;
    double.key_exchange().await;
    double.send(b"\x06\0\0\0\x0cssh-userauth").await;
    double.send(b"\x35\0\0\0\x06Banner\0\0\0\0").await;
    double.send(b"\x33\0\0\0\x08password\0").await;
    let error = client.await.unwrap().unwrap_err();
    assert!(matches!(&error, ConnectError::AuthFailed { user } if user == "me"));
    assert!(!format!("{error} {error:?}").contains("canary"));

    for text in ["server: Server cannot listen on R:24921=>24922", "something\nnew"] {
        for number in [msg::REQUEST_FAILURE, msg::REQUEST_SUCCESS] {
            let (mut double, client) = start(config());
            double.upgrade().await;
            double.versions().await;
            double.key_exchange().await;
            double.log_in().await;
            double.receive().await;
            double.send(&[&[number], text.as_bytes()].concat()).await;
            let error = client.await.unwrap().unwrap_err();
            let ConnectError::ConfigRefused { text: told, cause } = error else {
                panic!("{error:?}")
            };
            assert_eq!(told, text.replace('\n', " "));
            let named = RefusalCause::CannotListen {
                remote: "R:24921=>24922".to_owned(),
            };
            assert_eq!(cause == named, text.contains("listen"));
            // After a refusal it is the client that leaves, with a word.
            assert_eq!(double.receive().await[0], msg::DISCONNECT);
            assert_eq!(double.receive().await, [0_u8; 0]);
        }
    }
}

#[tokio::test]
async fn answers_that_are_no_upgrade() {
    let cases = [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot found",
            "NotChisel",
        ),
        ("HTTP/1.1 200 OK\r\n\r\nOK\n", "NotChisel"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "NotChisel"),
        ("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n", "RetryAfter(7s)"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "Retry"),
        ("HTTP/1.1 101 Go\r\n\r\n", "Protocol"),
        ("220 mail.example ESMTP\r\n", "Protocol"),
        ("", "Closed"),
    ];
    for (answer, kind) in cases {
        let (mut double, client) = start(config());
        double.read_request().await;
        double.io.write_all(answer.as_bytes()).await.unwrap();
        double.io.shutdown().await.unwrap();
        let error = client.await.unwrap().unwrap_err();
        let seen = format!("{error:?} {:?}", error.advice());
        assert!(seen.contains(kind), "{answer}: {seen}");
    }
    let mut bad = config();
    bad.path_and_query = "/a b".to_owned();
    let error = start(bad).1.await.unwrap().unwrap_err();
    assert_eq!(error.advice(), Advice::Fix);
}

/// Nothing may be sent between the upgrade request and its answer.
#[tokio::test]
async fn the_client_waits_for_the_upgrade() {
    let (mut double, _client) = start(config());
    let request = double.read_request().await;
    assert!(
        request.starts_with("GET /sub HTTP/1.1\r\nHost: server.example:80\r\n"),
        "{request}"
    );
    let more = tokio::time::timeout(
        Duration::from_millis(50),
        tokio::io::AsyncReadExt::read_u8(&mut double.io),
    )
    .await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn the_version_line_has_limits() {
    for line in [b"SSX-2.0-x\r\n".to_vec(), vec![b'S'; 255]] {
        let (mut double, client) = start(config());
        double.upgrade().await;
        double.send_bytes(&line).await;
        let error = client.await.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                ConnectError::Protocol {
                    step: Step::Version,
                    source: ProtocolError::Version
                }
            ),
            "{error:?}"
        );
    }
}

/// Silence at each step ends with that step's timeout, and the steps before do not use it up.
#[tokio::test(start_paused = true)]
async fn every_step_has_its_timeout() {
    for silent in [
        Step::Upgrade,
        Step::Version,
        Step::KeyExchange,
        Step::Auth,
        Step::Config,
    ] {
        let mut short = config();
        let after = Duration::from_secs(3);
        match silent {
            Step::Upgrade => short.timeouts.upgrade = after,
            Step::Version => short.timeouts.version = after,
            Step::KeyExchange => short.timeouts.kex = after,
            Step::Auth => short.timeouts.auth = after,
            Step::Config => short.timeouts.config = after,
        }
        let (mut double, client) = start(short);
        if silent > Step::Upgrade {
            double.upgrade().await;
        }
        if silent > Step::Version {
            double.versions().await;
        }
        if silent > Step::KeyExchange {
            double.key_exchange().await;
        }
        if silent > Step::Auth {
            double.log_in().await;
        }
        let error = client.await.unwrap().unwrap_err();
        assert!(
            matches!(error, ConnectError::Timeout { step, after: told } if step == silent && told == after),
            "{error:?}"
        );
        assert_eq!(error.advice(), Advice::Retry);
    }
}

#[tokio::test]
async fn a_disconnect_of_the_server_is_told_with_its_words() {
    let (mut double, client) = start(config());
    double.upgrade().await;
    double.versions().await;
    double
        .send(&transport::disconnect_message(12, "too many\u{7} connections"))
        .await;
    let error = client.await.unwrap().unwrap_err();
    let ConnectError::Disconnected {
        step: Step::KeyExchange,
        code: 12,
        reason,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(reason, "too many  connections");
}

/// No type that can reach a log shows the password.
#[tokio::test]
async fn no_debug_output_shows_the_password() {
    let config = config();
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("Password(..)") && !shown.contains("canary"));
    let running = running(config).await;
    let shown = format!("{:?} {:?}", running.session, running.events);
    assert!(!shown.contains("canary"));
}
