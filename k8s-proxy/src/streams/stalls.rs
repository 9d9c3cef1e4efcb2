//! Readers that do not take what is there for them: found by looking through the table now and then.
//!
//! A body that nobody pulls at cannot help itself, so the look comes from outside. It ends a call only when memory is
//! short; else a stalled reader may stay as long as it likes, for it costs nobody but itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{CancelReason, Stream, StreamTable, lock};

/// Shorter is no stall: even a good reader needs a moment.
const STALLED: Duration = Duration::from_secs(1);
impl StreamTable {
    /// How many calls have a reader that has taken nothing for a second, by door.
    pub fn stalled(&self) -> BTreeMap<Arc<str>, usize> {
        let mut doors: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        let now = self.now();
        for stream in lock(&self.entries).open.values() {
            if stream.stalled_for(now).is_some_and(|since| since >= STALLED) {
                *doors.entry(Arc::clone(&stream.door)).or_default() += 1;
            }
        }
        doors
    }

    /// While more waits than may, ends the calls that have been stalled the longest. Returns how many.
    pub fn shed(&self) -> usize {
        let mut excess = self.budget.excess();
        if excess == 0 {
            return 0;
        }
        let now = self.now();
        let mut stalled: Vec<(Duration, Arc<Stream>)> = lock(&self.entries)
            .open
            .values()
            .filter(|stream| stream.held.load(Relaxed) > 0 && stream.cancel.reason().is_none())
            .filter_map(|stream| Some((stream.stalled_for(now)?, Arc::clone(stream))))
            .filter(|(since, _)| *since >= STALLED)
            .collect();
        stalled.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        let mut ended = 0;
        for (_, stream) in stalled {
            excess = excess.saturating_sub(stream.held.load(Relaxed));
            stream.end(CancelReason::Memory);
            ended += 1;
            if excess == 0 {
                break;
            }
        }
        ended
    }
}
