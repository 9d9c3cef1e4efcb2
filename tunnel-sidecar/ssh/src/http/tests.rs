use super::*;
use proptest::prelude::*;

fn request<'a>(path: &'a str, headers: &'a [(String, String)]) -> UpgradeRequest<'a> {
    UpgradeRequest {
        host: "127.0.0.1:24901",
        path_and_query: path,
        headers,
        key: *b"the sample nonce",
    }
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn request_has_what_a_chisel_server_demands() {
    let headers = [header("X-A", "b")];
    let text = String::from_utf8(request("/sub?x=1", &headers).encode().unwrap()).unwrap();
    assert!(text.starts_with("GET /sub?x=1 HTTP/1.1\r\nHost: 127.0.0.1:24901\r\n"));
    for line in [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: chisel-v3",
        "Sec-WebSocket-Version: 13",
        "X-A: b",
    ] {
        assert!(text.contains(&format!("\r\n{line}\r\n")), "{line}");
    }
    assert!(text.ends_with("\r\n\r\n"));
    assert!(request("", &[]).encode().unwrap().starts_with(b"GET / HTTP/1.1"));
}

#[test]
fn host_can_be_overridden_and_the_rest_is_guarded() {
    let headers = [header("host", "example.com:443")];
    let text = String::from_utf8(request("/", &headers).encode().unwrap()).unwrap();
    assert!(text.contains("\r\nHost: example.com:443\r\n") && !text.contains("24901"));

    assert_eq!(request("/a b", &[]).encode(), Err(BadRequest::Path));
    assert_eq!(request("x", &[]).encode(), Err(BadRequest::Path));
    let bad = |name: &str, value: &str| request("/", &[header(name, value)]).encode().unwrap_err();
    assert!(matches!(
        bad("X-A", "b\r\nInjected: 1"),
        BadRequest::Header { .. }
    ));
    assert!(matches!(bad("X A", "b"), BadRequest::Header { .. }));
    assert!(matches!(bad("", "b"), BadRequest::Header { .. }));
    assert!(matches!(
        bad("Sec-WebSocket-Protocol", "b"),
        BadRequest::ReservedHeader { .. }
    ));
    assert!(matches!(
        bad("CONNECTION", "b"),
        BadRequest::ReservedHeader { .. }
    ));
    assert_eq!(bad("Host", "a b"), BadRequest::Host);
}

/// The example of RFC 6455 section 1.3.
#[test]
fn accept_value_of_the_rfc() {
    assert_eq!(accept_value(*b"the sample nonce"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn a_real_answer_is_accepted_without_an_echoed_subprotocol() {
    let answer =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nSSH-";
    let (response, used) = Response::parse(answer).unwrap().unwrap();
    assert_eq!(response.status, 101);
    assert_eq!(&answer[used..], b"SSH-");
    response.check_upgrade(*b"the sample nonce").unwrap();
    assert!(response.check_upgrade([0; 16]).is_err());
}

#[test]
fn an_answer_without_proof_is_refused() {
    for head in [
        "HTTP/1.1 101 x\r\n\r\n",
        "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    ] {
        let (response, _) = Response::parse(head.as_bytes()).unwrap().unwrap();
        assert!(matches!(
            response.check_upgrade(*b"the sample nonce"),
            Err(ProtocolError::Upgrade(_))
        ));
    }
}

#[test]
fn retry_after_in_both_forms() {
    let parse = |head: &str| Response::parse(head.as_bytes()).unwrap().unwrap().0.retry_after();
    assert_eq!(
        parse("HTTP/1.1 503 no\r\nRetry-After: 120\r\n\r\n"),
        Some(Duration::from_secs(120))
    );
    assert_eq!(
        parse(
            "HTTP/1.1 503 no\r\nDate: Tue, 29 Feb 2028 23:59:00 GMT\r\nRetry-After: Wed, 01 Mar 2028 00:00:30 GMT\r\n\r\n"
        ),
        Some(Duration::from_secs(90))
    );
    assert_eq!(parse("HTTP/1.1 503 no\r\nRetry-After: soon\r\n\r\n"), None);
    assert_eq!(parse("HTTP/1.1 503 no\r\n\r\n"), None);
}

#[test]
fn dates_are_counted_from_1970() {
    assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    assert_eq!(parse_date("Sun, 06 Nov 1994 99:49:37 GMT"), None);
    assert_eq!(parse_date("Sun, 06 Nov 0001 08:49:37 GMT"), None);
}

#[test]
fn other_protocols_and_endless_heads_are_told_early() {
    assert_eq!(Response::parse(b"SSH-2.0-x\r\n"), Err(ProtocolError::Http));
    assert_eq!(Response::parse(b"HTTP/2 101\r\n\r\n"), Err(ProtocolError::Http));
    assert_eq!(
        Response::parse(b"HTTP/1.1 1x1 a\r\n\r\n"),
        Err(ProtocolError::Http)
    );
    assert_eq!(Response::parse(b"HTT"), Ok(None));
    let mut endless = b"HTTP/1.1 101 x\r\n".to_vec();
    endless.resize(MAX_HEAD, b'a');
    assert_eq!(Response::parse(&endless), Err(ProtocolError::HttpTooLong));
}

proptest! {
    #[test]
    fn any_answer_never_panics(tail: Vec<u8>) {
        let mut answer = b"HTTP/1.1 503 x\r\n".to_vec();
        answer.extend_from_slice(&tail);
        for data in [&tail, &answer] {
            if let Ok(Some((response, used))) = Response::parse(data) {
                prop_assert!(used <= data.len());
                let _ = response.check_upgrade([0; 16]);
                let _ = response.retry_after();
            }
        }
    }

    #[test]
    fn any_date_never_panics(text in "[A-Za-z]{3}, [0-9]{1,20} (Jan|Feb|Dec) [0-9]{1,20} [0-9]{1,5}:[0-9]{2}:[0-9]{2} GMT") {
        let _ = parse_date(&text);
    }

    #[test]
    fn heads_round_trip(status in 100_u16..600, value in "[!-~]{1,30}") {
        let text = format!("HTTP/1.1 {status} Reason Phrase\r\nX-Value:  {value} \r\n\r\n");
        for cut in 0..text.len() {
            prop_assert_eq!(Response::parse(&text.as_bytes()[..cut]), Ok(None));
        }
        let (response, used) = Response::parse(text.as_bytes()).unwrap().unwrap();
        prop_assert_eq!(used, text.len());
        prop_assert_eq!(response.status, status);
        prop_assert_eq!(response.header("x-value"), Some(value.as_str()));
    }
}
