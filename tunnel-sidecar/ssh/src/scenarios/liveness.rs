//! Pings, ends, and what the WebSocket below may do.

use crate::{
    double::{config, data_message, ended, running},
    websocket::Opcode,
    *,
};
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn pings_of_both_sides() {
    let mut running = running(config()).await;
    assert!(running.double.is_quiet().await);
    // Unknown requests are answered only when an answer is wanted.
    running.double.send(b"\x50\0\0\0\x07unknown\x00").await;
    running.double.send(b"\x50\0\0\0\x07unknown\x01").await;
    assert_eq!(running.double.receive().await, [msg::REQUEST_FAILURE]);

    let asking = |session: &Session| {
        tokio::spawn({
            let session = session.clone();
            async move { session.ping().await }
        })
    };
    // Chisel answers `pong`; other answers are signs of life as well.
    for answer in [&b"\x51pong"[..], b"\x51", b"\x52"] {
        let ping = asking(&running.session);
        assert_eq!(running.double.receive().await, b"\x50\0\0\0\x04ping\x01");
        assert!(!ping.is_finished());
        running.double.send(answer).await;
        ping.await.unwrap().unwrap();
    }
    // Answers come in the order of the questions, also when nobody waits for one any more.
    let first = asking(&running.session);
    running.double.receive().await;
    first.abort();
    let second = asking(&running.session);
    running.double.receive().await;
    running.double.send(b"\x51pong").await;
    assert!(running.double.is_quiet().await);
    assert!(!second.is_finished());
    running.double.send(b"\x51pong").await;
    second.await.unwrap().unwrap();
    // A session that ends answers the waiting.
    let last = asking(&running.session);
    running.double.receive().await;
    drop(running.double);
    assert_eq!(last.await.unwrap(), Err(SessionGone));
}

#[tokio::test]
async fn leaving_says_why_and_flushes_what_was_written() {
    let mut running = running(config()).await;
    let (_, mut channel) = running.channel(7).await;
    channel.write_all(b"written before").await.unwrap();
    running.session.disconnect("draining");
    assert_eq!(
        channel.write(b"x").await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(running.double.receive().await, data_message(7, b"written before"));
    let good_bye = running.double.receive().await;
    assert_eq!(good_bye, b"\x01\0\0\0\x0b\0\0\0\x08draining\0\0\0\0");
    assert_eq!(running.double.receive().await, [0_u8; 0]);
    assert_eq!(running.double.controls, [(Opcode::Close, vec![0x03, 0xe8])]);
    assert!(matches!(ended(running.driver).await, SessionEnd::Local));
    assert_eq!(
        channel.read(&mut [0; 4]).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    drop(channel);
    assert!(running.events.next().await.is_none());
    running.session.closed().await;
}

/// A server that takes nothing cannot hold up our leaving for ever.
#[tokio::test(start_paused = true)]
async fn leaving_has_a_deadline() {
    let mut running = running(config()).await;
    let (_, mut channel) = running.channel(7).await;
    let writing = tokio::spawn(async move { channel.write_all(&vec![0; 2 << 20]).await });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!writing.is_finished(), "the pipe and the queue are full");
    running.session.disconnect("leaving");
    assert!(matches!(ended(running.driver).await, SessionEnd::Local));
    assert!(writing.await.unwrap().is_err());
}

#[tokio::test]
async fn the_servers_ends() {
    let quiet = running(config()).await;
    drop(quiet.double);
    assert!(matches!(ended(quiet.driver).await, SessionEnd::Closed));

    let mut polite = running(config()).await;
    polite
        .double
        .send(&transport::disconnect_message(11, "shutting down"))
        .await;
    let end = ended(polite.driver).await;
    assert_eq!(
        end.to_string(),
        "the chisel server disconnected: shutting down (code 11)"
    );

    let mut closing = running(config()).await;
    closing
        .double
        .send_frame(Opcode::Close, &1001_u16.to_be_bytes())
        .await;
    assert!(matches!(ended(closing.driver).await, SessionEnd::Closed));
    assert_eq!(closing.double.receive().await, [0_u8; 0]);
    assert_eq!(closing.double.controls, [(Opcode::Close, vec![0x03, 0xe8])]);
}

#[tokio::test]
async fn a_changed_packet_ends_the_session() {
    let mut running = running(config()).await;
    let mut packet = running.double.sealed(b"\x50\0\0\0\x04ping\x01");
    let last = packet.len() - 1;
    packet[last] ^= 1;
    running.double.send_bytes(&packet).await;
    let end = ended(running.driver).await;
    assert!(
        matches!(end, SessionEnd::Protocol(ProtocolError::Integrity)),
        "{end:?}"
    );
}

#[tokio::test]
async fn dropping_the_driver_ends_everything() {
    let mut running = running(config()).await;
    let (_, mut channel) = running.channel(7).await;
    let reading = tokio::spawn(async move { channel.read(&mut [0; 4]).await });
    running.driver.abort();
    assert_eq!(
        reading.await.unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(running.session.is_closed());
    assert_eq!(running.double.receive().await, [0_u8; 0]);
}

#[tokio::test]
async fn packets_in_any_framing() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(7).await;
    // One byte per message, as text, with pings between.
    for byte in running.double.sealed(&data_message(id, b"piecemeal")) {
        running.double.send_frame(Opcode::Text, &[byte]).await;
        running.double.send_frame(Opcode::Ping, &[byte]).await;
    }
    let mut data = [0; 9];
    channel.read_exact(&mut data).await.unwrap();
    assert_eq!(&data, b"piecemeal");
    // Many packets in one message.
    let many: Vec<u8> = (0..100)
        .flat_map(|_| running.double.sealed(&data_message(id, b"z")))
        .collect();
    running.double.send_bytes(&many).await;
    let mut data = [0; 100];
    channel.read_exact(&mut data).await.unwrap();
    assert_eq!(data, [b'z'; 100]);
    assert!(running.double.is_quiet().await);
    let pongs = running
        .double
        .controls
        .iter()
        .filter(|(opcode, payload)| *opcode == Opcode::Pong && payload.len() == 1);
    assert!(pongs.count() > 9);
}

/// A server that asks and asks but takes no answers is not read any further, and gets all answers once it reads.
#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_not_read() {
    let mut running = running(config()).await;
    let mut sent = 0;
    // The clock moves only when everything stands still.
    let stuck = async {
        while sent < 1_000_000 {
            let pings: Vec<u8> = (0..1000)
                .flat_map(|_| running.double.sealed(b"\x50\0\0\0\x04ping\x01"))
                .collect();
            running.double.send_bytes(&pings).await;
            sent += 1000;
        }
    };
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(1), stuck)
            .await
            .is_err()
    );
    // Two pipes of 1 MiB and twice the limit of unwritten output, at 40 bytes and more each.
    assert!((20_000..120_000).contains(&sent), "{sent}");
    for _ in 0..sent {
        assert_eq!(running.double.receive().await, b"\x51pong");
    }
    assert!(!running.session.is_closed());
}

/// Many writers share the way out, and none is forgotten, also when others give up waiting.
#[tokio::test]
async fn all_writers_get_their_turn() {
    let mut running = running(config()).await;
    let mut channels = Vec::new();
    for peer in 0..60 {
        channels.push(running.channel(peer).await.1);
    }
    let writers: Vec<_> = channels
        .into_iter()
        .map(|mut channel| {
            tokio::spawn(async move {
                channel.write_all(&vec![7; 300_000]).await.unwrap();
                channel
            })
        })
        .collect();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    for writer in writers.iter().skip(5).step_by(2) {
        writer.abort();
    }
    let mut received = [0_usize; 60];
    let kept = |peer: usize| peer < 5 || peer.is_multiple_of(2);
    while (0..60).any(|peer| kept(peer) && received[peer] < 300_000) {
        let message = running.double.receive().await;
        let peer = u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize;
        match message[0] {
            msg::CHANNEL_DATA => received[peer] += message.len() - 9,
            msg::CHANNEL_CLOSE => assert!(!kept(peer)),
            other => panic!("message {other}"),
        }
    }
    assert!(running.double.is_quiet().await);
}

/// Writers that stood in the row for room, and gave up without closing their channels, hold up nobody behind them.
#[tokio::test(start_paused = true)]
async fn writers_that_gave_up_waiting_hold_up_nobody() {
    let mut running = running(config()).await;
    let mut channels = Vec::new();
    for peer in 0..60 {
        channels.push(running.channel(peer).await.1);
    }
    let give_up = std::sync::Arc::new(tokio::sync::Notify::new());
    for (peer, mut channel) in channels.into_iter().enumerate() {
        let give_up = std::sync::Arc::clone(&give_up);
        tokio::spawn(async move {
            let data = vec![7; 300_000];
            if peer < 50 {
                tokio::select! {
                    _ = channel.write_all(&data) => {}
                    () = give_up.notified() => {}
                }
            } else {
                channel.write_all(&data).await.unwrap();
            }
            // Kept open to the end of the test.
            std::future::pending::<()>().await;
        });
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    give_up.notify_waiters();
    let mut received = 0;
    while received < 10 * 300_000 {
        let message = running.double.receive().await;
        assert_eq!(message[0], msg::CHANNEL_DATA);
        if u32::from_be_bytes(message[1..5].try_into().unwrap()) >= 50 {
            received += message.len() - 9;
        }
    }
}
