//! Listeners of our own: a user here, the server dials (`3000:db:5432`, `socks`, `53:dns:53/udp`).
//!
//! A listener lives as long as its forward is desired, whether a session is open or not: who connects while the link
//! is down waits a while, as with chisel. Each binds alone, so one taken port is that forward's trouble and is tried
//! again.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use runtime::{backoff::Backoff, supervise::TaskGuard};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    address::HostPort,
    carrier::Carrier,
    datagrams,
    metrics::{Counters, Opened},
    remotes::{Listen, Shape},
    spelling::Dials,
};

/// How long a user waits for a session, and for the server's answer; chisel's own client waits as long for a session.
const SESSION_WAIT: Duration = Duration::from_secs(35);
/// After an accept that failed, for example because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All listeners of ours; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Locals {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: Mutex<BTreeMap<String, Running>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Running {
    listen: Listen,
    /// Why it does not listen.
    problem: Arc<Mutex<Option<String>>>,
    /// Ends the listener when dropped.
    _task: TaskGuard,
}

impl Locals {
    /// Listens for these and for no others. One that stays is not touched.
    pub(crate) fn set(&self, carrier: &Carrier, wanted: Vec<(Listen, Counters)>) {
        let mut running = self.lock();
        running.retain(|_, known| wanted.iter().any(|(listen, _)| *listen == known.listen));
        for (listen, counters) in wanted {
            if running.contains_key(&listen.name) {
                continue;
            }
            let problem = Arc::new(Mutex::new(Some("is about to listen".to_owned())));
            let local = Local {
                carrier: carrier.clone(),
                locals: self.clone(),
                listen: listen.clone(),
                counters,
                problem: Arc::clone(&problem),
            };
            let task = carrier.supervisor().spawn("local listener", local.run());
            running.insert(
                listen.name.clone(),
                Running {
                    listen,
                    problem,
                    _task: task.abort_on_drop(),
                },
            );
        }
    }

    /// Why a forward does not listen here; `None` when it does, or is not one of ours.
    pub fn problem(&self, forward: &str) -> Option<String> {
        let running = self.lock();
        let found = running.get(forward)?;
        found
            .problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A counter that rises when a listener comes up or fails.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One listener.
struct Local {
    carrier: Carrier,
    locals: Locals,
    listen: Listen,
    counters: Counters,
    problem: Arc<Mutex<Option<String>>>,
}

impl Local {
    async fn run(self) {
        let supervisor = self.carrier.supervisor().clone();
        tokio::select! {
            () = self.serve() => {}
            // Who drains takes nobody new.
            () = supervisor.draining() => {}
        }
    }

    async fn serve(&self) {
        match &self.listen.shape {
            Shape::LocalUdp(_) => {
                let socket = self
                    .bound(|host, port| async move { UdpSocket::bind((host, port)).await })
                    .await;
                let datagrams = datagrams::Local {
                    carrier: self.carrier.clone(),
                    listen: self.listen.clone(),
                    counters: self.counters.clone(),
                };
                datagrams.run(&socket).await;
            }
            Shape::LocalTcp(_) => {
                let listener = self
                    .bound(|host, port| async move { TcpListener::bind((host, port)).await })
                    .await;
                self.accept(&listener).await;
            }
            // The server listens for these.
            Shape::Tcp | Shape::Udp | Shape::Socks => {}
        }
    }

    /// Binds, as soon as the address can be had.
    async fn bound<T, F: Future<Output = io::Result<T>>>(&self, bind: impl Fn(String, u16) -> F) -> T {
        let Listen { name, host, port, .. } = &self.listen;
        let bare = host.trim_matches(['[', ']']);
        let mut backoff = Backoff::new(self.carrier.timing().port_taken);
        loop {
            match bind(bare.to_owned(), *port).await {
                Ok(bound) => {
                    info!(forward = name, "listening here on {host}:{port}");
                    self.tell(None);
                    return bound;
                }
                Err(error) => {
                    let text = format!("cannot listen here on {host}:{port}: {error}");
                    if self.tell(Some(text.clone())) {
                        warn!(forward = name, "{text}");
                    }
                    sleep(backoff.next(None)).await;
                }
            }
        }
    }

    /// Notes what stands in the way; returns whether that is news.
    fn tell(&self, problem: Option<String>) -> bool {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *known != problem;
        *known = problem;
        drop(known);
        if news {
            self.locals.inner.changes.send_modify(|count| *count += 1);
        }
        news
    }

    async fn accept(&self, listener: &TcpListener) {
        loop {
            let tcp = match listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    warn!(forward = self.listen.name, "cannot take a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(room) = self.carrier.room() else {
                self.counters.opened(Opened::Limit);
                continue;
            };
            let connection = Connection {
                carrier: self.carrier.clone(),
                listen: self.listen.clone(),
                counters: self.counters.clone(),
            };
            self.carrier
                .supervisor()
                .spawn_apart("local connection", async move {
                    connection.carry(tcp).await;
                    drop(room);
                });
        }
    }
}

/// One user of ours.
struct Connection {
    carrier: Carrier,
    listen: Listen,
    counters: Counters,
}

impl Connection {
    async fn carry(&self, tcp: TcpStream) {
        tcp.set_nodelay(true).ok();
        let start = Instant::now();
        let name = &self.listen.name;
        let target = self.listen.channel_target();
        let waited = timeout(SESSION_WAIT, self.carrier.sessions().wait(name));
        let Ok((lane, session)) = waited.await else {
            self.counters.opened(Opened::TargetFailed);
            debug!(forward = name, "no session came up within {SESSION_WAIT:?}");
            return;
        };
        let Some(shown) = self.shown() else { return };
        let guard = self.carrier.connections().enter(lane, name, &shown);
        let opened = tokio::select! {
            opened = timeout(SESSION_WAIT, session.open(&target)) => opened,
            () = guard.connection().close.cancelled() => return,
        };
        match opened {
            Ok(Ok(channel)) => {
                self.counters.dial.observe(start.elapsed().as_secs_f64());
                self.counters.opened(Opened::Accepted);
                self.counters.open.inc();
                self.carrier
                    .copy_local(channel, tcp, &guard, &self.counters)
                    .await;
                self.counters.open.dec();
            }
            Ok(Err(error)) => {
                self.counters.opened(Opened::TargetFailed);
                debug!(forward = name, "the server opened nothing: {error}");
            }
            Err(_) => {
                self.counters.opened(Opened::TargetFailed);
                debug!(
                    forward = name,
                    "the server did not answer within {SESSION_WAIT:?}"
                );
            }
        }
    }

    /// What stands in the list of connections: what the server dials, or that it serves SOCKS.
    fn shown(&self) -> Option<HostPort> {
        shown(&self.listen)
    }
}

/// What a connection of a local forward leads to, as far as this side can tell.
pub(crate) fn shown(listen: &Listen) -> Option<HostPort> {
    match &listen.shape {
        Shape::LocalTcp(Dials::Address { host, port }) => HostPort::new(host, *port).ok(),
        Shape::LocalTcp(Dials::Socks) => HostPort::new("socks", listen.port).ok(),
        Shape::LocalUdp(_) | Shape::Tcp | Shape::Udp | Shape::Socks => None,
    }
}
