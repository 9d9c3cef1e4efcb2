//! What the siblings said last, and whether that still counts. Pure: times come from the caller.
//!
//! A container is known while its newest report stream is open and a report came in lately. When the stream ends,
//! or nothing comes for too long, it is unknown since that moment; what it said before is kept to be shown.

use std::time::{Duration, SystemTime};

use proto::v1::{Build, Condition, ConditionStatus, ProxyReport, TunnelReport};

/// What both kinds of report have in common.
pub(crate) trait Report: Clone {
    fn instance_id(&self) -> &str;
    fn sequence(&self) -> u64;
    fn build(&self) -> Option<&Build>;
    fn ready(&self) -> bool;
    fn conditions(&self) -> &[Condition];
}

macro_rules! report {
    ($kind:ty) => {
        impl Report for $kind {
            fn instance_id(&self) -> &str {
                &self.instance_id
            }
            fn sequence(&self) -> u64 {
                self.sequence
            }
            fn build(&self) -> Option<&Build> {
                self.build.as_ref()
            }
            fn ready(&self) -> bool {
                self.ready
            }
            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }
        }
    };
}
report!(TunnelReport);
report!(ProxyReport);

/// One sibling.
#[derive(Clone, Debug)]
pub(crate) struct Slot<R> {
    pub(crate) name: &'static str,
    /// The newest stream; older ones have no say.
    stream: u64,
    open: bool,
    heard: Option<(Duration, SystemTime)>,
    unknown_since: Option<SystemTime>,
    instance: String,
    instances_seen: u32,
    report: Option<R>,
}

impl<R: Report> Slot<R> {
    pub(crate) fn new(name: &'static str, start: SystemTime) -> Self {
        Self {
            name,
            stream: 0,
            open: false,
            heard: None,
            unknown_since: Some(start),
            instance: String::new(),
            instances_seen: 0,
            report: None,
        }
    }

    /// A new stream: from here on the newest.
    pub(crate) fn open(&mut self) -> u64 {
        self.stream += 1;
        self.open = true;
        self.stream
    }

    /// Takes in a report, unless a newer stream has been opened.
    pub(crate) fn take(&mut self, stream: u64, report: R, now: Duration, wall: SystemTime) -> bool {
        if stream != self.stream {
            return false;
        }
        if self.instance != report.instance_id() {
            report.instance_id().clone_into(&mut self.instance);
            self.instances_seen = self.instances_seen.saturating_add(1);
        }
        self.heard = Some((now, wall));
        self.unknown_since = None;
        self.report = Some(report);
        true
    }

    /// A stream has ended.
    pub(crate) fn close(&mut self, stream: u64, wall: SystemTime) {
        if stream == self.stream && self.open {
            self.open = false;
            self.unknown_since.get_or_insert(wall);
        }
    }

    /// Whether silence has just made it unknown.
    pub(crate) fn expire(&mut self, now: Duration, timeout: Duration) -> bool {
        match self.heard {
            Some((at, wall)) if self.unknown_since.is_none() && now.saturating_sub(at) >= timeout => {
                self.unknown_since = Some(wall);
                true
            }
            Some(_) | None => false,
        }
    }

    pub(crate) fn known(&self) -> bool {
        self.unknown_since.is_none()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn unknown_since(&self) -> Option<SystemTime> {
        self.unknown_since
    }

    pub(crate) fn last_report(&self) -> Option<SystemTime> {
        self.heard.map(|(_, wall)| wall)
    }

    pub(crate) fn report(&self) -> Option<&R> {
        self.report.as_ref()
    }

    /// The report, if it still counts.
    pub(crate) fn fresh(&self) -> Option<&R> {
        self.report().filter(|_| self.known())
    }

    pub(crate) fn ready(&self) -> bool {
        self.fresh().is_some_and(Report::ready)
    }

    pub(crate) fn instance(&self) -> (&str, u32) {
        (&self.instance, self.instances_seen)
    }

    /// One sentence on its state.
    pub(crate) fn reason(&self) -> String {
        match (self.unknown_since, self.report()) {
            (Some(since), Some(_)) => format!("unknown since {}", timestamp(since)),
            (Some(since), None) => format!("unknown since {}: no report yet", timestamp(since)),
            (None, Some(report)) => {
                let bad = ConditionStatus::False;
                let bad = report
                    .conditions()
                    .iter()
                    .find(|condition| condition.status() == bad);
                bad.map_or_else(
                    || "ready".to_owned(),
                    |bad| format!("{}: {}", bad.name, bad.reason),
                )
            }
            (None, None) => "no report yet".to_owned(),
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn timestamp(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "?".to_owned(), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(25);

    fn at(seconds: u64) -> (Duration, SystemTime) {
        (
            Duration::from_secs(seconds),
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        )
    }

    fn report(instance: &str, ready: bool) -> TunnelReport {
        TunnelReport {
            instance_id: instance.to_owned(),
            ready,
            ..TunnelReport::default()
        }
    }

    fn slot() -> Slot<TunnelReport> {
        Slot::new("tunnel-sidecar", at(0).1)
    }

    #[test]
    fn the_newest_stream_wins() {
        let mut slot = slot();
        let older = slot.open();
        assert!(slot.take(older, report("a", true), at(1).0, at(1).1));
        let newer = slot.open();
        assert!(!slot.take(older, report("b", false), at(2).0, at(2).1));
        slot.close(older, at(2).1);
        assert!(
            slot.known() && slot.is_open(),
            "the end of an older stream changes nothing"
        );
        assert!(slot.take(newer, report("b", true), at(3).0, at(3).1));
        assert_eq!(slot.instance(), ("b", 2));
    }

    #[test]
    fn silence_makes_it_unknown_since_the_last_word() {
        let mut slot = slot();
        assert!(!slot.known(), "unknown until it speaks");
        let stream = slot.open();
        slot.take(stream, report("a", true), at(10).0, at(10).1);
        assert!(slot.ready() && !slot.expire(at(34).0, TIMEOUT));
        assert!(slot.expire(at(35).0, TIMEOUT) && !slot.expire(at(36).0, TIMEOUT));
        assert_eq!(slot.unknown_since(), Some(at(10).1));
        assert!(!slot.ready() && slot.report().is_some());
        assert_eq!(slot.reason(), "unknown since 1970-01-01T00:00:10.000Z");
        slot.take(stream, report("a", true), at(40).0, at(40).1);
        assert!(slot.known());
    }

    #[test]
    fn the_end_of_its_stream_makes_it_unknown_at_once() {
        let mut slot = slot();
        let stream = slot.open();
        slot.take(stream, report("a", true), at(1).0, at(1).1);
        slot.close(stream, at(2).1);
        assert_eq!(slot.unknown_since(), Some(at(2).1));
        assert!(!slot.is_open());
    }
}
