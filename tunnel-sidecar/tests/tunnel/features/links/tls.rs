//! Certificates of both sides.

use super::*;

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
