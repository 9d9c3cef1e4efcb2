//! One user's trouble is nobody else's, and what the process holds is bounded.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::world::*;

const MIB: u64 = 1024 * 1024;
/// The transport's budget for what stalled consumers leave unread, all channels together.
const BUDGET: u64 = 64 * MIB;
/// Program, tables and stacks, beside the budget.
const BASE: u64 = 32 * MIB;

/// The sidecar as a process, so that its memory is its own, with two forwards.
async fn two_forwards(first: &Target, second: &Target) -> Option<(Chisel, World, u16, u16)> {
    let chisel = Chisel::start().await?;
    let env = [
        ("PIPEOPS_TARGET_K8S_PROXY", first.address()),
        ("PIPEOPS_TARGET_AGENT_HTTP", second.address()),
    ];
    let world = World::spawn(&[], &env).await;
    let (one, two) = (free_port().await, free_port().await);
    world.core.send(spec(
        &chisel.url(),
        &[("one", one, "k8s-proxy"), ("two", two, "agent-http")],
    ));
    world.until_listening(2).await;
    Some((chisel, world, one, two))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_stalled_services_beside_a_busy_one_cost_it_nothing_and_stay_within_the_budget() {
    let (stalled, busy) = (Target::stalled().await, Target::echo().await);
    let Some((chisel, world, stuck, free)) = two_forwards(&stalled, &busy).await else {
        return;
    };
    let idle = world.resident();
    let flow = Flow::start(([127, 0, 0, 1], free).into()).await;
    let mut pushing = JoinSet::new();
    for _ in 0..50 {
        pushing.spawn(async move {
            let (mut tcp, chunk, mut pushed) = (user(stuck).await, vec![9; 256 * 1024], 0_u64);
            while let Ok(written) = timeout(Duration::from_secs(3), tcp.write_all(&chunk)).await {
                written.unwrap();
                pushed += 256 * 1024;
            }
            (tcp, pushed)
        });
    }
    let pushed = pushing.join_all().await;
    let total: u64 = pushed.iter().map(|(_, bytes)| bytes).sum();
    let full = Instant::now();
    flow.good_after(full).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (resident, seen) = (world.resident(), flow.seen());
    println!(
        "50 stalled, {} MiB pushed: resident {:.1} MiB (idle {:.1}); the busy user beside them: {} answers, longest \
         gap {:?}",
        total / MIB,
        resident as f64 / MIB as f64,
        idle as f64 / MIB as f64,
        seen.answered,
        seen.gap
    );
    assert!(resident < BASE + BUDGET, "{resident}");
    assert_eq!((seen.ended, seen.wrong, chisel.sessions()), (0, 0, 1));
    let report = world.report().await;
    assert_eq!(row(&report, "one").connections_open, 50);
    let metrics = world.get("/metrics").await.1;
    assert!(
        metrics.contains("pipeops_tunnel_stall_seconds_count{direction=\"in\",forward=\"one\"}"),
        "{metrics}"
    );
}

/// A user who reads slowly: what the target sends waits at the target and not with us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_cost_their_own_connection_only() {
    let (talker, busy) = (
        Target::talker(vec![5; 32 * 1024 * 1024]).await,
        Target::echo().await,
    );
    let Some((chisel, world, slow, free)) = two_forwards(&talker, &busy).await else {
        return;
    };
    let flow = Flow::start(([127, 0, 0, 1], free).into()).await;
    let mut readers = Vec::new();
    for _ in 0..8 {
        let mut tcp = user(slow).await;
        let mut some = [0; 1000];
        tcp.read_exact(&mut some).await.unwrap();
        readers.push(tcp);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (resident, seen) = (world.resident(), flow.seen());
    println!(
        "8 slow readers of 32 MiB each: resident {:.1} MiB; beside them: {} answers, longest gap {:?}",
        resident as f64 / MIB as f64,
        seen.answered,
        seen.gap
    );
    assert!(resident < BASE, "{resident}");
    assert_eq!((seen.ended, seen.wrong, chisel.sessions()), (0, 0, 1));
    // They get all of it when they want it.
    let mut rest = Vec::new();
    let mut reader = readers.pop().unwrap();
    timeout(PATIENCE, reader.read_to_end(&mut rest))
        .await
        .expect("the rest")
        .unwrap();
    assert_eq!(rest.len() + 1000, 32 * 1024 * 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_come_and_go_beside_a_thousand_idle_ones() {
    let target = Target::echo().await;
    let Some((chisel, mut world, port, _)) = two_forwards(&target, &target).await else {
        return;
    };
    let before = world.resident();
    let mut idle = Vec::new();
    for _ in 0..20 {
        let batch = (0..50).map(|_| async {
            let mut tcp = user(port).await;
            echo(&mut tcp, "i").await;
            tcp
        });
        idle.extend(futures_util::future::join_all(batch).await);
    }
    let with_idle = world.resident();
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..20 {
        workers.spawn(async move {
            for _ in 0..500 {
                echo(&mut user(port).await, "hello and goodbye").await;
            }
        });
    }
    workers.join_all().await;
    let took = begin.elapsed();
    let open = world
        .until("the busy ones to be gone", |report| {
            row(report, "one").connections_open == 1000
        })
        .await;
    let after = world.resident();
    println!(
        "1000 idle: {:.1} KiB each; 10000 opened and closed beside them in {took:?}; resident {:.1} -> {:.1} -> {:.1} MiB",
        with_idle.saturating_sub(before) as f64 / 1024.0 / 1000.0,
        before as f64 / MIB as f64,
        with_idle as f64 / MIB as f64,
        after as f64 / MIB as f64
    );
    assert_eq!(row(&open, "one").connections_total, 11_000);
    assert!(after < BASE, "{after}");
    for tcp in idle.iter_mut().step_by(50) {
        echo(tcp, "still here").await;
    }
    assert_eq!(chisel.sessions(), 1);

    // SIGTERM: no new ones, the open ones go on, and when they end the process does.
    let mut child = world.child.take().unwrap();
    let pid = child.id().unwrap().to_string();
    let killed = tokio::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .await;
    assert!(killed.unwrap().success());
    world
        .core
        .reported(|report| condition(report, "Tunnel").1.contains("shutting down"))
        .await;
    assert!(
        until_closed(&mut user(port).await).await.is_empty(),
        "no new ones"
    );
    for tcp in idle.iter_mut().step_by(100) {
        echo(tcp, "still here while it drains").await;
    }
    drop(idle);
    let status = timeout(PATIENCE, child.wait()).await.expect("the end").unwrap();
    assert_eq!(status.code(), Some(0), "{}", world.log());
    eventually("the goodbye at the server", || async {
        chisel.log().contains("SSH disconnected").then_some(())
    })
    .await;
}
