//! Life: each tick a few things happen, chosen by the seed, and the controllers follow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    cluster::Cluster,
    controllers::is_ready,
    object,
    resources::by_plural,
    store::{Key, Stored},
    write::WriteOptions,
};

/// Where the workload lives; other namespaces belong to tests and people.
const HOME: &str = "shop";
/// The lowest and highest number of replicas that a deployment of the workload is scaled to.
const REPLICAS: (i64, i64) = (1, 5);
/// Events that are kept: the real API forgets them after an hour.
const EVENTS_KEPT: usize = 500;
/// What a tick of a stopped clock stands for.
const TICK: Duration = Duration::from_secs(1);

/// How fast the workload lives.
#[derive(Debug)]
pub struct Pace {
    state: watch::Sender<State>,
    ticks: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct State {
    tick: Option<Duration>,
    paused: bool,
}

impl Pace {
    /// A tick this often, or never by itself.
    pub fn new(tick: Option<Duration>) -> Self {
        Self {
            state: watch::channel(State { tick, paused: false }).0,
            ticks: AtomicU64::new(0),
        }
    }

    /// Changes the time between ticks.
    pub fn set(&self, tick: Option<Duration>) {
        self.state.send_modify(|state| state.tick = tick);
    }

    /// Stops or goes on.
    pub fn pause(&self, paused: bool) {
        self.state.send_modify(|state| state.paused = paused);
    }

    /// Whether it is stopped.
    pub fn paused(&self) -> bool {
        self.state.borrow().paused
    }

    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }
}

/// Ticks for ever.
pub async fn live(cluster: Arc<Cluster>) {
    let mut changes = cluster.pace.state.subscribe();
    loop {
        let State { tick, paused } = *changes.borrow_and_update();
        let due = async {
            match tick.filter(|_| !paused) {
                Some(tick) => tokio::time::sleep(tick).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // First, so that no tick that is due at the same moment slips through a pause.
            biased;
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = due => cluster.tick(),
        }
    }
}

impl Cluster {
    /// One step of life.
    pub fn tick(&self) {
        let number = self.pace.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        self.clock.advance(self.pace.state.borrow().tick.unwrap_or(TICK));
        self.write_logs(number);
        match self.workload_chance.below(6) {
            0 => self.restart_a_container(),
            1 => self.scale_a_deployment(),
            2 => self.roll_a_configmap(number),
            3 => self.renew_a_lease(),
            _ => self.flip_a_pod(),
        }
        self.reconcile();
        self.forget_old_events();
    }

    fn home_pods(&self) -> Vec<Arc<Stored>> {
        let mut pods = self
            .store
            .snapshot(by_plural("pods"), Some(HOME), None)
            .map(|(_, all)| all)
            .unwrap_or_default();
        pods.retain(|pod| object::text(&pod.value, "status.phase") == "Running");
        pods
    }

    fn write_logs(&self, number: u64) {
        for pod in self.home_pods() {
            let path = ["/", "/cart", "/checkout", "/healthz"][self.workload_chance.below(4)];
            let text = format!(
                "tick={number} method=GET path={path} status=200 millis={}",
                self.workload_chance.below(90)
            );
            self.logs
                .append(HOME, object::name(&pod.value), self.clock.micros(), text);
        }
    }

    fn change_container(&self, change: impl FnOnce(&mut Value, bool)) -> Option<Arc<Stored>> {
        let pods = self.home_pods();
        let pod = self.workload_chance.pick(&pods)?.clone();
        let mut status = pod.value["status"].clone();
        let ready = is_ready(&pod.value);
        change(status.get_mut("containerStatuses")?.get_mut(0)?, ready);
        let flag = if status["containerStatuses"][0]["ready"] == true {
            "True"
        } else {
            "False"
        };
        for condition in status["conditions"].as_array_mut()? {
            if condition["type"] != "PodScheduled" {
                condition["status"] = json!(flag);
            }
        }
        self.set_status("pods", &pod.value, status);
        Some(pod)
    }

    fn flip_a_pod(&self) {
        let mut became = false;
        let pod = self.change_container(|container, ready| {
            became = !ready;
            container["ready"] = json!(!ready);
        });
        if let Some(pod) = pod.filter(|_| !became) {
            self.event(
                &pod.value,
                "Warning",
                "Unhealthy",
                "Readiness probe failed: status 503",
            );
        }
    }

    fn restart_a_container(&self) {
        let now = self.clock.seconds();
        let pod = self.change_container(|container, _| {
            container["restartCount"] = json!(object::number(container, "restartCount") + 1);
            container["ready"] = json!(true);
            container["state"] = json!({"running": {"startedAt": now}});
            container["lastState"] =
                json!({"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": now}});
        });
        if let Some(pod) = pod {
            self.event(
                &pod.value,
                "Normal",
                "Started",
                "Started container again after exit code 1",
            );
            self.logs
                .append(HOME, object::name(&pod.value), self.clock.micros(), "restarted");
        }
    }

    fn scale_a_deployment(&self) {
        let found = self
            .store
            .snapshot(by_plural("deployments"), Some(HOME), None)
            .map(|(_, all)| all);
        let deployments = found.unwrap_or_default();
        let Some(deployment) = self.workload_chance.pick(&deployments) else {
            return;
        };
        let (least, most) = REPLICAS;
        let span = usize::try_from(most - least + 1).unwrap_or(1);
        let replicas = least + i64::try_from(self.workload_chance.below(span)).unwrap_or_default();
        self.scale("deployments", &deployment.value, replicas);
    }

    fn roll_a_configmap(&self, number: u64) {
        let key = Key::new(by_plural("configmaps"), HOME, "web-config");
        let _ = self.update(&key, "", &WriteOptions::default(), |old| {
            let mut new = old.clone();
            object::child(&mut new, "data").insert("generation".to_owned(), json!(number.to_string()));
            Ok(new)
        });
    }

    fn renew_a_lease(&self) {
        let leases = self.all("leases");
        let Some(lease) = self.workload_chance.pick(&leases) else {
            return;
        };
        let key = Key::new(
            by_plural("leases"),
            object::namespace(&lease.value),
            object::name(&lease.value),
        );
        if key.namespace == "kube-node-lease" {
            let now = self.clock.micros();
            let _ = self.update(&key, "", &WriteOptions::default(), |old| {
                let mut new = old.clone();
                object::child(&mut new, "spec").insert("renewTime".to_owned(), json!(now));
                Ok(new)
            });
        }
    }

    fn forget_old_events(&self) {
        let mut events = self.all("events");
        if events.len() <= EVENTS_KEPT {
            return;
        }
        events.sort_by_key(|event| event.revision);
        let old = events.len() - EVENTS_KEPT;
        for event in events.iter().take(old) {
            let key = Key::new(
                by_plural("events"),
                object::namespace(&event.value),
                object::name(&event.value),
            );
            let _ = self.delete(&key, &WriteOptions::default());
        }
    }
}
