//! CONNECT and SOCKS5 proxies, by setting and by variable.

use super::*;

#[tokio::test]
async fn proxies_as_the_go_client_uses_them_and_from_the_variables() {
    const USER: &str = "proxy-user:p@ss:word";
    let (Some(chisel), proxy, open) = (
        Chisel::start().await,
        ProxyDouble::start(USER).await,
        ProxyDouble::start("").await,
    ) else {
        return;
    };
    let port = chisel.address().port();
    let (url, named) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://{}:{port}", ProxyDouble::NAME),
    );
    let with = |scheme: &str, user: &str| format!("{scheme}://{user}{}", proxy.address());
    let through = |name, url: &str, proxy: String| {
        Way::works(name, url, &["--proxy", &proxy.clone()], move |spec| {
            spec.proxy.clone_from(&proxy);
            // The name is nobody's here, so the link is not known to stay on this machine.
            spec.allow_insecure = true;
        })
    };
    let secret = "proxy-user:p%40ss:word@";
    let insecure = |spec: &mut TunnelSpec| spec.allow_insecure = true;
    let ways = vec![
        through("CONNECT with user and password", &url, with("http", secret)),
        through("CONNECT, the proxy knows the name", &named, with("http", secret)),
        through("CONNECT, wrong password", &url, with("http", "proxy-user:wrong@"))
            .go_says("Proxy Authentication Required")
            .ours_says("refused our user and password (407 Proxy Authentication Required)"),
        through("SOCKS5 with user and password", &url, with("socks", secret)),
        through(
            "SOCKS5, the proxy knows the name",
            &named,
            with("socks5h", secret),
        ),
        through(
            "SOCKS5, wrong password",
            &url,
            with("socks5h", "proxy-user:wrong@"),
        )
        .go_says("authentication failed")
        .ours_says("refused our user and password"),
        through("socks5://", &url, with("socks5", secret))
            .go_says("unsupported socks proxy type")
            .note("ours speaks it, and resolves names itself as the scheme says"),
        through("no user where one is wanted", &url, with("http", ""))
            .go_says("Proxy Authentication Required")
            .ours_says("refused our user and password"),
        Way::works("HTTP_PROXY", &named, &[], insecure)
            .env("HTTP_PROXY", format!("http://{}", open.address()))
            .go_says("lookup tunnel.test")
            .note("the Go client takes no proxy from its variables"),
        Way::works("http_proxy in lower case", &named, &[], insecure)
            .env("http_proxy", format!("http://{}", open.address()))
            .go_says("lookup tunnel.test")
            .note("the Go client takes no proxy from its variables"),
        Way::works("ALL_PROXY with SOCKS5", &named, &[], insecure)
            .env("ALL_PROXY", format!("socks5h://{}", open.address()))
            .go_says("lookup tunnel.test")
            .note("the Go client takes no proxy from its variables"),
        Way::works(
            "a proxy of another scheme",
            &url,
            &["--proxy", "ftp://127.0.0.1:1"],
            |spec| {
                spec.proxy = "ftp://127.0.0.1:1".to_owned();
            },
        )
        .go_says("unknown scheme")
        .ours_says("the proxy's scheme \"ftp\" is not spoken"),
    ];
    assert_eq!(walk(&chisel, ways).await, 12);
    let asked = proxy.asked();
    assert!(
        asked.contains(&format!("{}:{port}", ProxyDouble::NAME)),
        "{asked:?}"
    );
    assert!(!open.asked().is_empty());
}

#[tokio::test]
async fn tls_runs_inside_the_proxys_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let Some(chisel) = Chisel::start_with(&tls_flags(&dir, &authority, None)).await else {
        return;
    };
    let proxy = ProxyDouble::start("").await;
    let ca = written(dir.path(), "ca.pem", &authority.pem());
    let url = format!("https://{}:{}", ProxyDouble::NAME, chisel.address().port());
    let through = |name, scheme: &str| {
        let (proxy, pem) = (format!("{scheme}://{}", proxy.address()), authority.pem());
        Way::works(
            name,
            &url,
            &["--tls-ca", &ca, "--proxy", &proxy.clone()],
            move |spec| {
                spec.proxy.clone_from(&proxy);
                spec.ca_pem = pem.clone().into();
            },
        )
    };
    let pem = authority.pem();
    let by_variable = Way::works("TLS, HTTPS_PROXY", &url, &["--tls-ca", &ca], move |spec| {
        spec.ca_pem = pem.clone().into();
    })
    .env("HTTPS_PROXY", format!("http://{}", proxy.address()))
    .go_says("lookup tunnel.test")
    .note("the Go client takes no proxy from its variables");
    let ways = vec![
        through("TLS inside CONNECT", "http"),
        through("TLS inside SOCKS5", "socks5h"),
        by_variable,
    ];
    assert_eq!(walk(&chisel, ways).await, 3);
    assert!(proxy.asked().len() >= 5, "{:?}", proxy.asked());
}
