//! How the server is reached: TLS, proxies, headers, fingerprints; ours beside the Go client.

use std::{fmt::Write as _, path::Path};

use proto::v1::{Header, TunnelSpec};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

use super::{GoClient, Outcome, Seen, tcp_comes_back};
use crate::world::{Chisel, Front, ProxyDouble, Target, World, condition, eventually, free_port, spec};

/// An authority and what it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key of somebody, PEM.
    fn sign(&self, names: &[&str], purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Writes a text and returns where.
fn written(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

type Change = Box<dyn Fn(&mut TunnelSpec)>;

/// One way to a server.
struct Way {
    name: &'static str,
    url: String,
    go_flags: Vec<String>,
    go: Outcome,
    /// Variables of both clients.
    env: Vec<(&'static str, String)>,
    change: Change,
    ours: Outcome,
    note: &'static str,
}

impl Way {
    /// Works with both.
    fn works(
        name: &'static str,
        url: &str,
        go_flags: &[&str],
        change: impl Fn(&mut TunnelSpec) + 'static,
    ) -> Self {
        Self {
            name,
            url: url.to_owned(),
            go_flags: go_flags.iter().map(|flag| (*flag).to_owned()).collect(),
            go: Outcome::Works,
            env: Vec::new(),
            change: Box::new(change),
            ours: Outcome::Works,
            note: "",
        }
    }

    fn go_says(self, text: &'static str) -> Self {
        Self {
            go: Outcome::Says(text),
            ..self
        }
    }

    fn ours_says(self, text: &'static str) -> Self {
        Self {
            ours: Outcome::Says(text),
            ..self
        }
    }

    fn env(self, name: &'static str, value: String) -> Self {
        Self {
            env: vec![(name, value)],
            ..self
        }
    }

    fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

/// Walks each way with both clients.
async fn walk(server: &Chisel, ways: Vec<Way>) -> usize {
    let target = Target::echo().await;
    let mut table = String::new();
    let count = ways.len();
    for way in ways {
        let port = free_port().await;
        let remotes = [format!("R:127.0.0.1:{port}:127.0.0.1:{}", target.port())];
        let go = GoClient::start_with(&way.url, &way.go_flags, &remotes, &way.env);
        let seen = match way.go {
            Outcome::Says(text) => go.says(text).await,
            Outcome::Works | Outcome::Bytes(_) => {
                let seen = eventually(way.name, || tcp_comes_back(port)).await;
                assert_eq!(seen, Seen::Works);
                Outcome::Works
            }
        };
        assert_eq!(seen, way.go, "{}: the Go client\n{}", way.name, go.log());
        drop(go);
        server.until_free(port).await;

        let world = World::start(&way.env).await;
        let mut wanted = TunnelSpec {
            remotes: remotes.to_vec(),
            ..spec(&way.url, &[])
        };
        (way.change)(&mut wanted);
        world.core.send(wanted);
        match way.ours {
            Outcome::Says(text) => {
                world
                    .until(text, |report| condition(report, "Tunnel").1.contains(text))
                    .await;
            }
            Outcome::Works | Outcome::Bytes(_) => {
                world.until_listening(1).await;
                eventually(way.name, || tcp_comes_back(port)).await;
            }
        }
        assert!(
            matches!((way.go, way.ours), (Outcome::Says(_), Outcome::Says(_)))
                || way.go == way.ours
                || !way.note.is_empty(),
            "{}: say why",
            way.name
        );
        world.supervisor.drain("the way was walked");
        writeln!(
            table,
            "{:45} Go {:?}, ours {:?} {}",
            way.name, way.go, way.ours, way.note
        )
        .unwrap();
    }
    println!("{table}");
    count
}

fn tls_flags(dir: &TempDir, authority: &Authority, clients: Option<&Authority>) -> Vec<String> {
    let (certificate, key) = authority.sign(
        &["localhost", ProxyDouble::NAME],
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    let mut flags = vec![
        "--tls-cert".to_owned(),
        written(dir.path(), "server.pem", &certificate),
        "--tls-key".to_owned(),
        written(dir.path(), "server.key", &key),
    ];
    if let Some(clients) = clients {
        flags.extend([
            "--tls-ca".to_owned(),
            written(dir.path(), "clients.pem", &clients.pem()),
        ]);
    }
    flags
}

#[tokio::test]
async fn tls_as_the_go_client_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let Some(chisel) = Chisel::start_with(&tls_flags(&dir, &authority, None)).await else {
        return;
    };
    let ca = written(dir.path(), "ca.pem", &authority.pem());
    let pem = authority.pem();
    let trusting = |spec: &mut TunnelSpec, pem: &str| spec.ca_pem = pem.to_owned().into();
    let (a, b, c, d) = (pem.clone(), pem.clone(), pem.clone(), pem);
    let url = format!("https://localhost:{}", chisel.address().port());
    let by_address = format!("https://127.0.0.1:{}", chisel.address().port());
    let fingerprint = chisel.fingerprint();
    let ways = vec![
        Way::works("CA of one's own", &url, &["--tls-ca", &ca], move |spec| {
            trusting(spec, &a)
        }),
        Way::works("unknown CA", &url, &[], |_| {})
            .go_says("certificate signed by unknown authority")
            .ours_says("TLS handshake with localhost failed"),
        Way::works(
            "another name than the certificate's",
            &by_address,
            &["--tls-ca", &ca],
            move |spec| trusting(spec, &b),
        )
        .go_says("cannot validate certificate for 127.0.0.1")
        .ours_says("TLS handshake with 127.0.0.1 failed"),
        Way::works(
            "server name for TLS",
            &by_address,
            &["--tls-ca", &ca, "--sni", ProxyDouble::NAME],
            move |spec| {
                trusting(spec, &c);
                spec.tls_server_name = ProxyDouble::NAME.to_owned();
            },
        ),
        Way::works(
            "hostname, which is the server name too",
            &by_address,
            &["--tls-ca", &ca, "--hostname", ProxyDouble::NAME],
            move |spec| {
                trusting(spec, &d);
                spec.hostname = ProxyDouble::NAME.to_owned();
            },
        ),
        Way::works("any certificate", &by_address, &["--tls-skip-verify"], |spec| {
            spec.tls_skip_verify_i_know_it_is_insecure = true;
        }),
        Way::works(
            "any certificate, pinned key",
            &by_address,
            &["--tls-skip-verify", "--fingerprint", &fingerprint],
            {
                let fingerprint = fingerprint.clone();
                move |spec| {
                    spec.tls_skip_verify_i_know_it_is_insecure = true;
                    spec.fingerprint.clone_from(&fingerprint);
                }
            },
        ),
    ];
    assert_eq!(walk(&chisel, ways).await, 7);
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_a_renewed_one_is_used_by_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let Some(chisel) = Chisel::start_with(&tls_flags(&dir, &authority, Some(&clients))).await else {
        return;
    };
    let ca = written(dir.path(), "ca.pem", &authority.pem());
    let (good, good_key) = clients.sign(&["agent"], ExtendedKeyUsagePurpose::ClientAuth);
    let cert = written(dir.path(), "client.pem", &good);
    let key = written(dir.path(), "client.key", &good_key);
    let url = format!("https://localhost:{}", chisel.address().port());
    let pem = authority.pem();
    let trusting = move |spec: &mut TunnelSpec| spec.ca_pem = pem.clone().into();
    let mut shown = Way::works(
        "client certificate",
        &url,
        &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key],
        trusting.clone(),
    );
    shown.env = vec![
        ("PIPEOPS_CLIENT_CERT_FILE", cert.clone()),
        ("PIPEOPS_CLIENT_KEY_FILE", key.clone()),
    ];
    let missing = Way::works(
        "client certificate is missing",
        &url,
        &["--tls-ca", &ca],
        trusting.clone(),
    )
    .go_says("certificate required")
    .ours_says("CertificateRequired");
    assert_eq!(walk(&chisel, vec![shown, missing]).await, 2);

    // The Go client reads its files once; ours at each connection.
    let (bad, bad_key) = others.sign(&["agent"], ExtendedKeyUsagePurpose::ClientAuth);
    written(dir.path(), "client.pem", &bad);
    written(dir.path(), "client.key", &bad_key);
    let target = Target::echo().await;
    let port = free_port().await;
    let world = World::start(&[
        ("PIPEOPS_CLIENT_CERT_FILE", cert),
        ("PIPEOPS_CLIENT_KEY_FILE", key),
    ])
    .await;
    let mut wanted = TunnelSpec {
        remotes: vec![format!("R:127.0.0.1:{port}:127.0.0.1:{}", target.port())],
        ..spec(&url, &[])
    };
    trusting(&mut wanted);
    world.core.send(wanted);
    world
        .until("the server to refuse the certificate", |report| {
            condition(report, "Tunnel").1.contains("alert")
        })
        .await;
    written(dir.path(), "client.pem", "half a file");
    world
        .until("the file to be named", |report| {
            condition(report, "Tunnel")
                .1
                .contains("the client certificate or its key cannot be used")
        })
        .await;
    written(dir.path(), "client.pem", &good);
    written(dir.path(), "client.key", &good_key);
    world.until_listening(1).await;
    eventually("bytes", || tcp_comes_back(port)).await;
}

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
