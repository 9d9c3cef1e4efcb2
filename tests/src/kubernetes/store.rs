//! The objects, one global revision, and the bounded memory of changes from which watches and old lists are served.
//!
//! ```text
//!  write ──► Txn::put / remove ──► objects (now) + history (what changed) ──► wakes watches of that resource
//!  list now ◄── objects                      list at an older revision ◄── objects, history undone backwards
//!  watch from R ◄── history after R, or `Expired` when R lies before the horizon
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    object,
    resources::{RESOURCES, ResourceId},
};

/// The revision of an empty store: not 1, so that tests can name a revision that is too old.
const FIRST_REVISION: u64 = 100;

/// Where an object lives: order is the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub resource: ResourceId,
    /// Namespace, empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(resource: ResourceId, namespace: &str, name: &str) -> Self {
        Self {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// One version of an object, with its bytes rendered at most once.
#[derive(Debug)]
pub struct Stored {
    /// The object.
    pub value: Value,
    /// Its resourceVersion.
    pub revision: u64,
    json: OnceLock<Bytes>,
    item: OnceLock<Bytes>,
}

impl Stored {
    fn new(value: Value, revision: u64) -> Self {
        Self {
            value,
            revision,
            json: OnceLock::new(),
            item: OnceLock::new(),
        }
    }

    /// A version that is answered but not kept.
    pub fn unsaved(value: Value) -> Self {
        Self::new(value, 0)
    }

    /// The object as JSON.
    pub fn json(&self) -> Bytes {
        self.json
            .get_or_init(|| Bytes::from(self.value.to_string()))
            .clone()
    }

    /// The object as an item of a typed list: without kind and apiVersion.
    pub fn item(&self) -> Bytes {
        self.item
            .get_or_init(|| {
                let mut value = self.value.clone();
                if let Some(object) = value.as_object_mut() {
                    object.remove("kind");
                    object.remove("apiVersion");
                }
                Bytes::from(value.to_string())
            })
            .clone()
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was created.
    Added,
    /// It was written.
    Modified,
    /// It was removed.
    Deleted,
}

/// One change in the history.
#[derive(Debug)]
pub struct Change {
    /// The revision it made.
    pub revision: u64,
    /// What happened.
    pub kind: ChangeKind,
    /// Where.
    pub key: Key,
    /// The version after it; for a removal the last one, with the revision of the removal.
    pub object: Arc<Stored>,
    /// The version before it.
    pub previous: Option<Arc<Stored>>,
    line: OnceLock<Bytes>,
}

impl Change {
    /// The change as a line of a watch, for those who see all of it.
    pub fn line(&self) -> Bytes {
        let kind = match self.kind {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        };
        self.line
            .get_or_init(|| event_line(kind, &self.object.json()))
            .clone()
    }
}

/// `{"type":…,"object":…}` and a line feed.
pub fn event_line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + kind.len() + 24);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}

/// The asked revision lies before what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The oldest revision that can be asked for.
    pub oldest: u64,
}

/// All objects of the simulated cluster.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    wake: Vec<watch::Sender<u64>>,
}

#[derive(Debug)]
struct Inner {
    objects: BTreeMap<Key, Arc<Stored>>,
    revision: u64,
    history: Vec<History>,
    remembered: usize,
}

#[derive(Debug)]
struct History {
    changes: VecDeque<Arc<Change>>,
    /// Every change after this revision is in `changes`.
    horizon: u64,
}

impl Store {
    /// An empty store that remembers this many changes of each kind.
    pub fn new(remembered: usize) -> Self {
        let history = RESOURCES
            .iter()
            .map(|_| History {
                changes: VecDeque::new(),
                horizon: FIRST_REVISION,
            })
            .collect();
        let inner = Inner {
            objects: BTreeMap::new(),
            revision: FIRST_REVISION,
            history,
            remembered: remembered.max(1),
        };
        let wake = RESOURCES.iter().map(|_| watch::channel(0).0).collect();
        Self {
            inner: Mutex::new(inner),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs a transaction: all it writes becomes visible at once.
    pub fn transact<R>(&self, work: impl FnOnce(&mut Txn<'_>) -> R) -> R {
        let mut inner = self.lock();
        let mut txn = Txn {
            inner: &mut inner,
            touched: Vec::new(),
        };
        let result = work(&mut txn);
        let touched = txn.touched;
        let revision = inner.revision;
        drop(inner);
        for resource in touched {
            self.wake[resource].send_replace(revision);
        }
        result
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.lock().objects.get(key).cloned()
    }

    /// All objects of a kind, in one namespace or all, as of a revision or of this moment.
    ///
    /// # Errors
    /// When the revision is forgotten.
    pub fn snapshot(
        &self,
        resource: ResourceId,
        namespace: Option<&str>,
        revision: Option<u64>,
    ) -> Result<(u64, Vec<Arc<Stored>>), Expired> {
        let inner = self.lock();
        let at = revision.unwrap_or(inner.revision).min(inner.revision);
        let history = &inner.history[resource];
        if at < history.horizon {
            return Err(Expired {
                oldest: history.horizon,
            });
        }
        let undo: Vec<_> = history
            .changes
            .iter()
            .rev()
            .take_while(|change| change.revision > at)
            .collect();
        if undo.is_empty() {
            return Ok((
                at,
                inner
                    .range(resource, namespace)
                    .map(|(_, stored)| stored.clone())
                    .collect(),
            ));
        }
        let mut objects: BTreeMap<&Key, &Arc<Stored>> = inner.range(resource, namespace).collect();
        for change in undo
            .into_iter()
            .filter(|change| namespace.is_none_or(|ns| ns == change.key.namespace))
        {
            match &change.previous {
                Some(previous) => objects.insert(&change.key, previous),
                None => objects.remove(&change.key),
            };
        }
        Ok((at, objects.into_values().cloned().collect()))
    }

    /// Up to `max` changes of a kind after a revision, and the revision up to which the caller has then seen everything.
    ///
    /// # Errors
    /// When changes after that revision are forgotten.
    pub fn changes_after(
        &self,
        resource: ResourceId,
        revision: u64,
        max: usize,
    ) -> Result<(Vec<Arc<Change>>, u64), Expired> {
        let inner = self.lock();
        let history = &inner.history[resource];
        if revision < history.horizon {
            return Err(Expired {
                oldest: history.horizon,
            });
        }
        let start = history
            .changes
            .partition_point(|change| change.revision <= revision);
        let changes: Vec<_> = history.changes.iter().skip(start).take(max).cloned().collect();
        let whole = start + changes.len() == history.changes.len();
        let upto = if whole {
            inner.revision
        } else {
            changes.last().map_or(revision, |change| change.revision)
        };
        Ok((changes, upto.max(revision)))
    }

    /// Wakes when a kind changes.
    pub fn subscribe(&self, resource: ResourceId) -> watch::Receiver<u64> {
        self.wake[resource].subscribe()
    }

    /// Forgets every change until the newest: what asks for less is told 410.
    pub fn compact(&self) -> u64 {
        let mut inner = self.lock();
        let revision = inner.revision;
        for history in &mut inner.history {
            history.changes.clear();
            history.horizon = revision;
        }
        revision
    }

    /// How many changes are held in memory.
    pub fn remembered(&self) -> usize {
        self.lock()
            .history
            .iter()
            .map(|history| history.changes.len())
            .sum()
    }
}

impl Inner {
    fn range<'a>(
        &'a self,
        resource: ResourceId,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Stored>)> {
        let start = Key::new(resource, namespace.unwrap_or_default(), "");
        self.objects.range(start..).take_while(move |(key, _)| {
            key.resource == resource && namespace.is_none_or(|namespace| namespace == key.namespace)
        })
    }
}

/// A transaction on the store.
#[derive(Debug)]
pub struct Txn<'a> {
    inner: &'a mut Inner,
    touched: Vec<ResourceId>,
}

impl Txn<'_> {
    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.inner.objects.get(key).cloned()
    }

    /// All objects of a kind, in one namespace or all.
    pub fn list(&self, resource: ResourceId, namespace: Option<&str>) -> Vec<Arc<Stored>> {
        self.inner
            .range(resource, namespace)
            .map(|(_, stored)| stored.clone())
            .collect()
    }

    /// Writes an object under the next revision.
    pub fn put(&mut self, resource: ResourceId, mut value: Value) -> Arc<Stored> {
        let key = Key::new(resource, object::namespace(&value), object::name(&value));
        let revision = self.next_revision();
        object::stamp(&mut value, "resourceVersion", revision.to_string());
        let stored = Arc::new(Stored::new(value, revision));
        let previous = self.inner.objects.insert(key.clone(), stored.clone());
        let kind = if previous.is_some() {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        self.remember(kind, key, stored.clone(), previous);
        stored
    }

    /// Removes an object, and returns its last version with the revision of the removal.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let previous = self.inner.objects.remove(key)?;
        let revision = self.next_revision();
        let mut value = previous.value.clone();
        object::metadata(&mut value).insert("resourceVersion".to_owned(), json!(revision.to_string()));
        let last = Arc::new(Stored::new(value, revision));
        self.remember(ChangeKind::Deleted, key.clone(), last.clone(), Some(previous));
        Some(last)
    }

    fn next_revision(&mut self) -> u64 {
        self.inner.revision += 1;
        self.inner.revision
    }

    fn remember(&mut self, kind: ChangeKind, key: Key, object: Arc<Stored>, previous: Option<Arc<Stored>>) {
        let resource = key.resource;
        let revision = object.revision;
        let history = &mut self.inner.history[resource];
        history.changes.push_back(Arc::new(Change {
            revision,
            kind,
            key,
            object,
            previous,
            line: OnceLock::new(),
        }));
        if history.changes.len() > self.inner.remembered
            && let Some(oldest) = history.changes.pop_front()
        {
            history.horizon = oldest.revision;
        }
        self.touched.push(resource);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::resources::by_plural, *};

    fn cm(name: &str, n: u64) -> Value {
        json!({"metadata": {"name": name, "namespace": "d"}, "data": {"n": n.to_string()}})
    }

    fn names(list: &[Arc<Stored>]) -> Vec<(String, String)> {
        let pair = |s: &Arc<Stored>| {
            (
                object::name(&s.value).to_owned(),
                object::text(&s.value, "data.n").to_owned(),
            )
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn a_namespace_is_a_range() {
        let (store, id) = (Store::new(10), by_plural("configmaps"));
        store.transact(|txn| {
            for namespace in ["a", "ab", "b"] {
                txn.put(id, json!({"metadata": {"name": "x", "namespace": namespace}}));
            }
        });
        assert_eq!(store.snapshot(id, Some("a"), None).unwrap().1.len(), 1);
        assert_eq!(store.snapshot(id, None, None).unwrap().1.len(), 3);
    }

    #[test]
    fn the_memory_is_bounded_and_says_so() {
        let (store, id) = (Store::new(3), by_plural("configmaps"));
        let start = store.revision();
        for n in 0..5 {
            store.transact(|txn| txn.put(id, cm("x", n)));
        }
        assert_eq!(store.remembered(), 3);
        assert_eq!(
            store.changes_after(id, start, 9).unwrap_err(),
            Expired { oldest: start + 2 }
        );
        assert_eq!(store.changes_after(id, start + 2, 9).unwrap().0.len(), 3);
        assert_eq!(store.changes_after(id, start + 2, 2).unwrap().1, start + 4);
        store.compact();
        assert!(store.changes_after(id, start + 4, 9).is_err());
        assert!(store.changes_after(id, start + 5, 9).unwrap().0.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// A list at an old revision is what a list was at that time.
        #[test]
        fn old_lists_are_what_they_were(writes in proptest::collection::vec((0_u8..4, any::<bool>()), 1..30)) {
            let (store, id) = (Store::new(1000), by_plural("configmaps"));
            let mut seen = vec![(store.revision(), Vec::new())];
            for (n, (name, keep)) in writes.into_iter().enumerate() {
                let name = format!("cm-{name}");
                store.transact(|txn| {
                    if keep {
                        txn.put(id, cm(&name, n as u64));
                    } else {
                        txn.remove(&Key::new(id, "d", &name));
                    }
                });
                let (revision, list) = store.snapshot(id, Some("d"), None).unwrap();
                seen.push((revision, names(&list)));
            }
            for (revision, then) in seen {
                let (at, list) = store.snapshot(id, Some("d"), Some(revision)).unwrap();
                prop_assert_eq!((at, names(&list)), (revision, then));
            }
        }
    }
}
