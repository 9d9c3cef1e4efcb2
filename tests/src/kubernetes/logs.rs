//! What containers wrote: bounded per pod, with followers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Lines that are kept for one pod.
const KEPT: usize = 2000;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was written.
    pub time: String,
    /// What was written, without line feed.
    pub text: String,
}

/// The lines of all pods; a pod's containers share one log.
#[derive(Debug)]
pub struct Logs {
    pods: Mutex<BTreeMap<(String, String), Log>>,
    wake: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Log {
    lines: VecDeque<Line>,
    /// Number of the first line that is kept.
    first: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self::new()
    }
}

impl Logs {
    /// No lines.
    pub fn new() -> Self {
        Self {
            pods: Mutex::default(),
            wake: watch::channel(0).0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Log>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line.
    pub fn append(&self, namespace: &str, pod: &str, time: String, text: impl Into<String>) {
        let mut pods = self.lock();
        let log = pods.entry((namespace.to_owned(), pod.to_owned())).or_default();
        log.lines.push_back(Line {
            time,
            text: text.into(),
        });
        if log.lines.len() > KEPT {
            log.lines.pop_front();
            log.first += 1;
        }
        drop(pods);
        self.wake.send_modify(|count| *count += 1);
    }

    /// Forgets a pod; its followers end.
    pub fn forget(&self, namespace: &str, pod: &str) {
        self.lock().remove(&(namespace.to_owned(), pod.to_owned()));
        self.wake.send_modify(|count| *count += 1);
    }

    /// The lines from number `from` on, and the number after the last.
    pub fn after(&self, namespace: &str, pod: &str, from: u64) -> (Vec<Line>, u64) {
        let pods = self.lock();
        let Some(log) = pods.get(&(namespace.to_owned(), pod.to_owned())) else {
            return (Vec::new(), from);
        };
        let skip = usize::try_from(from.saturating_sub(log.first)).unwrap_or(usize::MAX);
        let lines: Vec<_> = log.lines.iter().skip(skip).cloned().collect();
        (lines, log.first + log.lines.len() as u64)
    }

    /// Wakes when any line is added.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_see_each_line_once() {
        let logs = Logs::new();
        for n in 0..KEPT + 5 {
            logs.append("n", "p", String::new(), n.to_string());
        }
        let (lines, next) = logs.after("n", "p", 0);
        assert_eq!((lines.len(), lines[0].text.as_str()), (KEPT, "5"));
        assert!(logs.after("n", "p", next).0.is_empty());
        logs.append("n", "p", String::new(), "new");
        assert_eq!(logs.after("n", "p", next).0[0].text, "new");
        logs.forget("n", "p");
        assert!(logs.after("n", "p", 0).0.is_empty());
    }
}
