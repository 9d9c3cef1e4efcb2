//! What the server is told, and how it is known again.

use super::*;

#[tokio::test]
async fn headers_hostname_path_and_credentials_as_the_go_client_sends_them() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let front = Front::start(chisel.address()).await;
    let url = format!("{}/sub/path?q=1", front.url());
    let header = |name: &str, value: &str| Header {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let extra = [header("X-Tunnel", "one two"), header("Host", "by-header.test")];
    let ways = vec![
        Way::works(
            "extra headers, Host among them",
            &url,
            &[
                "--header",
                "X-Tunnel: one two",
                "--header",
                "Host: by-header.test",
            ],
            {
                let extra = extra.to_vec();
                move |spec| spec.headers.clone_from(&extra)
            },
        ),
        Way::works(
            "hostname",
            &url,
            &["--header", "X-Tunnel: one two", "--hostname", "by-name.test"],
            move |spec| {
                spec.headers = extra.to_vec();
                spec.hostname = "by-name.test".to_owned();
            },
        ),
        Way::works(
            "a header of the handshake itself",
            &url,
            &["--header", "Sec-WebSocket-Key: x"],
            move |spec| {
                spec.headers = vec![header("Sec-WebSocket-Key", "x")];
            },
        )
        .go_says("duplicate header not allowed")
        .ours_says("Sec-WebSocket-Key"),
    ];
    assert_eq!(walk(&chisel, ways).await, 3);
    // What does not depend on the client's own name and random numbers.
    let said = |head: &String| {
        let mut lines: Vec<String> = head
            .lines()
            .filter(|line| !line.starts_with("User-Agent") && !line.starts_with("Sec-WebSocket-Key"))
            .map(|line| line.to_ascii_lowercase())
            .collect();
        lines.sort();
        lines
    };
    let heads: Vec<_> = front.heads().iter().map(said).collect();
    for host in ["by-header.test", "by-name.test"] {
        let with: Vec<_> = heads
            .iter()
            .filter(|head| head.contains(&format!("host: {host}")))
            .collect();
        assert!(with.len() >= 2, "both clients: {heads:#?}");
        assert!(
            with.iter().all(|head| head == &with[0]),
            "the same from both: {with:#?}"
        );
        assert!(with[0].contains(&"x-tunnel: one two".to_owned()));
        assert!(
            with[0].contains(&"get /sub/path?q=1 http/1.1".to_owned()),
            "{with:#?}"
        );
    }
}

#[tokio::test]
async fn fingerprints_in_both_forms() {
    let Some(chisel) = Chisel::start().await else {
        return;
    };
    let url = chisel.url().replace("ws://", "http://");
    let sha256 = chisel.fingerprint();
    let wrong = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    // Nobody prints the legacy form any more; the client that is given a wrong one says what it got.
    let target = Target::echo().await;
    let port = free_port().await;
    let remotes = [format!("R:127.0.0.1:{port}:127.0.0.1:{}", target.port())];
    let asking = GoClient::start(
        &url,
        &["--fingerprint".to_owned(), "00:00:00:00".to_owned()],
        &remotes,
    );
    asking.says("Invalid fingerprint (").await;
    let log = asking.log();
    let md5 = log
        .split("Invalid fingerprint (")
        .nth(1)
        .unwrap()
        .split(')')
        .next()
        .unwrap()
        .to_owned();
    drop(asking);
    assert_eq!(md5.len(), 47, "{md5}");
    let prefix = md5[..17].to_owned();
    let pinned = |name, text: &str| {
        let text = text.to_owned();
        Way::works(name, &url, &["--fingerprint", &text.clone()], move |spec| {
            spec.fingerprint.clone_from(&text)
        })
    };
    let ways = vec![
        pinned("SHA-256", &sha256),
        pinned("MD5, whole", &md5),
        pinned("MD5, the beginning", &prefix),
        pinned("SHA-256 of another key", wrong)
            .go_says("Invalid fingerprint")
            .ours_says("is pinned: no credentials were sent"),
        pinned("MD5 of another key", "00:00:00:00")
            .go_says("Invalid fingerprint")
            .ours_says("is pinned: no credentials were sent"),
    ];
    assert_eq!(walk(&chisel, ways).await, 5);
}
