//! What each route demands, and the headers on every answer.

mod common;

use common::{TOKEN, fixture, request, sign_in, text};
use http::StatusCode;

const EVERY_PATH: [(&str, &str); 9] = [
    ("GET", "/dashboard"),
    ("GET", "/dashboard/assets/main.js"),
    ("GET", "/dashboard/session"),
    ("POST", "/dashboard/session"),
    ("DELETE", "/dashboard/session"),
    ("GET", "/dashboard/api/snapshot"),
    ("GET", "/dashboard/api/events"),
    ("POST", "/dashboard/api/actions/heartbeat"),
    ("POST", "/dashboard/api/actions/unknown"),
];

#[tokio::test]
async fn every_answer_carries_the_policy_and_says_nothing_to_caches() {
    let page = fixture();
    for (method, path) in EVERY_PATH {
        let response = page.send(request(method, path, &[])).await;
        let headers = response.headers();
        assert_eq!(
            headers["content-security-policy"],
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "{path}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert!(
            headers["cache-control"].to_str().unwrap().starts_with("no-"),
            "{path}"
        );
        assert!(!headers.contains_key("access-control-allow-origin"), "{path}");
        if path.contains("/api/") {
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(headers["cache-control"], "no-store", "{path}");
        }
    }
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_turned_away_on_every_path() {
    let page = fixture();
    for (method, path) in EVERY_PATH {
        let mut foreign = request(method, path, &[]);
        foreign
            .headers_mut()
            .insert("host", "evil.example".parse().unwrap());
        assert_eq!(
            page.send(foreign).await.status(),
            StatusCode::MISDIRECTED_REQUEST,
            "{path}"
        );
        let cross = request(method, path, &[("origin", "http://localhost:3000")]);
        assert_eq!(page.send(cross).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn the_page_and_its_files_need_no_credential() {
    let page = fixture();
    let index = page.send(request("GET", "/dashboard", &[])).await;
    assert_eq!(index.headers()["content-type"], "text/html; charset=utf-8");
    let html = text(index).await;
    let mut seen = 0;
    for path in html
        .split('"')
        .filter(|part| part.starts_with("dashboard/assets/"))
    {
        let file = page.send(request("GET", &format!("/{path}"), &[])).await;
        assert_eq!(file.status(), StatusCode::OK, "{path}");
        seen += 1;
    }
    assert!(seen >= 3, "the page names its style, script and icon");
    let missing = page
        .send(request("GET", "/dashboard/assets/index.html", &[]))
        .await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    let slash = page.send(request("GET", "/dashboard/", &[])).await;
    assert_eq!(slash.headers()["location"], "../dashboard");
}

#[tokio::test]
async fn a_session_opens_with_the_token_only_and_closes() {
    let page = fixture();
    for wrong in ["", "x", &TOKEN[1..]] {
        assert_eq!(
            page.send(sign_in(wrong)).await.status(),
            StatusCode::UNAUTHORIZED,
            "{wrong}"
        );
    }
    let response = page.send(sign_in(TOKEN)).await;
    let set = response.headers()["set-cookie"].to_str().unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=28800"] {
        assert!(set.contains(part), "{set}");
    }
    let cookie = set.split(';').next().unwrap().to_owned();
    let get = |path| request("GET", path, &[("cookie", &cookie)]);
    assert_eq!(
        text(page.send(get("/dashboard/session")).await).await,
        r#"{"signed_in":true}"#
    );
    assert_eq!(
        page.send(get("/dashboard/api/snapshot")).await.status(),
        StatusCode::OK
    );

    let without = request("DELETE", "/dashboard/session", &[("cookie", &cookie)]);
    assert_eq!(page.send(without).await.status(), StatusCode::FORBIDDEN);
    let with = request(
        "DELETE",
        "/dashboard/session",
        &[("cookie", &cookie), ("x-pipeops-csrf", "1")],
    );
    assert_eq!(page.send(with).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        page.send(get("/dashboard/api/snapshot")).await.status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        text(page.send(get("/dashboard/session")).await).await,
        r#"{"signed_in":false}"#
    );
}

#[tokio::test]
async fn a_form_of_another_kind_or_size_is_refused() {
    let page = fixture();
    let mut plain = sign_in(TOKEN);
    plain
        .headers_mut()
        .insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(
        page.send(plain).await.status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    assert_eq!(
        page.send(sign_in(&"x".repeat(5000))).await.status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test(start_paused = true)]
async fn guessing_is_answered_with_429_also_for_the_right_token_and_as_bearer() {
    let page = fixture();
    for _ in 0..10 {
        assert_eq!(
            page.send(sign_in("wrong")).await.status(),
            StatusCode::UNAUTHORIZED
        );
    }
    let held = page.send(sign_in(TOKEN)).await;
    assert_eq!(held.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(held.headers()["retry-after"], "4");
    let bearer = format!("Bearer {TOKEN}");
    let ask = || request("GET", "/dashboard/api/snapshot", &[("authorization", &bearer)]);
    assert_eq!(page.send(ask()).await.status(), StatusCode::UNAUTHORIZED);
    tokio::time::advance(std::time::Duration::from_secs(4)).await;
    assert_eq!(page.send(ask()).await.status(), StatusCode::OK);
    assert_eq!(page.send(sign_in(TOKEN)).await.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn actions_need_a_session_and_the_header_and_answer_in_one_line() {
    let page = fixture();
    let cookie = page.cookie().await;
    let act = |name: &str, headers: &[(&str, &str)]| {
        let mut all = vec![("cookie", cookie.as_str())];
        all.extend_from_slice(headers);
        request("POST", &format!("/dashboard/api/actions/{name}"), &all)
    };
    let csrf: &[(&str, &str)] = &[("x-pipeops-csrf", "1")];
    assert_eq!(
        page.send(act("heartbeat", &[])).await.status(),
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        page.send(act("heartbeat", &[("x-pipeops-csrf", "")]))
            .await
            .status(),
        StatusCode::FORBIDDEN
    );
    let done = page.send(act("heartbeat", csrf)).await;
    assert_eq!(text(done).await, r#"{"message":"accepted, Bearer ***"}"#);
    let failed = page.send(act("reregister", csrf)).await;
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(
        text(failed).await,
        r#"{"error":"the control plane does not answer"}"#
    );
    for absent in ["reconnect", "unknown"] {
        assert_eq!(page.send(act(absent, csrf)).await.status(), StatusCode::NOT_FOUND);
    }
    let shown = text(
        page.send(request("GET", "/dashboard/api/snapshot", &[("cookie", &cookie)]))
            .await,
    )
    .await;
    assert!(
        shown.contains(r#""actions":["heartbeat","reregister"]"#),
        "{shown}"
    );
}

#[tokio::test]
async fn other_routes_can_ask_about_the_same_cookie() {
    let page = fixture();
    let cookie = page.cookie().await;
    assert!(
        page.sessions
            .check(request("GET", "/", &[("cookie", &cookie)]).headers())
    );
    assert!(!page.sessions.check(request("GET", "/", &[]).headers()));
}
