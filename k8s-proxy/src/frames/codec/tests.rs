use super::*;
use flate2::read::GzDecoder;
use proptest::prelude::*;
use std::io::Read as _;

fn call(text: &str) -> Call {
    match read(text).unwrap() {
        Inbound::Call(call) => *call,
        other @ (Inbound::Cancel { .. } | Inbound::Ping | Inbound::Pong) => panic!("{other:?}"),
    }
}

fn refused(text: &str) -> BadFrame {
    read(text).unwrap_err()
}

#[test]
fn the_frame_of_the_specification_reads() {
    let call = call(
        r#"{"id":"req-1","method":"GET","path":"/api/v1/pods","headers":{"Accept":"application/json","X-A":["1","2"]},
            "body":"","query":{"watch":["true"],"labelSelector":"app=x"},"stream":true,"stream_id":"","new":7}"#,
    );
    assert_eq!(
        (call.id.as_str(), &call.method, call.stream),
        ("req-1", &Method::GET, true)
    );
    assert_eq!(call.uri.as_str(), "/api/v1/pods?labelSelector=app%3Dx&watch=true");
    assert_eq!(call.headers["accept"], "application/json");
    assert_eq!(call.headers.get_all("x-a").iter().count(), 2);
}

#[test]
fn absent_and_null_parts_are_empty() {
    let nulls = call(
        r#"{"id":"a","method":"post","path":"/api/v1/pods?dryRun=All","headers":null,"body":null,"query":{"x":null},"stream":null,"stream_id":null}"#,
    );
    assert_eq!(
        (nulls.uri.as_str(), nulls.body.len(), nulls.stream),
        ("/api/v1/pods?dryRun=All", 0, false)
    );
    let body = call(r#"{"id":"a","method":"POST","path":"/api","body":"aGk","query":{"b":"1"}}"#);
    assert_eq!(
        (body.body.as_ref(), body.uri.as_str()),
        (b"hi".as_slice(), "/api?b=1")
    );
}

#[test]
fn cancel_names_a_stream_or_an_id() {
    for (text, expected) in [
        (r#"{"id":"c","method":"CANCEL","stream_id":"s"}"#, "s"),
        (r#"{"id":"c","method":"CANCEL"}"#, "c"),
        (r#"{"method":"CANCEL","stream_id":"s"}"#, "s"),
    ] {
        let Inbound::Cancel { target, .. } = read(text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(target, expected);
    }
    assert!(
        refused(r#"{"method":"CANCEL"}"#)
            .failure
            .message
            .contains("stream_id")
    );
}

#[test]
fn pings_need_no_id() {
    assert!(matches!(read(r#"{"type":"ping"}"#), Ok(Inbound::Ping)));
    assert!(matches!(read(r#"{"type":"pong"}"#), Ok(Inbound::Pong)));
}

#[test]
fn bad_frames_are_answered_with_their_id() {
    for (text, id, word) in [
        ("", "", "not a frame"),
        ("nonsense", "", "not a frame"),
        ("[1,2]", "", "not a frame"),
        ("{}", "", "needs an id"),
        (r#"{"id":7}"#, "", "not a frame"),
        (r#"{"id":"a","method":7}"#, "a", "not a frame"),
        (r#"{"id":"a","method":"BREW","path":"/api"}"#, "a", "BREW"),
        (r#"{"id":"a","path":"/api"}"#, "a", "method"),
        (r#"{"id":"a","method":"GET","path":"api"}"#, "a", "slash"),
        (
            r#"{"id":"a","method":"GET","path":"https://x/api"}"#,
            "a",
            "slash",
        ),
        (r#"{"id":"a","method":"GET","path":"/api/../x"}"#, "a", "segment"),
        (
            r#"{"id":"a","method":"GET","path":"/api/%2e%2e/x"}"#,
            "a",
            "segment",
        ),
        (r#"{"id":"a","method":"GET","path":"/api//x"}"#, "a", "segment"),
        (r#"{"id":"a","method":"GET","path":"/api@x"}"#, "a", "not allowed"),
        (
            r#"{"id":"a","method":"GET","path":"/api\r\nX: y"}"#,
            "a",
            "not allowed",
        ),
        (
            r#"{"id":"a","method":"GET","path":"/api","headers":{"a b":"c"}}"#,
            "a",
            "header",
        ),
        (
            r#"{"id":"a","method":"GET","path":"/api","headers":{"a":"c\r\nd: e"}}"#,
            "a",
            "header",
        ),
        (
            r#"{"id":"a","method":"GET","path":"/api","body":"***"}"#,
            "a",
            "base64",
        ),
        (
            r#"{"id":"a","id":"b","method":"GET","path":"/api"}"#,
            "",
            "not a frame",
        ),
    ] {
        let bad = refused(text);
        assert_eq!(bad.id, id, "{text}");
        assert!(
            bad.failure.message.contains(word),
            "{text}: {}",
            bad.failure.message
        );
        assert_eq!(bad.failure.code, StatusCode::BAD_REQUEST);
    }
    let long = format!(r#"{{"id":"{}","method":"GET","path":"/api"}}"#, "x".repeat(300));
    assert!(refused(&long).failure.message.contains("longer"));
}

#[test]
fn a_frame_shows_no_secret_when_printed() {
    let call = call(
        r#"{"id":"a","method":"GET","path":"/api","headers":{"Authorization":"Bearer canary"},"body":"Y2FuYXJ5"}"#,
    );
    assert!(!format!("{call:?}").contains("canary"));
}

#[test]
fn answers_read_as_the_specification_shows() {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.append("warning", HeaderValue::from_static("a"));
    headers.append("warning", HeaderValue::from_static("b"));
    let text = Outbound {
        id: "req-\"1",
        status: 200,
        headers: Some(&headers),
        body: b"hi",
        stream: true,
        stream_id: "s",
        ..Outbound::default()
    }
    .write();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "id": "req-\"1", "status_code": 200, "headers": {"Content-Type": "application/json", "Warning": "a, b"},
        "body": "aGk=", "error": "", "stream": true, "stream_id": "s", "chunk": false, "done": false,
    });
    assert_eq!(json, expected);
    let marked = Outbound {
        id: "a",
        gzip: true,
        ..Outbound::default()
    }
    .write();
    assert!(marked.contains(r#""encoding":"gzip""#));
}

#[test]
fn only_long_text_is_compressed() {
    let json = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let image = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("image/png"))]);
    assert!(compressible(&json, 1024) && !compressible(&json, 1023) && !compressible(&image, 9999));
    let mut back = Vec::new();
    GzDecoder::new(gzip(&[b'x'; 5000]).unwrap().as_slice())
        .read_to_end(&mut back)
        .unwrap();
    assert_eq!(back, [b'x'; 5000]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        read(&text).ok();
    }

    #[test]
    fn any_json_is_read_or_refused(
        id in ".{0,8}", method in "[A-Za-z]{0,7}", path in ".{0,30}", key in ".{0,6}", value in ".{0,6}", body in ".{0,9}"
    ) {
        let frame = serde_json::json!({
            "id": id, "method": method, "path": path, "headers": {key.clone(): value.clone()}, "query": {key: [value]}, "body": body,
        });
        match read(&frame.to_string()) {
            Ok(Inbound::Call(call)) => {
                prop_assert_eq!(&call.id, &id);
                prop_assert!(call.uri.path().starts_with('/'));
            }
            Ok(_) => {}
            Err(bad) => prop_assert!(bad.id == id || bad.id.is_empty()),
        }
    }

    #[test]
    fn a_body_survives_the_way_out(body in prop::collection::vec(any::<u8>(), 0..200), id in ".{1,8}") {
        let text = Outbound { id: &id, body: &body, ..Outbound::default() }.write();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(json["id"].as_str(), Some(id.as_str()));
        prop_assert_eq!(STANDARD.decode(json["body"].as_str().unwrap()).unwrap(), body);
    }
}
