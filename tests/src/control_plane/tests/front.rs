use super::*;
use crate::wait::eventually;

/// A caller of the front, with its token.
struct Caller {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Caller {
    fn of(control_plane: &ControlPlane, cluster: &str) -> Self {
        let (client, url) = (trusting(control_plane), control_plane.front_url(cluster));
        Self {
            client,
            url,
            token: control_plane.front_token().to_owned(),
        }
    }

    fn call(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.url);
        self.client
            .request(method.parse().unwrap(), url)
            .bearer_auth(&self.token)
    }

    async fn watch(&self, path: &str) -> Events {
        let response = self.call("GET", path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        Events {
            response,
            rest: Vec::new(),
        }
    }
}

struct Events {
    response: reqwest::Response,
    rest: Vec<u8>,
}

impl Events {
    /// `type name` of the next event; `Ok(None)` at the end.
    async fn next(&mut self) -> reqwest::Result<Option<String>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let object = &event["object"];
                let what = if event["type"] == "ERROR" {
                    &object["code"]
                } else {
                    &object["metadata"]["name"]
                };
                return Ok(Some(format!("{} {what}", event["type"]).replace('"', "")));
            }
            match tokio::time::timeout(patience(), self.response.chunk())
                .await
                .expect("an event in time")?
            {
                Some(piece) => self.rest.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }

    async fn one(&mut self) -> String {
        self.next().await.unwrap().expect("an event")
    }
}

#[tokio::test]
async fn an_ordinary_request_becomes_a_frame_and_back() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let patch = caller
        .call(
            "PATCH",
            "/api/v1/namespaces/n/configmaps/c%20d?fieldManager=me&dryRun=All",
        )
        .header("content-type", "application/merge-patch+json")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .body("{}");
    let script = async {
        let request = peer.next().await.unwrap();
        peer.answer(&request, 201, r#"{"kind":"ConfigMap"}"#).await;
        request
    };
    let (response, frame) = tokio::join!(patch.send(), script);
    let response = response.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (201, http::Version::HTTP_2)
    );
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        response.json::<Value>().await.unwrap(),
        json!({ "kind": "ConfigMap" })
    );
    assert_eq!(
        (&frame["method"], &frame["stream"], &frame["body"]),
        (&json!("PATCH"), &json!(false), &json!("e30="))
    );
    assert_eq!(frame["path"], "/api/v1/namespaces/n/configmaps/c%20d");
    assert_eq!(
        frame["query"],
        json!({ "fieldManager": ["me"], "dryRun": ["All"] })
    );
    assert_eq!(frame["headers"]["content-type"], "application/merge-patch+json");
    let trace = frame["headers"]["traceparent"].as_str().unwrap();
    assert!(
        trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
        "{trace}"
    );
    assert_eq!(
        frame["headers"]["authorization"],
        Value::Null,
        "the front's token stays here"
    );
}

#[tokio::test]
async fn refusals_are_status_objects() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let ask = async |request: reqwest::RequestBuilder| {
        let response = request.send().await.unwrap();
        let (status, retry) = (
            response.status().as_u16(),
            response.headers().contains_key("retry-after"),
        );
        let body: Value = response.json().await.unwrap();
        assert_eq!(
            (&body["kind"], &body["code"]),
            (&json!("Status"), &json!(status)),
            "{body}"
        );
        (status, retry)
    };
    assert_eq!(
        ask(caller.call("GET", "/api/v1/pods")).await,
        (503, true),
        "no link"
    );
    assert_eq!(
        ask(caller.call("GET", "/api/v1/pods").bearer_auth("x")).await,
        (503, true),
        "the first token counts"
    );
    let stranger = Caller {
        token: TOKEN.to_owned(),
        ..Caller::of(&control_plane, &id)
    };
    assert_eq!(
        ask(stranger.call("GET", "/api/v1/pods")).await,
        (401, false),
        "an agent is no person"
    );
    let nowhere = Caller::of(&control_plane, "nowhere");
    assert_eq!(ask(nowhere.call("GET", "/api/v1/pods")).await, (404, false));
    let large = caller
        .call("POST", "/api/v1/pods")
        .body(vec![0; 8 * 1024 * 1024 + 1]);
    assert_eq!(ask(large).await, (413, false));
}

#[tokio::test]
async fn a_lost_link_lets_reads_be_repeated_and_writes_not() {
    for (method, repeat) in [("GET", true), ("POST", false)] {
        let control_plane = plain().await;
        let (id, mut peer, _) = Peer::linked(&control_plane).await;
        let caller = Caller::of(&control_plane, &id);
        let script = async {
            peer.next().await.unwrap();
            drop(peer);
        };
        let (response, ()) = tokio::join!(caller.call(method, "/api/v1/pods").send(), script);
        let response = response.unwrap();
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers().contains_key("retry-after")
            ),
            (502, repeat)
        );
    }
}

#[tokio::test]
async fn a_watch_passes_events_and_hides_bookmarks_that_nobody_asked_for() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        request
    };
    let (mut events, request) =
        tokio::join!(caller.watch("/api/v1/pods?watch=true&resourceVersion=1"), script);
    assert_eq!(
        (&request["stream"], &request["query"]["allowWatchBookmarks"]),
        (&json!(true), &json!(["true"]))
    );
    let (first, second) = (event("ADDED", "a", 2), event("MODIFIED", "a", 4));
    peer.chunk(&request, &first[..7]).await;
    peer.chunk(&request, &format!("{}{}", &first[7..], event("BOOKMARK", "", 3)))
        .await;
    peer.chunk(&request, &second).await;
    assert_eq!(
        (events.one().await, events.one().await),
        ("ADDED a".to_owned(), "MODIFIED a".to_owned())
    );
    peer.done(&request, "").await;
    assert_eq!(events.next().await.unwrap(), None, "a clean end is passed on");
}

#[tokio::test]
async fn a_watch_lives_across_a_broken_link_and_goes_on_from_its_last_whole_event() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let (_, url, token) = registered(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        peer.chunk(&request, &event("ADDED", "a", 5)).await;
        peer.chunk(&request, &event("ADDED", "half", 6)[..10]).await;
    };
    let path = "/api/v1/pods?watch=true&resourceVersion=1&resourceVersionMatch=NotOlderThan";
    let (mut events, ()) = tokio::join!(caller.watch(path), script);
    assert_eq!(events.one().await, "ADDED a");
    drop(peer);
    eventually("the link to go", async || {
        control_plane.links(&id).is_empty().then_some(())
    })
    .await;
    let mut peer = Peer::dial(&url, &token).await.unwrap();
    let request = peer.next().await.unwrap();
    assert_eq!(request["query"]["resourceVersion"], json!(["5"]));
    assert_eq!(request["query"]["resourceVersionMatch"], Value::Null);
    peer.begin(&request).await;
    peer.chunk(&request, &event("ADDED", "half", 6)).await;
    assert_eq!(events.one().await, "ADDED half");
    // A stream that fails alone is opened again on the same link.
    peer.done(&request, "the upstream is gone").await;
    let request = peer.next().await.unwrap();
    assert_eq!(request["query"]["resourceVersion"], json!(["6"]));
    peer.send(json!({ "id": request["id"], "status_code": 503, "done": true, "error": "not yet" }))
        .await;
    let request = peer.next().await.unwrap();
    peer.begin(&request).await;
    peer.chunk(&request, "{\"type\":\"ERROR\",\"object\":{\"code\":410}}\n")
        .await;
    assert_eq!(events.one().await, "ERROR 410");
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_watch_that_cannot_go_on_ends_with_a_410() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        peer.chunk(&request, &event("ADDED", "a", 5)).await;
    };
    let (mut events, ()) = tokio::join!(caller.watch("/api/v1/pods?watch=true"), script);
    assert_eq!(events.one().await, "ADDED a");
    drop(peer);
    assert_eq!(events.one().await, "ERROR 410");
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_version_that_is_too_old_at_the_second_opening_is_a_410_in_the_stream() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        peer.done(&request, "broken").await;
        let request = peer.next().await.unwrap();
        peer.answer(&request, 410, r#"{"kind":"Status","code":410}"#)
            .await;
    };
    let (mut events, ()) = tokio::join!(caller.watch("/api/v1/pods?watch=true&resourceVersion=1"), script);
    assert_eq!(events.one().await, "ERROR 410");
}

#[tokio::test]
async fn a_watch_ends_by_the_callers_own_timeout_even_if_the_proxy_goes_on() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
    };
    let path = "/api/v1/pods?watch=true&resourceVersion=1&timeoutSeconds=1";
    let (mut events, ()) = tokio::join!(caller.watch(path), script);
    assert_eq!(events.next().await.unwrap(), None);
    assert_eq!(peer.next().await.unwrap()["method"], "CANCEL");
}

#[tokio::test]
async fn a_caller_that_goes_cancels_its_watch() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
    };
    let (events, ()) = tokio::join!(caller.watch("/api/v1/pods?watch=true&resourceVersion=1"), script);
    drop(events);
    assert_eq!(peer.next().await.unwrap()["method"], "CANCEL");
}

#[tokio::test]
async fn a_refused_watch_is_an_ordinary_error() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let script = async {
        let request = peer.next().await.unwrap();
        peer.answer(&request, 403, r#"{"kind":"Status","code":403}"#)
            .await;
    };
    let watch = caller.call("GET", "/api/v1/secrets?watch=true");
    let (response, ()) = tokio::join!(watch.send(), script);
    let response = response.unwrap();
    assert_eq!(response.status().as_u16(), 403);
    assert_eq!(response.json::<Value>().await.unwrap()["code"], 403);
}

#[tokio::test]
async fn followed_logs_stream_and_a_cut_is_no_end() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let follow = caller.call("GET", "/api/v1/namespaces/n/pods/p/log?follow=true");
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        peer.chunk(&request, "line\n").await;
    };
    let (response, ()) = tokio::join!(follow.send(), script);
    let mut response = response.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "line\n");
    drop(peer);
    assert!(response.chunk().await.is_err(), "nobody may take it for whole");
}

#[tokio::test]
async fn the_status_beside_an_error_is_no_line_of_a_log() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let log = caller.call("GET", "/api/v1/namespaces/n/pods/p/log");
    let script = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        let status = base64(r#"{"kind":"Status"}"#);
        peer.send(
            json!({ "id": request["id"], "stream": true, "done": true, "error": "gone", "body": status }),
        )
        .await;
    };
    let (response, ()) = tokio::join!(log.send(), script);
    assert!(response.unwrap().chunk().await.is_err());
}

#[tokio::test]
async fn a_list_that_does_not_fit_into_a_frame_comes_in_pieces() {
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let list = caller.call("GET", "/api/v1/configmaps");
    let script = async {
        let request = peer.next().await.unwrap();
        assert_eq!(request["stream"], false);
        peer.answer(&request, 413, r#"{"kind":"Status","code":413}"#)
            .await;
        let request = peer.next().await.unwrap();
        assert_eq!(request["stream"], true);
        peer.begin(&request).await;
        peer.chunk(&request, "{").await;
        peer.chunk(&request, "}").await;
        peer.done(&request, "").await;
    };
    let (response, ()) = tokio::join!(list.send(), script);
    assert_eq!(response.unwrap().text().await.unwrap(), "{}");
}

#[tokio::test]
async fn many_watches_share_one_link() {
    const WATCHES: usize = 50;
    let control_plane = plain().await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let opening = (0..WATCHES).map(|_| caller.watch("/api/v1/pods?watch=true&resourceVersion=1"));
    let script = async {
        let mut requests = Vec::new();
        for _ in 0..WATCHES {
            let request = peer.next().await.unwrap();
            peer.begin(&request).await;
            requests.push(request);
        }
        requests
    };
    let (mut watches, requests) = tokio::join!(futures_util::future::join_all(opening), script);
    for request in &requests {
        peer.chunk(request, &event("ADDED", request["id"].as_str().unwrap(), 2))
            .await;
    }
    let mut seen = std::collections::BTreeSet::new();
    for watch in &mut watches {
        seen.insert(watch.one().await);
    }
    assert_eq!(seen.len(), WATCHES, "each has its own");
}

#[tokio::test]
async fn the_front_answers_http_1_too_and_has_no_upgrades() {
    let control_plane = plain().await;
    let (id, _peer, _) = Peer::linked(&control_plane).await;
    let mut caller = Caller::of(&control_plane, &id);
    let ca = reqwest::Certificate::from_pem(control_plane.ca_pem().as_bytes()).unwrap();
    caller.client = reqwest::Client::builder()
        .tls_certs_only([ca])
        .http1_only()
        .build()
        .unwrap();
    let exec = caller
        .call("POST", "/api/v1/namespaces/n/pods/p/exec")
        .header("upgrade", "SPDY/3.1");
    let response = exec.header("connection", "upgrade").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (501, http::Version::HTTP_11)
    );
}

#[tokio::test]
async fn a_kubeconfig_names_the_front_its_authority_and_its_token() {
    let control_plane = plain().await;
    let (id, ..) = registered(&control_plane).await;
    let config: Value = serde_saphyr::from_str(&control_plane.kubeconfig(&id)).unwrap();
    assert_eq!(
        config["clusters"][0]["cluster"]["server"],
        control_plane.front_url(&id)
    );
    assert_eq!(config["users"][0]["user"]["token"], control_plane.front_token());
    let ca = config["clusters"][0]["cluster"]["certificate-authority-data"]
        .as_str()
        .unwrap();
    assert_eq!(ca, base64(control_plane.ca_pem()));
}

#[tokio::test]
async fn a_caller_that_reads_slowly_loses_no_event() {
    let control_plane = start(|config| config.link.queue_bytes = 256 * 1024).await;
    let (id, mut peer, _) = Peer::linked(&control_plane).await;
    let caller = Caller::of(&control_plane, &id);
    let begin = async {
        let request = peer.next().await.unwrap();
        peer.begin(&request).await;
        request
    };
    let path = "/api/v1/pods?watch=true&resourceVersion=1";
    let (mut events, mut request) = tokio::join!(caller.watch(path), begin);
    // Nobody reads: buffers of the connection fill first, then the queue of the stream, and then it is ended.
    let padding = "x".repeat(64 * 1024);
    let mut sent = 1;
    loop {
        sent += 1;
        peer.chunk(&request, &event("MODIFIED", &format!("{sent}-{padding}"), sent))
            .await;
        if let Ok(frame) = tokio::time::timeout(Duration::from_millis(1), peer.next()).await {
            assert_eq!(frame.unwrap()["method"], "CANCEL");
            peer.done(&request, "").await;
            break;
        }
        assert!(sent < 1000, "the queue is bounded");
    }
    let read_all = async {
        for want in 2..=sent {
            let name = events.one().await;
            assert!(
                name.starts_with(&format!("MODIFIED {want}-")),
                "{want}: {}",
                &name[..20]
            );
        }
    };
    let go_on = async {
        request = peer.next().await.unwrap();
        let from: u32 = request["query"]["resourceVersion"][0]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(from < sent, "some events never left the queue");
        peer.begin(&request).await;
        for version in from + 1..=sent {
            peer.chunk(&request, &event("MODIFIED", &format!("{version}-again"), version))
                .await;
        }
    };
    tokio::join!(read_all, go_on);
}
