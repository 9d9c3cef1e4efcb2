//! The bounded log of requests that tests read.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{HeaderMap, Version};
use serde::Serialize;

use super::auth::Identity;

/// One request that was received.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Request {
    /// Rises by one, from 1.
    pub sequence: u64,
    /// HTTP method.
    pub method: String,
    /// Path as it was sent.
    pub path: String,
    /// Query as it was sent.
    pub query: String,
    /// Kubernetes verb, empty for paths that are no resource.
    pub verb: String,
    /// Effective user, empty when nobody was recognised.
    pub user: String,
    /// Effective groups.
    pub groups: Vec<String>,
    /// Who impersonated.
    pub impersonator: Option<String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Which TCP connection brought it.
    pub connection: u64,
    /// Every header, in order, names in lower case. The log that people read hides `authorization`.
    pub headers: Vec<(String, String)>,
    /// Status of the answer, 0 while there is none.
    pub status: u16,
    /// Whether the answer is over: sent whole, or given up by the client.
    pub ended: bool,
}

impl Request {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// `path?query`, or only the path.
    pub fn target(&self) -> String {
        if self.query.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{}", self.path, self.query)
        }
    }
}

/// The log.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    entries: VecDeque<Request>,
    total: u64,
    open_watches: u64,
    limit: usize,
}

impl Requests {
    /// A log of at most this many entries; older ones are forgotten, counts go on.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Log {
            entries: VecDeque::new(),
            total: 0,
            open_watches: 0,
            limit,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All remembered requests, oldest first.
    pub fn all(&self) -> Vec<Request> {
        self.lock().entries.iter().cloned().collect()
    }

    /// Those that satisfy a condition.
    pub fn find(&self, wanted: impl Fn(&Request) -> bool) -> Vec<Request> {
        self.lock()
            .entries
            .iter()
            .filter(|request| wanted(request))
            .cloned()
            .collect()
    }

    /// How many there ever were.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// How many watches are open at this moment.
    pub fn open_watches(&self) -> u64 {
        self.lock().open_watches
    }

    /// Forgets all entries.
    pub fn clear(&self) {
        self.lock().entries.clear();
    }

    pub(super) fn begin(&self, mut request: Request) -> Guard {
        let mut log = self.lock();
        log.total += 1;
        request.sequence = log.total;
        let sequence = log.total;
        log.entries.push_back(request);
        if log.entries.len() > log.limit {
            log.entries.pop_front();
        }
        Guard {
            requests: self.clone(),
            sequence,
            watch: false,
        }
    }

    fn change(&self, sequence: u64, change: impl FnOnce(&mut Request)) {
        let mut log = self.lock();
        let first = log.entries.front().map_or(u64::MAX, |request| request.sequence);
        let place = sequence
            .checked_sub(first)
            .and_then(|place| usize::try_from(place).ok());
        if let Some(request) = place.and_then(|place| log.entries.get_mut(place)) {
            change(request);
        }
    }
}

/// Held while a request is being answered; dropping it ends the entry.
#[derive(Debug)]
pub(super) struct Guard {
    requests: Requests,
    sequence: u64,
    watch: bool,
}

impl Guard {
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn identified(&self, identity: &Identity) {
        self.requests.change(self.sequence, |request| {
            request.user.clone_from(&identity.user);
            request.groups.clone_from(&identity.groups);
            request.impersonator.clone_from(&identity.impersonator);
        });
    }

    pub(super) fn verb(&self, verb: &str) {
        self.requests
            .change(self.sequence, |request| verb.clone_into(&mut request.verb));
    }

    pub(super) fn status(&self, status: u16) {
        self.requests
            .change(self.sequence, |request| request.status = status);
    }

    pub(super) fn is_watch(&mut self) {
        if !std::mem::replace(&mut self.watch, true) {
            self.requests.lock().open_watches += 1;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.requests
            .change(self.sequence, |request| request.ended = true);
        if self.watch {
            self.requests.lock().open_watches -= 1;
        }
    }
}

/// The headers of a request for the log.
pub(super) fn headers(map: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

/// The version of a request for the log.
pub(super) fn version(version: Version) -> String {
    format!("{version:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_marks_the_end() {
        let log = Requests::new(2);
        let mut first = log.begin(Request::default());
        first.is_watch();
        let second = log.begin(Request {
            path: "/b".to_owned(),
            ..Request::default()
        });
        assert_eq!(log.open_watches(), 1);
        drop(log.begin(Request::default()));
        assert_eq!((log.total(), log.all().len()), (3, 2));
        second.status(200);
        drop(first);
        drop(second);
        let found = log.find(|request| request.path == "/b");
        assert_eq!(
            (found[0].status, found[0].ended, log.open_watches()),
            (200, true, 0)
        );
    }
}
