//! The tunnel beside its peers: tunnel-sidecar and the Go client as clients of one Go server, in interleaved rounds; rathole as what is
//! possible without SSH.
//!
//! Processor time is the run time of all threads as the scheduler counts it, so it means the same on a busy machine; throughput and
//! latency do not, and only their ratios within one run say something.

mod core;
mod delay;
mod ends;
mod instructions;
mod load;

use std::{path::Path, time::Duration};

use anyhow::Result;

use self::{
    delay::DelayLine,
    ends::{Client, Kind, Rathole, Server},
    load::{Service, Way},
};
use super::{
    figures::{Figures, Goal, quantile},
    sample::{cpu_ms, forget_peak, peak_mb, resident_mb},
};

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;
/// Half of the round trip of the figures with distance.
const HALF_WAY: Duration = Duration::from_millis(25);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of parts; none is all.
    pub parts: Vec<String>,
    /// Rounds of each interleaved measurement.
    pub rounds: usize,
    /// An eighth of everything.
    pub quick: bool,
}

const PARTS: [&str; 10] = [
    "idle",
    "bulk",
    "mixed",
    "latency",
    "connections",
    "distance",
    "sessions",
    "connect",
    "ceiling",
    "instructions",
];

/// Measures, prints and writes `target/bench/bench-tunnel.jsonl`.
///
/// # Errors
/// When a peer is missing or something could not be measured.
pub async fn run(options: Options) -> Result<()> {
    let wanted = super::chosen(&options.parts, &PARTS)?;
    let dir = tempfile::tempdir()?;
    let mut figures = Figures::default();
    let bench = Bench::start(dir.path(), &options).await?;
    if wanted("idle") {
        bench.idle(&mut figures).await?;
    }
    if wanted("bulk") {
        bench.bulk(&mut figures).await?;
    }
    if wanted("mixed") {
        bench.mixed(&mut figures).await?;
    }
    if wanted("latency") {
        bench.latency(&mut figures).await?;
    }
    if wanted("connections") {
        bench.connections(&mut figures).await?;
    }
    if wanted("distance") {
        bench.distance(&mut figures).await?;
    }
    if wanted("sessions") {
        bench.sessions(&mut figures).await?;
    }
    if wanted("connect") {
        bench.connect(&mut figures).await?;
    }
    if wanted("ceiling") {
        bench.ceiling(&mut figures).await?;
    }
    drop(bench);
    if wanted("instructions") {
        instructions::measure(&mut figures, dir.path()).await?;
    }
    figures.finish("bench-tunnel")
}

/// Everything that is measured against one another.
struct Bench<'a> {
    dir: &'a Path,
    rounds: usize,
    share: u64,
    service: Service,
    server: Server,
    ours: Client,
    go: Client,
}

/// What one side did in all rounds.
#[derive(Default)]
struct Runs {
    speed: Vec<f64>,
    cpu: Vec<f64>,
    server_cpu: Vec<f64>,
    other: Vec<f64>,
}

const GO: &str = "chisel 1.11.3";

impl<'a> Bench<'a> {
    async fn start(dir: &'a Path, options: &Options) -> Result<Self> {
        let service = Service::start().await?;
        let server = Server::start(dir).await?;
        let ours = Client::start(Kind::Ours, dir, server.address, service.address).await?;
        let go = Client::start(Kind::Go, dir, server.address, service.address).await?;
        Ok(Self {
            dir,
            rounds: options.rounds,
            share: if options.quick { 8 } else { 1 },
            service,
            server,
            ours,
            go,
        })
    }

    fn client(&self, kind: Kind) -> &Client {
        match kind {
            Kind::Ours => &self.ours,
            Kind::Go => &self.go,
        }
    }

    /// Ours first in even rounds, the peer first in odd ones.
    fn order(round: usize) -> [Kind; 2] {
        if round.is_multiple_of(2) {
            [Kind::Ours, Kind::Go]
        } else {
            [Kind::Go, Kind::Ours]
        }
    }

    /// Runs `work` for both in turn, after one round that warms up, and takes processor time around it, per `amount`.
    async fn interleaved(
        &self,
        amount: f64,
        work: impl AsyncFn(&Client) -> Result<(f64, f64)>,
    ) -> Result<[Runs; 2]> {
        let (mut ours, mut go) = (Runs::default(), Runs::default());
        let server = self.server.process.pid()?;
        for round in 0..=self.rounds {
            for kind in Self::order(round) {
                let client = self.client(kind);
                let pid = client.process.pid()?;
                let (before, server_before) = (cpu_ms(pid)?, cpu_ms(server)?);
                let (speed, other) = work(client).await?;
                let (cpu, server_cpu) = (cpu_ms(pid)? - before, cpu_ms(server)? - server_before);
                if round > 0 {
                    let runs = if kind == Kind::Ours { &mut ours } else { &mut go };
                    runs.speed.push(speed);
                    runs.other.push(other);
                    runs.cpu.push(cpu / 1000.0 / amount);
                    runs.server_cpu.push(server_cpu / 1000.0 / amount);
                }
            }
        }
        Ok([ours, go])
    }

    async fn idle(&self, figures: &mut Figures) -> Result<()> {
        let (mut ours, mut go) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (kind, list) in [(Kind::Ours, &mut ours), (Kind::Go, &mut go)] {
                let client =
                    Client::launch(kind, self.dir, self.server.address, self.service.address, &[]).await?;
                client.listening().await?;
                tokio::time::sleep(Duration::from_secs(2)).await;
                list.push(resident_mb(client.process.pid()?)?);
            }
        }
        figures.beside("idle memory", "MB", &ours, GO, &go);
        figures.goal(Goal::RatioAtMost(0.4));
        Ok(())
    }

    async fn bulk(&self, figures: &mut Figures) -> Result<()> {
        let size = (1 << 30) / self.share;
        for (way, name, speed, cpu) in [(Way::In, "inbound", 2.5, 0.15), (Way::Out, "outbound", 1.1, 0.45)] {
            let work = async |client: &Client| {
                let start = tokio::time::Instant::now();
                load::bulk(client.port, way, size).await?;
                Ok((size as f64 / MIB / start.elapsed().as_secs_f64(), 0.0))
            };
            let [ours, go] = self.interleaved(size as f64 / GIB, work).await?;
            figures.beside(
                format!("{name}, one stream: processor time"),
                "s/GiB",
                &ours.cpu,
                GO,
                &go.cpu,
            );
            figures.goal(Goal::RatioAtMost(cpu));
            figures.beside(
                format!("{name}, one stream: throughput"),
                "MiB/s",
                &ours.speed,
                GO,
                &go.speed,
            );
            figures.goal(Goal::RatioAtLeast(speed));
            figures.beside(
                format!("{name}, one stream: processor time of the server"),
                "s/GiB",
                &ours.server_cpu,
                GO,
                &go.server_cpu,
            );
            figures.goal(Goal::RatioAtMost(1.0));
        }
        Ok(())
    }

    async fn mixed(&self, figures: &mut Figures) -> Result<()> {
        let (streams, size) = (200, (2 << 20) / self.share);
        let total = streams as f64 * size as f64;
        let work = async |client: &Client| {
            let pid = client.process.pid()?;
            forget_peak(pid)?;
            let start = tokio::time::Instant::now();
            load::mixed(client.port, streams, size).await?;
            Ok((total / MIB / start.elapsed().as_secs_f64(), peak_mb(pid)?))
        };
        let [ours, go] = self.interleaved(total / GIB, work).await?;
        figures.beside(
            "200 streams both ways: processor time",
            "s/GiB",
            &ours.cpu,
            GO,
            &go.cpu,
        );
        figures.goal(Goal::RatioAtMost(0.29));
        figures.beside(
            "200 streams both ways: throughput",
            "MiB/s",
            &ours.speed,
            GO,
            &go.speed,
        );
        figures.beside(
            "200 streams both ways: peak memory",
            "MB",
            &ours.other,
            GO,
            &go.other,
        );
        figures.goal(Goal::RatioAtMost(0.06));
        Ok(())
    }

    async fn latency(&self, figures: &mut Figures) -> Result<()> {
        let count = usize::try_from(4000 / self.share)?;
        let work = async |client: &Client| {
            let mut times = load::round_trips(client.port, count).await?;
            Ok((quantile(&mut times, 0.5), quantile(&mut times, 0.99)))
        };
        let [ours, go] = self.interleaved(count as f64 / 1e6, work).await?;
        figures.beside("round trip of one byte: p50", "us", &ours.speed, GO, &go.speed);
        figures.goal(Goal::RatioAtMost(0.8));
        figures.beside("round trip of one byte: p99", "us", &ours.other, GO, &go.other);
        figures.goal(Goal::RatioAtMost(0.65));
        figures.beside(
            "round trip of one byte: processor time",
            "us",
            &ours.cpu,
            GO,
            &go.cpu,
        );
        Ok(())
    }

    async fn connections(&self, figures: &mut Figures) -> Result<()> {
        let count = usize::try_from(8000 / self.share)?;
        let work = async |client: &Client| Ok((load::connections(client.port, count, 8).await?, 0.0));
        let [ours, go] = self.interleaved(count as f64 / 1e6, work).await?;
        figures.beside("connections, 8 at a time", "1/s", &ours.speed, GO, &go.speed);
        figures.goal(Goal::RatioAtLeast(1.45));
        figures.beside("processor time of a connection", "us", &ours.cpu, GO, &go.cpu);
        figures.goal(Goal::RatioAtMost(0.32));
        Ok(())
    }

    async fn distance(&self, figures: &mut Figures) -> Result<()> {
        let line = DelayLine::start(self.server.address, HALF_WAY).await?;
        let ours = Client::start(Kind::Ours, self.dir, line.address, self.service.address).await?;
        let go = Client::start(Kind::Go, self.dir, line.address, self.service.address).await?;
        for (way, name, size) in [
            // Whole even when quick: a stream has to last for its window to matter.
            (Way::In, "inbound", 512_u64 << 20),
            (Way::Out, "outbound", (128 << 20) / self.share),
        ] {
            let (mut our_speed, mut go_speed) = (Vec::new(), Vec::new());
            for round in 0..self.rounds {
                for kind in Self::order(round) {
                    let (client, list) = match kind {
                        Kind::Ours => (&ours, &mut our_speed),
                        Kind::Go => (&go, &mut go_speed),
                    };
                    let start = tokio::time::Instant::now();
                    load::bulk(client.port, way, size).await?;
                    list.push(size as f64 / MIB / start.elapsed().as_secs_f64());
                }
            }
            let name = format!("{name}, one stream at 50 ms: throughput");
            match way {
                Way::In => {
                    figures.beside(name, "MiB/s", &our_speed, GO, &go_speed);
                    figures.goal(Goal::RatioAtLeast(6.0));
                }
                Way::Out => figures.beside(name, "MiB/s", &our_speed, GO, &go_speed),
            }
        }
        Ok(())
    }

    /// The server grants each channel 2 MiB, so a stream to it takes a round trip for so much. What several forwards move together over
    /// sessions of their own, beside what one moves.
    async fn sessions(&self, figures: &mut Figures) -> Result<()> {
        const SESSIONS: u16 = 4;
        let line = DelayLine::start(self.server.address, HALF_WAY).await?;
        let (dir, service) = (self.dir, self.service.address);
        let client = Client::side_by_side(dir, line.address, service, SESSIONS).await?;
        let size = (128 << 20) / self.share;
        let (mut one, mut all) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            for (ports, list) in [(&client.ports[..1], &mut one), (&client.ports[..], &mut all)] {
                let start = tokio::time::Instant::now();
                let streams = ports.iter().map(|port| load::bulk(*port, Way::Out, size));
                futures_util::future::try_join_all(streams).await?;
                let total = size as f64 * ports.len() as f64;
                list.push(total / MIB / start.elapsed().as_secs_f64());
            }
        }
        let name = format!("outbound at 50 ms over {SESSIONS} sessions side by side: throughput");
        figures.beside(name, "MiB/s", &all, "one window", &one);
        figures.goal(Goal::RatioAtLeast(2.0));
        Ok(())
    }

    /// From the accepted connection to the listener of the forward; the start of the processes does not count.
    async fn connect(&self, figures: &mut Figures) -> Result<()> {
        let (mut ours, mut go) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            for kind in Self::order(round) {
                let line = DelayLine::start(self.server.address, HALF_WAY).await?;
                let client = Client::launch(kind, self.dir, line.address, self.service.address, &[]).await?;
                let (accepted, listening) = tokio::try_join!(line.accepted(), client.listening())?;
                let list = if kind == Kind::Ours { &mut ours } else { &mut go };
                list.push(listening.saturating_duration_since(accepted).as_secs_f64() * 1000.0);
            }
        }
        figures.beside("cold connect at 50 ms", "ms", &ours, GO, &go);
        figures.goal(Goal::RatioAtMost(0.6));
        Ok(())
    }

    /// rathole has no encryption here: what is left of its figures is what SSH costs.
    async fn ceiling(&self, figures: &mut Figures) -> Result<()> {
        const NAME: &str = "rathole 0.5.0, plain TCP";
        let rathole = Rathole::start(self.dir, self.service.address).await?;
        let size = (1 << 30) / self.share;
        for (way, name) in [(Way::In, "inbound"), (Way::Out, "outbound")] {
            let (mut ours, mut peer) = (Runs::default(), Runs::default());
            for round in 0..=self.rounds {
                for kind in Self::order(round) {
                    let (port, pid, runs) = match kind {
                        Kind::Ours => (self.ours.port, self.ours.process.pid()?, &mut ours),
                        Kind::Go => (rathole.port, rathole.client.pid()?, &mut peer),
                    };
                    let (before, start) = (cpu_ms(pid)?, tokio::time::Instant::now());
                    load::bulk(port, way, size).await?;
                    if round > 0 {
                        runs.speed.push(size as f64 / MIB / start.elapsed().as_secs_f64());
                        runs.cpu
                            .push((cpu_ms(pid)? - before) / 1000.0 / (size as f64 / GIB));
                    }
                }
            }
            figures.beside(
                format!("{name} beside rathole: processor time"),
                "s/GiB",
                &ours.cpu,
                NAME,
                &peer.cpu,
            );
            figures.beside(
                format!("{name} beside rathole: throughput"),
                "MiB/s",
                &ours.speed,
                NAME,
                &peer.speed,
            );
        }
        Ok(())
    }
}
