//! The Prometheus metrics of a process.

use std::{
    fs,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};
use tracing::error;

use crate::build::BuildInfo;

/// `/proc/<pid>/stat` counts processor time in this many ticks a second on every Linux we run on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Page size of the platforms we build for.
const PAGE_BYTES: f64 = 4096.0;

/// A registry with the process's own figures in it; clones share it.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    own: Arc<Own>,
}

#[derive(Debug)]
struct Own {
    resident: Gauge,
    cpu: Gauge,
    open_fds: IntGauge,
}

impl Metrics {
    /// A registry for the process of `build`.
    pub fn new(build: BuildInfo) -> Self {
        let registry = Registry::new();
        let own = Own {
            resident: float_gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
            cpu: float_gauge(
                "process_cpu_seconds_total",
                "User and system processor time in seconds.",
            ),
            open_fds: int_gauge("process_open_fds", "Open file descriptors."),
        };
        let start = float_gauge(
            "process_start_time_seconds",
            "Start of the process, seconds since the epoch.",
        );
        start.set(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        );
        let info = IntGaugeVec::new(
            Opts::new("pipeops_build_info", "Always 1; the labels say what was built."),
            &["name", "version", "git_commit"],
        );
        let metrics = Self {
            registry,
            own: Arc::new(own),
        };
        for collector in [&metrics.own.resident, &metrics.own.cpu, &start] {
            metrics.register(collector.clone());
        }
        metrics.register(metrics.own.open_fds.clone());
        if let Ok(info) = info {
            info.with_label_values(&[build.name, build.version, build.git_commit])
                .set(1);
            metrics.register(info);
        }
        metrics
    }

    /// The registry itself.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All metrics in the text format of Prometheus.
    pub fn text(&self) -> String {
        self.own.refresh();
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            error!(%error, "cannot encode metrics");
        }
        String::from_utf8(out).unwrap_or_default()
    }

    /// A registered counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.kept(IntCounter::new(name, help), || {
            no_labels(IntCounter::new("invalid_total", "-"))
        })
    }

    /// A registered family of counters.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let fallback = || no_labels(IntCounterVec::new(Opts::new("invalid_total", "-"), labels));
        self.kept(IntCounterVec::new(Opts::new(name, help), labels), fallback)
    }

    /// A registered gauge.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.kept(IntGauge::new(name, help), || {
            no_labels(IntGauge::new("invalid", "-"))
        })
    }

    /// A registered family of gauges.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let fallback = || no_labels(IntGaugeVec::new(Opts::new("invalid", "-"), labels));
        self.kept(IntGaugeVec::new(Opts::new(name, help), labels), fallback)
    }

    /// A registered histogram; `buckets` are upper bounds in the metric's unit.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let fallback = || no_labels(Histogram::with_opts(HistogramOpts::new("invalid_seconds", "-")));
        self.kept(Histogram::with_opts(options), fallback)
    }

    /// A registered family of histograms.
    pub fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let fallback = || {
            no_labels(HistogramVec::new(
                HistogramOpts::new("invalid_seconds", "-"),
                labels,
            ))
        };
        self.kept(HistogramVec::new(options, labels), fallback)
    }

    fn kept<C: Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
        fallback: impl FnOnce() -> C,
    ) -> C {
        match made {
            Ok(collector) => {
                self.register(collector.clone());
                collector
            }
            Err(error) => {
                error!(%error, "a metric is not valid and will not be exported");
                fallback()
            }
        }
    }

    fn register(&self, collector: impl Collector + 'static) {
        if let Err(error) = self.registry.register(Box::new(collector)) {
            error!(%error, "a metric is registered twice and will not be exported");
        }
    }
}

impl Own {
    fn refresh(&self) {
        if let Some(pages) = field(&read("/proc/self/statm"), 1) {
            self.resident.set(pages * PAGE_BYTES);
        }
        let stat = read("/proc/self/stat");
        // The program's name may hold spaces; the fields that count follow its closing bracket.
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if let (Some(user), Some(system)) = (field(after, 11), field(after, 12)) {
            self.cpu.set((user + system) / TICKS_PER_SECOND);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            self.open_fds
                .set(i64::try_from(entries.count()).unwrap_or(i64::MAX));
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, index: usize) -> Option<f64> {
    text.split_whitespace().nth(index)?.parse().ok()
}

#[expect(clippy::expect_used, reason = "constant names, checked by the tests below")]
fn float_gauge(name: &str, help: &str) -> Gauge {
    Gauge::new(name, help).expect("a valid constant name")
}

#[expect(clippy::expect_used, reason = "constant names, checked by the tests below")]
fn int_gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("a valid constant name")
}

#[expect(
    clippy::expect_used,
    reason = "constant names without reserved labels are valid"
)]
fn no_labels<C>(made: prometheus::Result<C>) -> C {
    made.expect("a valid constant name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::build_info;

    #[test]
    fn the_process_measures_itself() {
        let metrics = Metrics::new(build_info("test"));
        metrics.counter("pipeops_things_total", "Things.").inc();
        let text = metrics.text();
        for name in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "process_start_time_seconds ",
            "pipeops_build_info{",
            "pipeops_things_total 1",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
        let resident = text
            .lines()
            .find_map(|line| line.strip_prefix("process_resident_memory_bytes "))
            .unwrap();
        assert!(resident.parse::<f64>().unwrap() > 100_000.0, "{resident}");
    }

    #[test]
    fn a_metric_that_is_not_valid_does_not_end_the_process() {
        let metrics = Metrics::new(build_info("test"));
        metrics.counter("not valid", "x").inc();
        metrics.counter("twice_total", "x").inc();
        metrics.counter("twice_total", "x").inc();
        assert!(metrics.text().contains("twice_total 1"));
    }
}
