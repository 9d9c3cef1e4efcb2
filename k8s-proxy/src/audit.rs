//! One JSON line per call: who did what, what decided, how it ended. Never bodies, never credentials.
//!
//! A thread of its own writes, so that a reader of our standard output that falls asleep cannot stop the calls.
//! What then does not fit the queue is dropped and counted, and the gap in `seq` shows it.

mod queue;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::streams::lock;
use queue::Queue;

/// The writer needs no stack to speak of.
const STACK: usize = 64 * 1024;

/// What happened, once it is over.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Record<'a> {
    /// `audit`, so that the line is found among logs.
    pub kind: &'static str,
    /// Rises by one; a gap is a lost line.
    pub seq: u64,
    /// New at each start of the process.
    pub boot: &'a str,
    /// When the call ended.
    #[serde(serialize_with = "rfc3339")]
    pub time: Option<Timestamp>,
    /// The caller's id of the call.
    pub request_id: &'a str,
    /// W3C trace id, if the caller sent one.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub trace_id: &'a str,
    /// The door it came through.
    pub door: &'a str,
    /// Identity of the door.
    pub caller: &'a str,
    /// The person it spoke for, else the caller.
    pub user: &'a str,
    /// Kubernetes verb.
    pub verb: &'static str,
    /// `pods/log`, or the path for what is no resource.
    pub resource: &'a str,
    /// API group.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub group: &'a str,
    /// Namespace.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub namespace: &'a str,
    /// Object name.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: &'a str,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// The rule that decided.
    pub rule: &'a str,
    /// HTTP status of the answer, 0 when there was none.
    pub status: u16,
    /// Bytes of the answer.
    pub bytes: u64,
    /// From the first byte to the end of the answer.
    pub duration_ms: u64,
    /// How it ended: `complete`, `cancelled`, `upstream_lost` …
    pub end: &'a str,
}

fn rfc3339<S: serde::Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}

#[derive(Clone, Debug)]
enum Sink {
    Off,
    Thread(Queue),
    Memory(Arc<Mutex<Vec<String>>>),
}

/// Where the lines go; clones share it.
#[derive(Clone, Debug)]
pub struct Audit {
    sink: Sink,
    boot: Arc<str>,
    next: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl Audit {
    fn with(sink: Sink, boot: &str) -> Self {
        Self {
            sink,
            boot: boot.into(),
            next: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// To standard output.
    ///
    /// # Errors
    /// When the writing thread cannot be started.
    pub fn stdout(boot: &str) -> io::Result<Self> {
        let queue = Queue::default();
        let audit = Self::with(Sink::Thread(queue.clone()), boot);
        thread::Builder::new()
            .name("audit".to_owned())
            .stack_size(STACK)
            .spawn(move || queue.write_to(io::stdout()))?;
        Ok(audit)
    }

    /// From here on no line waits for others: what happens while a process drains is told before it ends.
    pub fn hurry(&self) {
        if let Sink::Thread(queue) = &self.sink {
            queue.hurry();
        }
    }

    /// Nowhere.
    pub fn off() -> Self {
        Self::with(Sink::Off, "")
    }

    /// Into memory, for tests.
    pub fn memory() -> (Self, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        (Self::with(Sink::Memory(Arc::clone(&lines)), "test"), lines)
    }

    /// Whether anybody reads what is written.
    pub fn is_on(&self) -> bool {
        !matches!(self.sink, Sink::Off)
    }

    /// How many lines found no place.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Writes a record; its sequence number, boot id and time are filled in here.
    pub fn write(&self, record: &Record<'_>) {
        if !self.is_on() {
            return;
        }
        let record = Record {
            kind: "audit",
            seq: self.next.fetch_add(1, Relaxed) + 1,
            boot: &self.boot,
            time: Some(Timestamp::now()),
            ..*record
        };
        let written = match &self.sink {
            Sink::Off => true,
            Sink::Thread(queue) => queue.push(&record),
            Sink::Memory(lines) => serde_json::to_string(&record)
                .map(|line| lock(lines).push(line))
                .is_ok(),
        };
        if !written {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_cannot_be_forged() {
        let (audit, lines) = Audit::memory();
        for name in ["a", "x\n{\"kind\":\"audit\"}"] {
            audit.write(&Record {
                name,
                verb: "get",
                ..Record::default()
            });
        }
        let lines = lock(&lines).clone();
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| !line.contains('\n')));
        let second: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(
            (second["seq"].as_u64(), second["verb"].as_str()),
            (Some(2), Some("get"))
        );
    }
}
