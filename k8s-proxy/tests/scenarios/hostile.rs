//! Bytes that no HTTP/2 client sends, over a real WebSocket: the link or the stream ends, and nothing else does.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::support::{Link, Setup, soon};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// `GET / ` over http with authority `k`, by RFC 7541's static table.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'k'];
/// Frames of a flood.
const FLOOD: usize = 20_000;
/// Bytes of one WebSocket message of a flood, below what the link takes.
const MESSAGE: usize = 60_000;
/// What all floods together may leave in this process, which holds proxy, client and apiserver.
const MEMORY_KB: usize = 64 * 1024;

/// What must become of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It ends by itself.
    Link,
    /// It goes on: the stream ends, or what came means nothing.
    Stream,
    /// Either is a fair answer; only the others count.
    Either,
    /// We hang up in the middle.
    Ours,
}

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    end: End,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// After a good beginning.
fn case(name: &'static str, end: End, frames: &[Vec<u8>]) -> Case {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frames.concat());
    Case { name, bytes, end }
}

fn raw(name: &'static str, end: End, bytes: &[u8]) -> Case {
    let bytes = bytes.to_vec();
    Case { name, bytes, end }
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, GET)
}

fn many(one: impl Fn(u32) -> Vec<u8>) -> Vec<Vec<u8>> {
    (0..u32::try_from(FLOOD).unwrap()).map(one).collect()
}

fn cases() -> Vec<Case> {
    use End::{Either, Link, Ours, Stream};
    let open = frame(HEADERS, END_HEADERS, 1, GET);
    let setting = |id: u8, value: u32| {
        let mut payload = vec![0, id];
        payload.extend(value.to_be_bytes());
        frame(SETTINGS, 0, 0, &payload)
    };
    let window = |stream, step: u32| frame(WINDOW_UPDATE, 0, stream, &step.to_be_bytes());
    let mut half = frame(DATA, 0, 1, &[0; 100]);
    half.truncate(50);
    vec![
        raw("an HTTP/1.1 request", Link, b"GET / HTTP/1.1\r\nhost: k\r\n\r\n"),
        raw(
            "a preface with one wrong byte",
            Link,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
        ),
        raw("zeros", Link, &[0; 1000]),
        raw("half a preface", Ours, &PREFACE[..10]),
        raw(
            "no SETTINGS after the preface",
            Either,
            &[PREFACE, &frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        case(
            "a frame above the largest",
            Link,
            &[open.clone(), frame(DATA, 0, 1, &[0; 20_000])],
        ),
        case(
            "a length of 16 MiB",
            Link,
            &[vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]],
        ),
        case(
            "HEADERS on stream 0",
            Link,
            &[frame(HEADERS, END_HEADERS, 0, GET)],
        ),
        case("HEADERS on an even stream", Link, &[get(2)]),
        case("HEADERS on an older stream", Link, &[get(5), get(3)]),
        case(
            "HEADERS with more padding than bytes",
            Link,
            &[frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0x82])],
        ),
        case("DATA on stream 0", Link, &[frame(DATA, 0, 0, b"x")]),
        case("DATA on an idle stream", Link, &[frame(DATA, 0, 1, b"x")]),
        case(
            "DATA with more padding than bytes",
            Link,
            &[open.clone(), frame(DATA, PADDED, 1, &[9, 0])],
        ),
        case(
            "PRIORITY of four bytes",
            Either,
            &[frame(PRIORITY, 0, 1, &[0; 4])],
        ),
        case(
            "PRIORITY on itself",
            Either,
            &[frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])],
        ),
        case(
            "RST_STREAM on stream 0",
            Link,
            &[frame(RST_STREAM, 0, 0, &[0; 4])],
        ),
        case(
            "RST_STREAM on an idle stream",
            Link,
            &[frame(RST_STREAM, 0, 7, &[0; 4])],
        ),
        case(
            "RST_STREAM of three bytes",
            Link,
            &[open.clone(), frame(RST_STREAM, 0, 1, &[0; 3])],
        ),
        case("SETTINGS on a stream", Link, &[frame(SETTINGS, 0, 1, &[])]),
        case("SETTINGS of five bytes", Link, &[frame(SETTINGS, 0, 0, &[0; 5])]),
        case(
            "SETTINGS with an answer in it",
            Link,
            &[frame(SETTINGS, 1, 0, &[0; 6])],
        ),
        case("SETTINGS_ENABLE_PUSH of 2", Link, &[setting(2, 2)]),
        case(
            "SETTINGS_INITIAL_WINDOW_SIZE above 2^31",
            Link,
            &[setting(4, u32::MAX)],
        ),
        case("SETTINGS_MAX_FRAME_SIZE below 16,384", Link, &[setting(5, 1)]),
        case("a setting that nobody knows", Stream, &[setting(99, 1)]),
        case("a frame that nobody knows", Stream, &[frame(200, 0, 0, b"what")]),
        case(
            "PUSH_PROMISE from a client",
            Link,
            &[
                open.clone(),
                frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]),
            ],
        ),
        case("PING on a stream", Link, &[frame(PING, 0, 1, &[0; 8])]),
        case("PING of seven bytes", Link, &[frame(PING, 0, 0, &[0; 7])]),
        case("GOAWAY on a stream", Link, &[frame(GOAWAY, 0, 1, &[0; 8])]),
        case("WINDOW_UPDATE of zero on the connection", Link, &[window(0, 0)]),
        case(
            "WINDOW_UPDATE of zero on a stream",
            Either,
            &[open.clone(), window(1, 0)],
        ),
        case(
            "window overflow of the connection",
            Link,
            &[window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)],
        ),
        case(
            "window overflow of a stream",
            Either,
            &[open.clone(), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)],
        ),
        case(
            "window overflow by SETTINGS",
            Either,
            &[open.clone(), window(1, 0x7fff_0000), setting(4, 0x7fff_ffff)],
        ),
        case(
            "WINDOW_UPDATE of three bytes",
            Link,
            &[frame(WINDOW_UPDATE, 0, 0, &[0; 3])],
        ),
        case(
            "CONTINUATION without HEADERS",
            Link,
            &[frame(CONTINUATION, END_HEADERS, 1, GET)],
        ),
        case(
            "another frame between HEADERS and CONTINUATION",
            Link,
            &[frame(HEADERS, 0, 1, GET), frame(PING, 0, 0, &[0; 8])],
        ),
        case(
            "CONTINUATION of another stream",
            Link,
            &[
                frame(HEADERS, 0, 1, GET),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ],
        ),
        case(
            "bad HPACK: an index that is not there",
            Link,
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[0xff, 0xff, 0xff, 0x7f],
            )],
        ),
        case(
            "bad HPACK: index 0",
            Link,
            &[frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80])],
        ),
        case(
            "bad HPACK: a string that is cut off",
            Link,
            &[frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x40, 0x7f, 1])],
        ),
        case(
            "bad HPACK: a table above the limit",
            Link,
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[0x3f, 0xff, 0xff, 0x7f],
            )],
        ),
        case(
            "bad HPACK: Huffman of ones",
            Link,
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[0x40, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00],
            )],
        ),
        case(
            "no :method",
            Either,
            &[frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x86, 0x84])],
        ),
        case(
            "an upper-case name",
            Either,
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[GET, &[0x00, 1, b'A', 1, b'b']].concat(),
            )],
        ),
        case(
            "a connection header",
            Either,
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[GET, b"\x00\x0aconnection\x05close"].concat(),
            )],
        ),
        case(
            "a pseudo-header after the others",
            Either,
            &[frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                1,
                &[b"\x00\x01a\x01b", GET].concat(),
            )],
        ),
        case("DATA after the end", Either, &[get(1), frame(DATA, 0, 1, b"x")]),
        case(
            "HEADERS twice without an end",
            Either,
            &[open.clone(), open.clone()],
        ),
        case("half a frame, then gone", Ours, &[open.clone(), half]),
        case("half a head, then gone", Ours, &[frame(HEADERS, 0, 1, GET)]),
        // Floods.
        case(
            "a flood of CONTINUATION",
            Link,
            &[
                vec![frame(HEADERS, 0, 1, GET)],
                many(|_| frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b")),
            ]
            .concat(),
        ),
        case(
            "a flood of empty CONTINUATION",
            Either,
            &[
                vec![frame(HEADERS, 0, 1, GET)],
                many(|_| frame(CONTINUATION, 0, 1, &[])),
            ]
            .concat(),
        ),
        case(
            "rapid reset",
            Either,
            &many(|number| {
                [
                    get(2 * number + 1),
                    frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8]),
                ]
                .concat()
            }),
        ),
        case("a flood of streams", Either, &many(|number| get(2 * number + 1))),
        case("a flood of SETTINGS", Either, &many(|_| setting(4, 65_535))),
        case("a flood of PING", Either, &many(|_| frame(PING, 0, 0, &[7; 8]))),
        case(
            "a flood of empty DATA",
            Either,
            &[vec![open.clone()], many(|_| frame(DATA, 0, 1, &[]))].concat(),
        ),
        case(
            "a flood of PRIORITY",
            Either,
            &many(|number| frame(PRIORITY, 0, 2 * number + 1, &[0, 0, 0, 0, 1])),
        ),
        case("a flood of window steps", Either, &many(|_| window(0, 1))),
    ]
}

async fn connect(address: SocketAddr) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{address}/ws/k8s").into_client_request().unwrap();
    for (name, value) in [
        ("authorization", "Bearer door-token"),
        ("sec-websocket-protocol", "pipeops.k8s.h2"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let tcp = TcpStream::connect(address).await.unwrap();
    client_async(request, tcp).await.unwrap().0
}

/// Reads until the end, or until the mark of a PING of ours comes back.
async fn outcome(socket: &mut WebSocketStream<TcpStream>, mark: [u8; 8]) -> End {
    let answer = [&[0, 0, 8, PING, 1, 0, 0, 0, 0][..], &mark].concat();
    let mut tail = Vec::new();
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                tail.extend_from_slice(&bytes);
                if tail.windows(answer.len()).any(|window| window == answer) {
                    return End::Stream;
                }
                let keep = tail.len().saturating_sub(answer.len());
                tail.drain(..keep);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Link,
        }
    }
}

fn anonymous_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_of_a_link_end_anything_but_the_link() {
    let setup = Setup::start().await;
    let address = setup.proxy.addresses.door_http;
    let good = Link::connect(address, "/ws/k8s", "door-token").await;
    assert_eq!(good.get("/api/v1/pods").await.0, 200);
    let (before, cases) = (anonymous_kb(), cases());
    let mut ended = 0;
    for case in &cases {
        let mut socket = connect(address).await;
        // A link that ends while it is written to is an end, not a failure.
        let writing = async {
            for piece in case.bytes.chunks(MESSAGE) {
                if socket.send(Message::binary(piece.to_vec())).await.is_err() {
                    return;
                }
            }
            if case.end != End::Ours {
                let mark = Message::binary(frame(PING, 0, 0, b"mark-it!"));
                socket.send(mark).await.ok();
            }
        };
        // Who floods and reads nothing may be held up; nothing is proved by how long.
        timeout(Duration::from_secs(5), writing).await.ok();
        let end = if case.end == End::Ours {
            drop(socket);
            End::Ours
        } else {
            soon(case.name, outcome(&mut socket, *b"mark-it!")).await
        };
        println!("{}: {end:?}", case.name);
        assert!(
            case.end == End::Either || end == case.end,
            "{}: {end:?}, expected {:?}",
            case.name,
            case.end
        );
        ended += usize::from(end == End::Link);
        // The others notice nothing.
        assert_eq!(good.get("/api/v1/pods").await.0, 200, "{}", case.name);
    }
    let (status, _) = setup.proxy.get("/api/v1/pods", "door-token").await;
    assert_eq!(status.as_u16(), 200, "the HTTP door");
    let mut frames = setup.socket().await;
    frames.get("a", "/api/v1/pods").await;
    assert_eq!(frames.next().await.status(), 200, "frames");
    let grown = anonymous_kb().saturating_sub(before);
    println!(
        "{} kinds of bad bytes: {ended} links ended, {} went on or were left by us; {grown} kB more in memory",
        cases.len(),
        cases.len() - ended
    );
    assert!(cases.len() > 50, "{} cases", cases.len());
    assert!(grown < MEMORY_KB, "{grown} kB");
}
