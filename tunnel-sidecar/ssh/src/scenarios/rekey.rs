//! Key exchanges after the first.

use crate::{
    double::{config, data_message, ended, running},
    hostkey::{HostKeyAlgorithm, tests::TestKey},
    *,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// While the server lets its key exchange take long, nothing above the transport layer arrives; afterwards everything does, in order.
#[tokio::test]
async fn the_server_asks_for_new_keys_while_messages_wait() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(5).await;
    let (_, other) = running.channel(6).await;
    let double = &mut running.double;
    let exchange = double.offers().await;
    // All of these must wait: data, a close, an answer, a question.
    let writing = tokio::spawn(async move {
        channel.write_all(b"after the keys").await.unwrap();
        channel
    });
    drop(other);
    let pinging = tokio::spawn({
        let session = running.session.clone();
        async move { session.ping().await }
    });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!writing.is_finished() && !pinging.is_finished());
    double.reply(exchange, true).await;
    assert_eq!(
        double.receive_for_newkeys().await,
        [msg::NEWKEYS],
        "nothing came before it"
    );
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(double.receive().await);
    }
    seen.sort();
    assert_eq!(
        seen,
        [
            b"\x50\0\0\0\x04ping\x01".to_vec(),
            data_message(5, b"after the keys"),
            b"\x61\0\0\0\x06".to_vec()
        ]
    );
    double.send(b"\x51pong").await;
    pinging.await.unwrap().unwrap();
    let mut channel = writing.await.unwrap();
    double.send(&data_message(id, b"hi")).await;
    let mut data = [0; 2];
    channel.read_exact(&mut data).await.unwrap();
    assert_eq!(running.session.stats().rekeys, 1);
}

#[tokio::test]
async fn we_ask_for_new_keys_after_a_number_of_packets() {
    let mut often = config();
    often.limits.rekey_packets = 10;
    let mut running = running(often).await;
    for round in 1..4 {
        // Pings from the server count on both sides.
        let init = loop {
            running.double.send(b"\x50\0\0\0\x04ping\x01").await;
            let message = running.double.receive().await;
            match message[0] {
                msg::KEXINIT => break message,
                _ => assert_eq!(message, b"\x51pong"),
            }
        };
        let double = &mut running.double;
        double.send(&double.offer.encode()).await;
        // The answer to the ping that came too late waits for the keys.
        let exchange = double.values(init).await;
        double.reply(exchange, true).await;
        assert_eq!(double.receive_for_newkeys().await, [msg::NEWKEYS]);
        while running.session.stats().rekeys < round {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(running.session.stats().rekeys, 3);
}

#[tokio::test]
async fn another_host_key_in_a_later_exchange_ends_the_session() {
    let mut running = running(config()).await;
    running.double.key = TestKey::generate(HostKeyAlgorithm::EcdsaP256);
    let exchange = running.double.offers().await;
    running.double.reply(exchange, false).await;
    let end = running.end().await;
    assert!(
        matches!(end, SessionEnd::Protocol(ProtocolError::HostKeyChanged)),
        "{end:?}"
    );
}

#[tokio::test]
async fn messages_between_the_servers_kexinit_and_newkeys_end_the_session() {
    let mut running = running(config()).await;
    let (id, _channel) = running.channel(5).await;
    let _ = running.double.offers().await;
    running.double.send(&data_message(id, b"too late")).await;
    let end = running.end().await;
    assert!(
        matches!(
            end,
            SessionEnd::Protocol(ProtocolError::Unexpected {
                number: msg::CHANNEL_DATA,
                ..
            })
        ),
        "{end:?}"
    );
}

/// Unlike before the first keys, harmless messages may come now.
#[tokio::test]
async fn ignore_and_debug_are_harmless_in_a_later_exchange() {
    let mut running = running(config()).await;
    let double = &mut running.double;
    let exchange = double.offers().await;
    double.send(&[msg::IGNORE, 0, 0, 0, 0]).await;
    double.send(&[msg::DEBUG, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await;
    double.reply(exchange, true).await;
    double.receive_for_newkeys().await;
    assert!(double.is_quiet().await);
}

#[tokio::test(start_paused = true)]
async fn a_key_exchange_that_does_not_end_ends_the_session() {
    let mut running = running(config()).await;
    let _ = running.double.offers().await;
    let end = running.end().await;
    assert!(matches!(end, SessionEnd::RekeyTimeout), "{end:?}");
}

/// A server that makes us ask for keys, never answers, and keeps asking for answers, cannot fill our memory.
#[tokio::test]
async fn what_waits_for_keys_is_bounded() {
    let mut often = config();
    often.limits.rekey_packets = 1;
    let running = running(often).await;
    let mut double = running.double;
    let flooding = tokio::spawn(async move {
        let packet_of_pings: Vec<u8> = (0..100)
            .flat_map(|_| double.sealed(b"\x50\0\0\0\x04ping\x01"))
            .collect();
        double.send_bytes(&packet_of_pings).await;
        loop {
            let pings: Vec<u8> = (0..1000)
                .flat_map(|_| double.sealed(b"\x50\0\0\0\x04ping\x01"))
                .collect();
            double.send_bytes(&pings).await;
            if running.session.is_closed() {
                return;
            }
        }
    });
    let end = ended(running.driver).await;
    assert!(
        matches!(end, SessionEnd::Protocol(ProtocolError::HeldBack)),
        "{end:?}"
    );
    flooding.await.unwrap();
}
