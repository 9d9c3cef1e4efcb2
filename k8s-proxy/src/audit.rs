//! One JSON line per call: who did what, what decided, how it ended. Never bodies, never credentials.
//!
//! A thread of its own writes, so that a reader of our standard output that falls asleep cannot stop the calls.
//! What then does not fit the queue is dropped and counted, and the gap in `seq` shows it.

use std::{
    io::{self, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::streams::lock;

/// Lines that may wait for the writer.
const QUEUE: usize = 4096;
/// A line that comes so soon after the last ones were written is one of many.
const BUSY: Duration = Duration::from_millis(1);
/// Of many, those of this time are written together: to wake the writer and to write for each costs a fifth of the
/// processor time of small calls (measured). At 100,000 calls a second an eighth of the queue is used.
const GATHER: Duration = Duration::from_millis(5);
/// Some hundred lines, written with one call.
const BUFFER: usize = 32 * 1024;
/// The writer needs no stack to speak of.
const STACK: usize = 64 * 1024;

/// What happened, once it is over.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// `audit`, so that the line is found among logs.
    pub kind: &'static str,
    /// Rises by one; a gap is a lost line.
    pub seq: u64,
    /// New at each start of the process.
    #[serde(serialize_with = "text")]
    pub boot: Arc<str>,
    /// When the call ended.
    pub time: String,
    /// The caller's id of the call.
    pub request_id: String,
    /// W3C trace id, if the caller sent one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// The door it came through.
    #[serde(serialize_with = "text")]
    pub door: Arc<str>,
    /// Identity of the door.
    pub caller: String,
    /// The person it spoke for, else the caller.
    pub user: String,
    /// Kubernetes verb.
    pub verb: &'static str,
    /// `pods/log`, or the path for what is no resource.
    pub resource: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Object name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// The rule that decided.
    #[serde(serialize_with = "text")]
    pub rule: Arc<str>,
    /// HTTP status of the answer, 0 when there was none.
    pub status: u16,
    /// Bytes of the answer.
    pub bytes: u64,
    /// From the first byte to the end of the answer.
    pub duration_ms: u64,
    /// How it ended: `complete`, `cancelled`, `upstream_lost` …
    pub end: String,
}

fn text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

#[derive(Clone, Debug)]
enum Sink {
    Off,
    Thread(SyncSender<String>),
    Memory(Arc<Mutex<Vec<String>>>),
}

/// Where the lines go; clones share it.
#[derive(Clone, Debug)]
pub struct Audit {
    sink: Sink,
    boot: Arc<str>,
    next: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    /// Each line is written at once: the process is about to end.
    hurry: Arc<AtomicBool>,
}

impl Audit {
    fn with(sink: Sink, boot: &str) -> Self {
        Self {
            sink,
            boot: boot.into(),
            next: Arc::default(),
            lost: Arc::default(),
            hurry: Arc::default(),
        }
    }

    /// To standard output.
    ///
    /// # Errors
    /// When the writing thread cannot be started.
    pub fn stdout(boot: &str) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let audit = Self::with(Sink::Thread(sender), boot);
        let hurry = Arc::clone(&audit.hurry);
        thread::Builder::new()
            .name("audit".to_owned())
            .stack_size(STACK)
            .spawn(move || write(&receiver, &hurry))?;
        Ok(audit)
    }

    /// From here on no line waits for others: what happens while a process drains is told before it ends.
    pub fn hurry(&self) {
        self.hurry.store(true, Relaxed);
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
    pub fn write(&self, mut record: Record) {
        if !self.is_on() {
            return;
        }
        record.kind = "audit";
        record.seq = self.next.fetch_add(1, Relaxed) + 1;
        record.boot = Arc::clone(&self.boot);
        record.time = Timestamp::now().to_string();
        // serde_json escapes control characters, so a name cannot forge a line of its own.
        let Ok(line) = serde_json::to_string(&record) else {
            return;
        };
        match &self.sink {
            Sink::Off => {}
            Sink::Memory(lines) => lock(lines).push(line),
            Sink::Thread(sender) => {
                if sender.try_send(line).is_err() {
                    self.lost.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// Writes what is there in one go, and flushes before it waits. While it gathers, no sender has to wake it.
fn write(lines: &Receiver<String>, hurry: &AtomicBool) {
    let mut out = io::BufWriter::with_capacity(BUFFER, io::stdout());
    let mut written = Instant::now();
    while let Ok(line) = lines.recv() {
        if written.elapsed() < BUSY && !hurry.load(Relaxed) {
            thread::sleep(GATHER);
        }
        let mut next = Ok(line);
        while let Ok(line) = next {
            writeln!(out, "{line}").ok();
            next = lines.try_recv();
            if next == Err(TryRecvError::Disconnected) {
                break;
            }
        }
        out.flush().ok();
        written = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_cannot_be_forged() {
        let (audit, lines) = Audit::memory();
        for name in ["a", "x\n{\"kind\":\"audit\"}"] {
            audit.write(Record {
                name: name.to_owned(),
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
