//! Channels: what flows, what stalls, and what ends the session.

use crate::{
    double::{Running, channel_message, config, data_message, ended, open_message, running},
    wire::Reader,
    *,
};
use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

#[tokio::test]
async fn an_open_carries_its_target_and_can_be_refused() {
    let mut running = running(config()).await;
    running.double.send(&open_message(9, 100, "[::1]:53/udp")).await;
    let open = running.events.next().await.unwrap();
    assert_eq!(open.target(), "[::1]:53/udp");
    open.reject(RejectReason::ConnectFailed, "connection refused");
    let mut expected = channel_message(msg::CHANNEL_OPEN_FAILURE, 9, &[0, 0, 0, 2]);
    expected.extend_from_slice(b"\0\0\0\x12connection refused\0\0\0\x02en");
    assert_eq!(running.double.receive().await, expected);

    // Undecided and dropped is refused, too.
    running.double.send(&open_message(10, 100, "x:1")).await;
    drop(running.events.next().await.unwrap());
    assert_eq!(
        running.double.receive().await[..9],
        channel_message(msg::CHANNEL_OPEN_FAILURE, 10, &[0, 0, 0, 2])
    );

    // What is no chisel channel never reaches the caller.
    let mut shell = open_message(11, 100, "x:1");
    shell[5..11].copy_from_slice(b"direct");
    running.double.send(&shell).await;
    assert_eq!(
        running.double.receive().await[..9],
        channel_message(msg::CHANNEL_OPEN_FAILURE, 11, &[0, 0, 0, 3])
    );

    // Nobody listens.
    drop(running.events);
    running.double.send(&open_message(12, 100, "x:1")).await;
    assert_eq!(
        running.double.receive().await[..9],
        channel_message(msg::CHANNEL_OPEN_FAILURE, 12, &[0, 0, 0, 1])
    );
    assert!(running.double.is_quiet().await);
}

/// The number of the channel the client wants to open, and the target.
fn asked(message: &[u8]) -> (u32, String) {
    let mut reader = Reader::new(&message[1..]);
    assert_eq!(
        (message[0], reader.string().unwrap()),
        (msg::CHANNEL_OPEN, &b"chisel"[..])
    );
    let id = reader.u32().unwrap();
    assert_eq!(
        (reader.u32().unwrap(), reader.u32().unwrap()),
        (2 << 20, 32 << 10)
    );
    (id, String::from_utf8(reader.rest().to_vec()).unwrap())
}

/// The server's confirmation of channel `id`, which is `peer` to it.
fn confirmation(id: u32, peer: u32) -> Vec<u8> {
    let numbers = [peer, 1 << 20, 32 << 10].map(u32::to_be_bytes).concat();
    channel_message(msg::CHANNEL_OPEN_CONFIRMATION, id, &numbers)
}

#[tokio::test]
async fn a_channel_of_ours_is_opened_refused_or_given_up() {
    let mut running = running(config()).await;
    let open = |target: &'static str| {
        let session = running.session.clone();
        tokio::spawn(async move { session.open(target).await })
    };
    let (first, second, third) = (open("[::1]:53/udp"), open("socks"), open("a:1"));
    let mut ids = Vec::new();
    for target in ["[::1]:53/udp", "socks", "a:1"] {
        let (id, named) = asked(&running.double.receive().await);
        assert_eq!(named, target);
        ids.push(id);
    }
    assert_eq!(ids, [0, 1, 2]);

    // Answers come in any order; each reaches its own.
    running.double.send(&confirmation(2, 70)).await;
    let mut failure = vec![0, 0, 0, 1];
    failure.extend_from_slice(b"\0\0\0\x02no\0\0\0\x02en");
    running
        .double
        .send(&channel_message(msg::CHANNEL_OPEN_FAILURE, 1, &failure))
        .await;
    let mut third = third.await.unwrap().unwrap();
    let refused = second.await.unwrap().unwrap_err();
    assert_eq!(
        refused,
        OpenError::Refused {
            code: 1,
            text: "no".to_owned()
        }
    );
    assert_eq!(
        refused.to_string(),
        "the chisel server refused the connection: no (code 1)"
    );
    third.write_all(b"up").await.unwrap();
    assert_eq!(running.double.receive().await, data_message(70, b"up"));
    running.double.send(&data_message(2, b"down")).await;
    let mut data = [0; 4];
    third.read_exact(&mut data).await.unwrap();
    assert_eq!(&data, b"down");

    // Given up before the answer: closed as soon as the server has named its number, and not earlier.
    first.abort();
    assert!(first.await.is_err());
    assert!(running.double.is_quiet().await);
    assert_eq!(running.session.stats().channels_open, 2);
    running.double.send(&confirmation(0, 71)).await;
    assert_eq!(
        running.double.receive().await,
        channel_message(msg::CHANNEL_CLOSE, 71, &[])
    );
    running
        .double
        .send(&channel_message(msg::CHANNEL_CLOSE, 0, &[]))
        .await;
    assert!(running.double.is_quiet().await);
    assert_eq!(running.session.stats().channels_open, 1);

    // The number of the refused one is free again.
    let fourth = tokio::spawn({
        let session = running.session.clone();
        async move { session.open("b:2").await.map(drop) }
    });
    assert_eq!(asked(&running.double.receive().await), (0, "b:2".to_owned()));
    for target in ["", "a\r\nb", &"x".repeat(2000)] {
        assert_eq!(running.session.open(target).await.unwrap_err(), OpenError::Target);
    }
    // An answer that never comes ends with the session.
    running.session.disconnect("over");
    assert_eq!(fourth.await.unwrap(), Err(OpenError::Gone(SessionGone)));
    assert_eq!(
        running.session.open("c:3").await.unwrap_err(),
        OpenError::Gone(SessionGone)
    );
}

#[tokio::test]
async fn opens_of_ours_are_bounded_and_their_answers_checked() {
    let mut few = config();
    few.limits.max_channels = 1;
    let mut running = running(few).await;
    let _first = tokio::spawn({
        let session = running.session.clone();
        async move { session.open("a:1").await }
    });
    asked(&running.double.receive().await);
    assert_eq!(running.session.open("b:2").await.unwrap_err(), OpenError::TooMany);
    // Data before the confirmation breaks the protocol.
    running.double.send(&data_message(0, b"early")).await;
    let end = running.end().await;
    assert!(
        matches!(
            end,
            SessionEnd::Protocol(ProtocolError::Unexpected { number: 94, .. })
        ),
        "{end:?}"
    );
}

#[tokio::test]
async fn undecided_opens_are_bounded() {
    let mut few = config();
    few.limits.backlog = 2;
    let mut running = running(few).await;
    for peer in 0..3 {
        running.double.send(&open_message(peer, 100, "x:1")).await;
    }
    assert_eq!(
        running.double.receive().await[..9],
        channel_message(msg::CHANNEL_OPEN_FAILURE, 2, &[0, 0, 0, 4])
    );
    let first = running.events.next().await.unwrap().accept();
    assert_eq!(running.double.receive().await[0], msg::CHANNEL_OPEN_CONFIRMATION);
    running.double.send(&open_message(3, 100, "x:1")).await;
    drop(running.events.next().await.unwrap().accept());
    assert!(running.events.next().await.is_some());
    drop(first);
}

#[tokio::test]
async fn data_flows_within_the_windows() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(7).await;
    running.double.send(&data_message(id, b"hello")).await;
    let mut data = [0; 5];
    channel.read_exact(&mut data).await.unwrap();
    assert_eq!(&data, b"hello");

    // The double granted 2 MiB; more is sent only when it credits more. Each message is at most 32 KiB.
    let writing = tokio::spawn(async move {
        channel.write_all(&vec![3; 3 << 20]).await.unwrap();
        channel
    });
    let mut seen = 0;
    while seen < 2 << 20 {
        let message = running.double.receive().await;
        assert_eq!(message[0], msg::CHANNEL_DATA);
        let mut reader = Reader::new(&message[1..]);
        assert_eq!(reader.u32().unwrap(), 7);
        let data = reader.string().unwrap();
        assert!(data.len() <= 32 * 1024);
        seen += data.len();
    }
    assert_eq!(seen, 2 << 20);
    assert!(running.double.is_quiet().await);
    assert!(!writing.is_finished());
    running
        .double
        .send(&channel_message(
            msg::CHANNEL_WINDOW_ADJUST,
            id,
            &(1_u32 << 20).to_be_bytes(),
        ))
        .await;
    while seen < 3 << 20 {
        seen += running.double.receive().await.len() - 9;
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn credit_is_given_for_what_was_read_and_for_nothing_else() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(7).await;
    let block = vec![1; 32 * 1024];
    for _ in 0..64 {
        running.double.send(&data_message(id, &block)).await;
    }
    assert!(running.double.is_quiet().await, "nothing read, nothing credited");
    assert_eq!(running.session.stats().queued_bytes, 2 << 20);
    let mut read = vec![0; 64 << 10];
    for _ in 0..16 {
        channel.read_exact(&mut read).await.unwrap();
    }
    let mut credit = 0;
    while credit < 1 << 20 {
        let message = running.double.receive().await;
        assert_eq!(message[..5], channel_message(msg::CHANNEL_WINDOW_ADJUST, 7, &[]));
        let step = u32::from_be_bytes(message[5..].try_into().unwrap());
        assert!(step <= 1 << 18, "small steps: {step}");
        credit += step;
    }
    assert_eq!(credit, 1 << 20);
    assert!(running.double.is_quiet().await);
}

/// A ping measures how much flows in one round trip; a window that is too small for it grows.
#[tokio::test]
async fn a_window_that_limits_the_stream_grows() {
    let mut growing = config();
    growing.limits.max_window = 4 << 20;
    let mut running = running(growing).await;
    let (id, mut channel) = running.channel(7).await;
    let block = vec![1; 32 * 1024];
    let mut read = vec![0; 32 * 1024];
    let (mut credit, mut sent, mut pings) = (2_u64 << 20, 0, 0);
    while credit - sent < 3 << 20 {
        for _ in 0..56 {
            running.double.send(&data_message(id, &block)).await;
            sent += block.len() as u64;
            channel.read_exact(&mut read).await.unwrap();
        }
        // The double answers late: nearly a whole window flows in between.
        let mut ping = false;
        running.double.send(b"\x50\0\0\0\x05fence\x01").await;
        loop {
            let message = running.double.receive().await;
            match message[0] {
                msg::CHANNEL_WINDOW_ADJUST => {
                    credit += u64::from(u32::from_be_bytes(message[5..].try_into().unwrap()))
                }
                msg::GLOBAL_REQUEST => ping = true,
                _ => break,
            }
        }
        if ping {
            pings += 1;
            for _ in 0..56 {
                running.double.send(&data_message(id, &block)).await;
                sent += block.len() as u64;
                channel.read_exact(&mut read).await.unwrap();
            }
            running.double.send(b"\x51pong").await;
        }
        assert!(pings < 5 && sent < 100 << 20, "the window never grows");
    }
}

/// A consumer that does not read stops its own stream only.
#[tokio::test]
async fn a_full_channel_stops_no_other_and_no_ping() {
    let mut running = running(config()).await;
    let (stalled, _held) = running.channel(1).await;
    let (lively, mut channel) = running.channel(2).await;
    let block = vec![1; 32 * 1024];
    for _ in 0..64 {
        running.double.send(&data_message(stalled, &block)).await;
    }
    for _ in 0..10 {
        running.double.send(&data_message(lively, b"alive")).await;
        let mut data = [0; 5];
        channel.read_exact(&mut data).await.unwrap();
        channel.write_all(b"yes").await.unwrap();
        assert_eq!(running.double.receive().await, data_message(2, b"yes"));
        assert!(running.double.is_quiet().await);
    }
}

#[tokio::test]
async fn the_servers_close_is_answered_once_and_ends_the_stream_after_its_data() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(7).await;
    running.double.send(&data_message(id, b"last words")).await;
    running
        .double
        .send(&channel_message(msg::CHANNEL_CLOSE, id, &[]))
        .await;
    assert_eq!(
        running.double.receive().await,
        channel_message(msg::CHANNEL_CLOSE, 7, &[])
    );
    let mut data = Vec::new();
    channel.read_to_end(&mut data).await.unwrap();
    assert_eq!(data, b"last words");
    assert_eq!(
        channel.write(b"x").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    channel.shutdown().await.unwrap();
    // The number is not free while the consumer is there.
    let (second, other) = running.channel(8).await;
    assert_ne!(second, id);
    drop(channel);
    assert!(running.double.is_quiet().await, "no second CLOSE, no credit");
    let (third, _third) = running.channel(9).await;
    assert_eq!(third, id);
    drop(other);
}

#[tokio::test]
async fn our_close_is_the_last_word_for_a_channel() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(7).await;
    channel.write_all(b"before").await.unwrap();
    channel.shutdown().await.unwrap();
    assert_eq!(running.double.receive().await, data_message(7, b"before"));
    assert_eq!(
        running.double.receive().await,
        channel_message(msg::CHANNEL_CLOSE, 7, &[])
    );
    assert_eq!(
        channel.write(b"x").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    // What the server sends until its own CLOSE can be read, but is not credited; its requests are not answered.
    let block = vec![4; 32 * 1024];
    for _ in 0..32 {
        running.double.send(&data_message(id, &block)).await;
    }
    running
        .double
        .send(&channel_message(msg::CHANNEL_REQUEST, id, b"\0\0\0\x01x\x01"))
        .await;
    let mut data = vec![0; 1 << 20];
    channel.read_exact(&mut data).await.unwrap();
    assert!(running.double.is_quiet().await, "nothing after CLOSE");
    drop(channel);
    running.double.send(&data_message(id, &block)).await;
    assert!(running.double.is_quiet().await, "nothing after CLOSE");
    running
        .double
        .send(&channel_message(msg::CHANNEL_CLOSE, id, &[]))
        .await;
    assert!(running.double.is_quiet().await, "nothing after CLOSE");
    assert_eq!(running.session.stats().channels_open, 0);
    assert_eq!(running.session.stats().queued_bytes, 0);
}

#[tokio::test]
async fn eof_ends_reading_but_not_writing() {
    let mut running = running(config()).await;
    let (id, mut channel) = running.channel(7).await;
    running.double.send(&data_message(id, b"all")).await;
    running
        .double
        .send(&channel_message(msg::CHANNEL_EOF, id, &[]))
        .await;
    let mut data = Vec::new();
    channel.read_to_end(&mut data).await.unwrap();
    assert_eq!(data, b"all");
    channel.write_all(b"answer").await.unwrap();
    assert_eq!(running.double.receive().await, data_message(7, b"answer"));
}

#[tokio::test]
async fn unknown_requests_and_extended_data_are_tolerated() {
    let mut running = running(config()).await;
    let (id, _channel) = running.channel(7).await;
    running
        .double
        .send(&channel_message(
            msg::CHANNEL_REQUEST,
            id,
            b"\0\0\0\x04what\x01data",
        ))
        .await;
    assert_eq!(
        running.double.receive().await,
        channel_message(msg::CHANNEL_FAILURE, 7, &[])
    );
    running
        .double
        .send(&channel_message(
            msg::CHANNEL_REQUEST,
            id,
            b"\0\0\0\x04what\x00data",
        ))
        .await;
    // Extended data is thrown away, and credited.
    let mut rest = vec![0, 0, 0, 1, 0, 0, 0x80, 0];
    rest.resize(8 + 32 * 1024, 0);
    for _ in 0..8 {
        running
            .double
            .send(&channel_message(msg::CHANNEL_EXTENDED_DATA, id, &rest))
            .await;
    }
    let credit = channel_message(msg::CHANNEL_WINDOW_ADJUST, 7, &(8 * 32 * 1024_u32).to_be_bytes());
    assert_eq!(running.double.receive().await, credit);
}

/// Each of these ends the session with its reason, and the server is told it.
#[tokio::test]
async fn what_a_server_may_not_do() {
    type Case = (&'static str, fn(u32) -> Vec<Vec<u8>>, fn(&ProtocolError) -> bool);
    let cases: [Case; 13] = [
        (
            "window",
            |id| vec![data_message(id, &[0; 32 * 1024]); 65],
            |e| matches!(e, ProtocolError::WindowExceeded(_)),
        ),
        (
            "size",
            |id| vec![data_message(id, &[0; 32 * 1024 + 1])],
            |e| matches!(e, ProtocolError::DataTooLong(_)),
        ),
        (
            "number",
            |_| vec![data_message(77, b"x")],
            |e| matches!(e, ProtocolError::NoSuchChannel(77)),
        ),
        (
            "adjust",
            |id| vec![channel_message(93, id, &[255; 4])],
            |e| matches!(e, ProtocolError::WindowOverflow(_)),
        ),
        (
            "after close",
            |id| vec![channel_message(97, id, &[]), data_message(id, b"x")],
            |e| matches!(e, ProtocolError::AfterClose(_)),
        ),
        (
            "two closes",
            |id| vec![channel_message(97, id, &[]); 2],
            |e| matches!(e, ProtocolError::AfterClose(_)),
        ),
        (
            "after eof",
            |id| vec![channel_message(96, id, &[]), data_message(id, b"x")],
            |e| matches!(e, ProtocolError::AfterClose(_)),
        ),
        (
            "short",
            |id| vec![data_message(id, b"hello")[..8].to_vec()],
            |e| matches!(e, ProtocolError::ShortMessage),
        ),
        (
            "trailing",
            |id| vec![channel_message(97, id, b"x")],
            |e| matches!(e, ProtocolError::TrailingBytes),
        ),
        (
            "confirmation",
            |id| vec![channel_message(91, id, &[0; 12])],
            |e| matches!(e, ProtocolError::Unexpected { number: 91, .. }),
        ),
        (
            "reply",
            |_| vec![vec![msg::REQUEST_SUCCESS]],
            |e| matches!(e, ProtocolError::UnaskedReply),
        ),
        (
            "unimplemented",
            |_| vec![vec![3, 0, 0, 0, 0]],
            |e| matches!(e, ProtocolError::Unexpected { number: 3, .. }),
        ),
        (
            "unknown",
            |_| vec![vec![192]],
            |e| matches!(e, ProtocolError::Unexpected { number: 192, .. }),
        ),
    ];
    for (name, messages, expected) in cases {
        let mut running = running(config()).await;
        let (id, channel) = running.channel(7).await;
        for message in messages(id) {
            running.double.send(&message).await;
        }
        let Running {
            mut double,
            driver,
            session,
            mut events,
        } = running;
        let end = ended(driver).await;
        assert!(
            matches!(&end, SessionEnd::Protocol(error) if expected(error)),
            "{name}: {end:?}"
        );
        assert!(session.is_closed() && events.next().await.is_none());
        let mut last = double.receive().await;
        while last.first().is_some_and(|number| *number != msg::DISCONNECT) {
            last = double.receive().await;
        }
        assert!(!last.is_empty(), "{name}: the server is told");
        drop(channel);
    }
}

/// A local socket that takes `appetite` bytes at a time, and no more until it is fed again.
#[derive(Debug, Default)]
struct Mouth {
    appetite: Mutex<usize>,
    eaten: Mutex<Vec<u8>>,
    hungry: Notify,
    gone: AtomicBool,
}

impl Mouth {
    fn feed(&self, appetite: usize) {
        *self.appetite.lock().unwrap() += appetite;
        self.hungry.notify_one();
    }
}

impl Sink for Mouth {
    fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let mut appetite = self.appetite.lock().unwrap();
        let n = data.len().min(*appetite);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        *appetite -= n;
        self.eaten.lock().unwrap().extend_from_slice(&data[..n]);
        Ok(n)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let notified = pin!(self.hungry.notified());
        // A waiter that is dropped loses nothing: the permit stays, and the loop of the test asks again.
        match notified.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// Data that a sink takes at once is never queued; what it refuses waits its turn, within the window, and credit follows what was taken.
#[tokio::test]
async fn data_goes_straight_to_a_sink_and_the_rest_in_order() {
    let mut running = running(config()).await;
    let (id, channel) = running.channel(7).await;
    let mouth = Arc::new(Mouth::default());
    channel.attach(mouth.clone());
    let channel = Arc::new(channel);
    let draining = tokio::spawn({
        let (channel, mouth) = (channel.clone(), mouth.clone());
        async move { poll_fn(|cx| channel.poll_drain(cx, &*mouth)).await }
    });
    let data: Vec<u8> = (0..2 << 20).map(|n: u32| (n % 251) as u8).collect();
    let (straight, later) = data.split_at(256 << 10);
    mouth.feed(straight.len());
    for piece in straight.chunks(32 << 10) {
        running.double.send(&data_message(id, piece)).await;
    }
    let credit = channel_message(msg::CHANNEL_WINDOW_ADJUST, 7, &(256_u32 << 10).to_be_bytes());
    assert_eq!(running.double.receive().await, credit, "an eighth of the window");
    assert_eq!(running.session.stats().queued_bytes, 0);
    for piece in later.chunks(32 << 10) {
        running.double.send(&data_message(id, piece)).await;
    }
    assert!(
        running.double.is_quiet().await,
        "what is not taken is not credited"
    );
    assert_eq!(running.session.stats().queued_bytes, later.len());
    mouth.feed(100_000);
    mouth.feed(usize::MAX / 2);
    running
        .double
        .send(&channel_message(msg::CHANNEL_CLOSE, id, &[]))
        .await;
    draining.await.unwrap().unwrap();
    assert!(*mouth.eaten.lock().unwrap() == data);
    assert_eq!(running.session.stats().queued_bytes, 0);
}

#[tokio::test]
async fn a_sink_that_breaks_ends_its_own_channel() {
    let mut running = running(config()).await;
    let (id, channel) = running.channel(7).await;
    let (other_id, mut other) = running.channel(8).await;
    let mouth = Arc::new(Mouth::default());
    mouth.gone.store(true, Ordering::Relaxed);
    channel.attach(mouth.clone());
    running.double.send(&data_message(id, b"lost")).await;
    let end = poll_fn(|cx| channel.poll_drain(cx, &*mouth)).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(channel);
    assert_eq!(
        running.double.receive().await,
        channel_message(msg::CHANNEL_CLOSE, 7, &[])
    );
    running.double.send(&data_message(other_id, b"x")).await;
    other.read_exact(&mut [0]).await.unwrap();
}

/// Reads of a local socket land in the output, no more than the window allows, and its end is told.
#[tokio::test]
async fn data_is_sent_straight_from_a_source() {
    let mut running = running(config()).await;
    running.double.send(&open_message(3, 100_000, "x:1")).await;
    let channel = running.events.next().await.unwrap().accept();
    let id = channel.id().unwrap();
    running.double.receive().await;
    let data: Vec<u8> = (0..150_000_u32).map(|n| (n % 249) as u8).collect();
    let sending = tokio::spawn({
        let data = data.clone();
        async move {
            let mut source = &data[..];
            let mut sent = Vec::new();
            loop {
                match poll_fn(|cx| channel.poll_send_from(cx, Pin::new(&mut source)))
                    .await
                    .unwrap()
                {
                    0 => break,
                    n => sent.push(n),
                }
            }
            channel.close();
            channel.close();
            let closed = poll_fn(|cx| channel.poll_send_from(cx, Pin::new(&mut &b"x"[..]))).await;
            assert_eq!(closed.unwrap_err().kind(), ErrorKind::BrokenPipe);
            sent
        }
    });
    let mut seen = Vec::new();
    while seen.len() < data.len() {
        let message = running.double.receive().await;
        assert_eq!(message[..5], channel_message(msg::CHANNEL_DATA, 3, &[]));
        let piece = Reader::new(&message[5..]).string().unwrap();
        assert!(piece.len() <= 32 << 10);
        seen.extend_from_slice(piece);
        if seen.len() == 100_000 {
            assert!(running.double.is_quiet().await, "the window is used up");
            assert_eq!(running.session.stats().window_stalls, 1);
            let credit = channel_message(msg::CHANNEL_WINDOW_ADJUST, id, &60_000_u32.to_be_bytes());
            running.double.send(&credit).await;
        }
    }
    assert!(seen == data);
    assert_eq!(sending.await.unwrap().iter().sum::<usize>(), data.len());
    assert_eq!(
        running.double.receive().await,
        channel_message(msg::CHANNEL_CLOSE, 3, &[])
    );
    assert!(running.double.is_quiet().await);
}
