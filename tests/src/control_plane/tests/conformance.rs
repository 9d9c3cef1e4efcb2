//! The check of the window contract, against ourselves and against windows that are too small.

use super::*;
use crate::control_plane::conformance::{Target, Windows, windows};

async fn check(stream_window: u32, connection_window: u32, stalled: usize) -> Result<Windows> {
    let control_plane = start(|config| {
        config.link.stream_window = stream_window;
        config.link.connection_window = connection_window;
    })
    .await;
    let (id, url, token) = registered(&control_plane).await;
    let target = Target {
        dial: url.parse()?,
        dial_token: token.as_str().into(),
        front: control_plane.front_url(&id).parse()?,
        front_token: control_plane.front_token().into(),
        ca: Some(control_plane.ca_pem().as_bytes().to_vec()),
        stalled,
    };
    windows(&target).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_keeps_the_window_contract_with_100_stalled_readers() {
    let limits = LinkLimits::default();
    let seen = check(limits.stream_window, limits.connection_window, 100)
        .await
        .unwrap();
    println!(
        "100 stalled readers: p99 {:?} before, {:?} beside, {} bytes held",
        seen.before, seen.beside, seen.held
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_that_are_too_small_fail_the_check() {
    // hyper's defaults as a client, and HTTP/2's own.
    for (stream, connection, stalled) in [(2 << 20, 5 << 20, 10), (65_535, 65_535, 3)] {
        let broken = check(stream, connection, stalled).await;
        let error = broken.expect_err("a control plane that hangs");
        println!("{stream}/{connection}: {error:#}");
        assert!(format!("{error:#}").contains("connection window"), "{error:#}");
    }
}
