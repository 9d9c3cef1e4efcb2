//! The open calls of one connection, by id and by stream id.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use crate::streams::{Cancel, CancelReason, lock};

/// How many ended calls are remembered, so that a CANCEL that crossed their last frame is known for what it is.
const REMEMBERED: usize = 256;

/// One open call.
#[derive(Clone, Debug)]
pub(super) struct Open {
    /// Its queue in the outbox.
    pub(super) key: u64,
    pub(super) id: String,
    pub(super) stream_id: String,
    pub(super) stream: bool,
    pub(super) cancel: Cancel,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_id: HashMap<String, Open>,
    /// Stream id to id.
    names: HashMap<String, String>,
    /// Ids and stream ids of calls that ended, oldest first.
    ended: VecDeque<(String, String)>,
}

/// The calls; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    table: Arc<Mutex<Table>>,
}

impl Calls {
    /// Takes a call in; `None` when its id is open.
    pub(super) fn open(&self, id: &str, stream: bool, cancel: Cancel) -> Option<Open> {
        let mut table = lock(&self.table);
        if table.by_id.contains_key(id) {
            return None;
        }
        table.next += 1;
        let key = table.next;
        let stream_id = if stream {
            format!("{id}-stream-{key}")
        } else {
            String::new()
        };
        let open = Open {
            key,
            id: id.to_owned(),
            stream_id: stream_id.clone(),
            stream,
            cancel,
        };
        if stream {
            table.names.insert(stream_id, id.to_owned());
        }
        table.by_id.insert(id.to_owned(), open.clone());
        Some(open)
    }

    /// Takes a call out by its stream id or its id.
    pub(super) fn remove_named(&self, name: &str) -> Option<Open> {
        let mut table = lock(&self.table);
        let id = table.names.get(name).cloned().unwrap_or_else(|| name.to_owned());
        table.remove(&id)
    }

    /// Takes the very call out; one that got the same id since then stays.
    pub(super) fn remove(&self, open: &Open) {
        let mut table = lock(&self.table);
        if table
            .by_id
            .get(&open.id)
            .is_some_and(|current| current.key == open.key)
        {
            table.remove(&open.id);
        }
    }

    /// Whether a call by this stream id or id ended a short while ago.
    pub(super) fn has_ended(&self, name: &str) -> bool {
        lock(&self.table)
            .ended
            .iter()
            .any(|(id, stream_id)| id == name || stream_id == name)
    }

    pub(super) fn cancel_all(&self, reason: CancelReason) {
        let all: Vec<_> = lock(&self.table)
            .by_id
            .values()
            .map(|open| open.cancel.clone())
            .collect();
        for cancel in all {
            cancel.cancel(reason);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.table).by_id.is_empty()
    }
}

impl Table {
    fn remove(&mut self, id: &str) -> Option<Open> {
        let open = self.by_id.remove(id)?;
        self.names.remove(&open.stream_id);
        if self.ended.len() >= REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((open.id.clone(), open.stream_id.clone()));
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_free_again_once_its_call_is_over() {
        let calls = Calls::default();
        let first = calls.open("a", true, Cancel::default()).unwrap();
        assert!(calls.open("a", false, Cancel::default()).is_none());
        assert_eq!(calls.remove_named(&first.stream_id).unwrap().key, first.key);
        let second = calls.open("a", true, Cancel::default()).unwrap();
        calls.remove(&first);
        assert!(
            !calls.is_empty(),
            "the end of the first is not the end of the second"
        );
        assert_ne!(first.stream_id, second.stream_id);
        assert_eq!(calls.remove_named("a").unwrap().key, second.key);
        assert!(calls.is_empty() && calls.remove_named("a").is_none());
        assert!(calls.has_ended("a") && calls.has_ended(&second.stream_id) && !calls.has_ended("b"));
        for number in 0..1000 {
            calls.open("c", true, Cancel::default()).unwrap();
            calls.remove_named("c").unwrap();
            assert!(calls.has_ended("c"), "{number}");
        }
        assert!(!calls.has_ended("a"), "the memory is bounded");
    }
}
