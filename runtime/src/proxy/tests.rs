use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::TcpListener,
};

use super::*;
use crate::config::Env;

fn proxy(text: &str) -> Proxy {
    Proxy::parse(text).unwrap()
}

#[test]
fn proxies_are_read_and_shown_without_their_password() {
    for (text, shown) in [
        (
            "http://user:canary@proxy.example:3128",
            "http://proxy.example:3128",
        ),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("http://proxy.example", "http://proxy.example:80"),
        ("socks5h://[::1]:9", "socks5h://[::1]:9"),
        ("socks://user:canary@p", "socks5h://p:1080"),
        ("socks5://10.0.0.1", "socks5://10.0.0.1:1080"),
    ] {
        assert_eq!(proxy(text).to_string(), shown, "{text}");
        assert!(!format!("{:?}", proxy(text)).contains("canary"));
    }
    assert_eq!(
        Proxy::parse("https://p"),
        Err(BadProxy::Scheme("https".to_owned()))
    );
    assert_eq!(
        Proxy::parse("socks4://p"),
        Err(BadProxy::Scheme("socks4".to_owned()))
    );
    assert!(matches!(Proxy::parse("http://"), Err(BadProxy::Url(_))));
    assert_eq!(Proxy::parse("http://a:%00@p"), Err(BadProxy::User));
    let long = format!("socks5://{}:b@p", "a".repeat(256));
    assert_eq!(Proxy::parse(&long), Err(BadProxy::User));
    for (text, loopback) in [
        ("http://127.0.0.1:1", true),
        ("socks5h://127.0.0.1:1", true),
        ("socks5h://localhost", true),
        ("http://10.0.0.1", false),
    ] {
        assert_eq!(proxy(text).is_loopback(), loopback, "{text}");
    }
    assert_ne!(proxy("http://a:b@p"), proxy("http://a:c@p"));
    assert_eq!(proxy("http://a:%62@p"), proxy("http://a:b@p"));
}

#[test]
fn the_variables_are_read_as_others_read_them() {
    let choose = |pairs: &[(&str, &str)], tls, host, port| {
        let env = ProxyEnv::read(&Env::from_pairs(pairs.iter().copied())).unwrap();
        env.for_peer(tls, host, port).map(ToString::to_string)
    };
    let both = [("HTTPS_PROXY", "http://s:1"), ("http_proxy", "http://p:2")];
    assert_eq!(choose(&both, true, "a.example", 443).unwrap(), "http://s:1");
    assert_eq!(choose(&both, false, "a.example", 80).unwrap(), "http://p:2");
    for here in [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "x.localhost",
        "[::ffff:127.0.0.1]",
    ] {
        assert_eq!(choose(&both, true, here, 443), None, "{here}");
    }
    let lower = [
        ("https_proxy", "http://lower:1"),
        ("HTTPS_PROXY", "http://upper:1"),
    ];
    assert_eq!(choose(&lower, true, "a", 1).unwrap(), "http://lower:1");
    assert_eq!(
        choose(&[("ALL_PROXY", "socks5h://all:1")], true, "a", 1).unwrap(),
        "socks5h://all:1"
    );
    assert_eq!(choose(&[], true, "a", 1), None);
    let cgi = [("HTTP_PROXY", "http://p:2"), ("REQUEST_METHOD", "GET")];
    assert_eq!(choose(&cgi, false, "a", 1), None);

    for (exceptions, host, port, through) in [
        ("*", "a.example", 443, false),
        ("example.com", "example.com", 443, false),
        ("example.com", "a.example.com.", 443, false),
        ("example.com", "notexample.com", 443, true),
        (".example.com", "example.com", 443, true),
        (".example.com,x", "A.Example.com", 443, false),
        ("*.example.com", "a.example.com", 443, false),
        ("a.example:8443", "a.example", 443, true),
        ("a.example:8443", "a.example", 8443, false),
        ("10.0.0.0/8", "10.1.2.3", 443, false),
        ("10.0.0.0/8", "11.1.2.3", 443, true),
        ("10.0.0.0/8", "a.example", 443, true),
        ("fd00::/8", "[fd00::1]", 443, false),
        ("[fd00::1]:443", "[fd00::1]", 443, false),
        ("192.0.2.1", "192.0.2.1", 443, false),
        ("192.0.2.1", "192.0.2.2", 443, true),
        ("nonsense/99x, ,", "a.example", 443, true),
    ] {
        let found = choose(
            &[("HTTPS_PROXY", "http://s:1"), ("NO_PROXY", exceptions)],
            true,
            host,
            port,
        );
        assert_eq!(found.is_some(), through, "NO_PROXY={exceptions} {host}:{port}");
    }
    let bad = ProxyEnv::read(&Env::from_pairs([("ALL_PROXY", "ftp://x")]));
    assert_eq!(bad.unwrap_err().0, "ALL_PROXY");
}

/// Plays a proxy that says `answers`, one after each message of ours, and returns all that we said.
async fn play(mut far: DuplexStream, answers: &[&[u8]]) -> Vec<u8> {
    let mut said = Vec::new();
    for answer in answers {
        let mut piece = [0; 1024];
        let read = far.read(&mut piece).await.unwrap();
        said.extend_from_slice(&piece[..read]);
        far.write_all(answer).await.unwrap();
    }
    said
}

async fn shake(text: &str, host: &str, answers: &[&[u8]]) -> (Result<(), String>, Vec<u8>) {
    let (mut near, far) = duplex(4096);
    let proxy = proxy(text);
    let shaking = async {
        let result = handshake::shake(&proxy, &mut near, host, 443).await;
        drop(near);
        result.map_err(|error| error.to_string())
    };
    tokio::join!(shaking, play(far, answers))
}

#[tokio::test]
async fn connect_is_asked_for_and_the_answer_understood() {
    let ok = b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n";
    let (result, said) = shake("http://user:p%40ss@proxy", "tunnel.example", &[ok]).await;
    result.unwrap();
    assert_eq!(
        String::from_utf8(said).unwrap(),
        "CONNECT tunnel.example:443 HTTP/1.1\r\nHost: tunnel.example:443\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n"
    );
    let (_, said) = shake("http://proxy", "[::1]", &[ok]).await;
    assert_eq!(said, b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n");
    for (answer, part) in [
        (
            &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
            "refused our user and password (407 Proxy",
        ),
        (
            b"HTTP/1.1 403 Forbidden by rule\r\n\r\n",
            "did not connect to a:443: 403 Forbidden by rule",
        ),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "does not speak HTTP CONNECT"),
        (b"HTTP/1.1 what\r\n\r\n", "has no status"),
        (b"HTT", "closed the connection"),
    ] {
        let (result, _) = shake("http://u:canary@proxy", "a", &[answer]).await;
        let text = result.unwrap_err();
        assert!(text.contains(part) && !text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn socks_is_spoken_with_and_without_a_user() {
    let bound: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let (result, said) = shake("socks5h://p", "tunnel.example", &[&[5, 0], bound]).await;
    result.unwrap();
    assert_eq!(said, b"\x05\x01\x00\x05\x01\x00\x03\x0etunnel.example\x01\xbb");
    let (result, said) = shake("socks://u:pw@p", "10.0.0.1", &[&[5, 2], &[1, 0], bound]).await;
    result.unwrap();
    assert_eq!(
        said,
        b"\x05\x02\x00\x02\x01\x01u\x02pw\x05\x01\x00\x01\x0a\x00\x00\x01\x01\xbb"
    );
    let (result, said) = shake(
        "socks5://p",
        "localhost",
        &[&[5, 0], &[5, 0, 0, 3, 1, b'x', 0, 0]],
    )
    .await;
    result.unwrap();
    assert!(said[6] != 3, "the name is resolved here");
    for (text, answers, part) in [
        (
            "socks5h://p",
            &[&[5_u8, 0xff][..]][..],
            "it wants a user and a password",
        ),
        (
            "socks5h://u:canary@p",
            &[&[5, 2], &[1, 1]],
            "refused our user and password",
        ),
        (
            "socks5h://p",
            &[&[5, 0], &[5, 2, 0, 1]],
            "not allowed by its rules",
        ),
        ("socks5h://p", &[b"HT"], "does not speak SOCKS5"),
        ("socks5h://p", &[&[5, 0], &[5, 0, 0, 7]], "type 7"),
    ] {
        let (result, _) = shake(text, "a", answers).await;
        let said = result.unwrap_err();
        assert!(said.contains(part) && !said.contains("canary"), "{said}");
    }
}

#[tokio::test]
async fn a_proxy_that_says_nothing_is_named() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let proxy = proxy(&format!("http://127.0.0.1:{port}"));
    let error = tcp(Some(&proxy), "a", 1, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(error, ProxyError::Timeout { .. }), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = Proxy::parse(&text);
        let _ = ProxyEnv::read(&Env::from_pairs([("NO_PROXY", text.as_str()), ("HTTP_PROXY", "http://p")]))
            .map(|env| env.for_peer(false, &text, 80).is_some());
    }

    #[test]
    fn any_answer_is_read(head in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = handshake::status(&head);
    }
}
