//! Lists: pages of one consistent revision.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    object,
    resources::{RESOURCES, Resource},
    route::{Query, Target},
    selector::Selector,
    status::Status,
    store::{Store, Stored},
};

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// What a list answers.
#[derive(Debug)]
pub struct Page {
    /// The revision that all pages show.
    pub revision: u64,
    /// The objects.
    pub items: Vec<Arc<Stored>>,
    /// Token for the next page, empty on the last.
    pub next: String,
    /// How many objects follow; not counted when a selector is in the way.
    pub remaining: Option<usize>,
}

/// What a continue token says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Continue {
    v: String,
    /// Zero: continue at the present, which is inconsistent and wanted after a 410.
    rv: u64,
    start: String,
}

impl Continue {
    fn encode(rv: u64, start: String) -> String {
        let token = Self {
            v: CONTINUE_VERSION.to_owned(),
            rv,
            start,
        };
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let token: Option<Self> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        token
            .filter(|token| token.v == CONTINUE_VERSION)
            .ok_or_else(|| Status::bad_request(format!("continue key is not valid: {text}")))
    }
}

/// Reads a page.
///
/// # Errors
/// 400 for options that make no sense, 410 for a forgotten revision, 504 for one that is not there yet.
pub fn page(store: &Store, target: &Target, selector: &Selector, query: &Query) -> Result<Page, Status> {
    let namespace = Some(target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let token = query.get("continue");
    let asked = revision(query)?;
    let exact = match query.get("resourceVersionMatch") {
        "" => false,
        "Exact" if asked.is_some_and(|asked| asked > 0) => true,
        "NotOlderThan" if asked.is_some() => false,
        _ => {
            return Err(Status::invalid_options(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
    };
    let current = store.revision();
    if let Some(asked) = asked.filter(|asked| *asked > current) {
        return Err(Status::too_large_revision(asked, current));
    }
    // The real API answers revision 0 from its cache, where it knows no pages.
    let limit = query
        .number("limit")
        .filter(|limit| *limit > 0 && asked != Some(0));
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));

    let (at, start) = if token.is_empty() {
        (asked.filter(|_| exact), String::new())
    } else {
        if asked.is_some_and(|asked| asked > 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Continue::decode(token)?;
        (Some(token.rv).filter(|rv| *rv > 0), token.start)
    };
    let (revision, all) = store
        .snapshot(target.resource, namespace, at)
        .map_err(|expired| {
            if token.is_empty() {
                return Status::too_old(at.unwrap_or_default(), expired.oldest);
            }
            let mut status = Status::expired(CONTINUE_EXPIRED);
            status.next = Some(Continue::encode(0, start.clone()));
            status
        })?;
    let mut wanted = all
        .into_iter()
        .filter(|stored| start.is_empty() || place(stored) > start);
    let items: Vec<_> = wanted
        .by_ref()
        .filter(|stored| selector.matches(&stored.value))
        .take(limit)
        .collect();
    let left = wanted.count();
    let more = left > 0 && items.len() == limit;
    let next = match items.last().filter(|_| more) {
        Some(last) => Continue::encode(revision, place(last)),
        None => String::new(),
    };
    Ok(Page {
        revision,
        items,
        next,
        remaining: (more && selector.is_empty()).then_some(left),
    })
}

/// `resourceVersion`, if there is one.
///
/// # Errors
/// 400 when it is no number.
pub fn revision(query: &Query) -> Result<Option<u64>, Status> {
    let text = query.get("resourceVersion");
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: \"{text}\""
        ))
    };
    text.parse().map(Some).map_err(bad)
}

/// The place of an object in the order of a list: a line feed sorts before all letters of names, so that
/// the order is that of the store.
fn place(stored: &Stored) -> String {
    format!(
        "{}\n{}",
        object::namespace(&stored.value),
        object::name(&stored.value)
    )
}

/// The page as a typed list.
pub fn render(kind: &Resource, page: &Page) -> Bytes {
    let size: usize = page.items.iter().map(|stored| stored.item().len() + 1).sum();
    let mut body = BytesMut::with_capacity(size + 256);
    body.put_slice(
        format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            kind.kind,
            kind.api_version(),
            metadata(page)
        )
        .as_bytes(),
    );
    for (place, stored) in page.items.iter().enumerate() {
        if place > 0 {
            body.put_u8(b',');
        }
        body.put_slice(&stored.item());
    }
    body.put_slice(b"]}");
    body.freeze()
}

/// The metadata of a list.
pub fn metadata(page: &Page) -> serde_json::Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if !page.next.is_empty() {
        metadata["continue"] = json!(page.next);
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}

/// The selector of a request.
///
/// # Errors
/// 400 when it cannot be read.
pub fn selector(target: &Target, query: &Query) -> Result<Selector, Status> {
    Selector::parse(
        &RESOURCES[target.resource],
        query.get("labelSelector"),
        query.get("fieldSelector"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::resources::by_plural, *};

    fn target() -> Target {
        Target {
            resource: by_plural("configmaps"),
            namespace: String::new(),
            name: String::new(),
            subresource: String::new(),
        }
    }

    fn put(store: &Store, namespace: &str, name: &str) {
        store.transact(|txn| {
            txn.put(
                by_plural("configmaps"),
                json!({"metadata": {"name": name, "namespace": namespace}}),
            )
        });
    }

    fn ask(store: &Store, query: &str) -> Result<Page, Status> {
        page(store, &target(), &Selector::default(), &Query::parse(query))
    }

    #[test]
    fn options_that_make_no_sense() {
        let store = Store::new(10);
        put(&store, "a", "x");
        for (query, code) in [
            ("resourceVersion=abc", 400),
            ("resourceVersion=99999", 504),
            ("resourceVersion=1&resourceVersionMatch=Exact", 410),
            ("resourceVersionMatch=Exact", 422),
            ("continue=%%%", 400),
        ] {
            assert_eq!(ask(&store, query).unwrap_err().code, code, "{query}");
        }
    }

    #[test]
    fn an_old_page_is_410_with_a_way_on() {
        let store = Store::new(10);
        for name in ["a", "b", "c"] {
            put(&store, "n", name);
        }
        let first = ask(&store, "limit=1").unwrap();
        assert_eq!(first.remaining, Some(2));
        put(&store, "n", "d");
        store.compact();
        let status = ask(&store, &format!("limit=1&continue={}", first.next)).unwrap_err();
        assert_eq!((status.code, status.reason), (410, "Expired"));
        let rest = ask(&store, &format!("continue={}", status.next.unwrap())).unwrap();
        assert_eq!(rest.items.len(), 3);
    }

    #[test]
    fn revision_0_knows_no_pages() {
        let store = Store::new(10);
        put(&store, "n", "a");
        put(&store, "n", "b");
        assert_eq!(ask(&store, "limit=1&resourceVersion=0").unwrap().items.len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Pages of any size, read while others write, are together one list of one moment.
        #[test]
        fn pages_are_one_list(names in proptest::collection::btree_set(("[ab]{1,2}", "[a-d]{1,3}"), 0..20), limit in 1_usize..7) {
            let store = Store::new(10_000);
            for (namespace, name) in &names {
                put(&store, namespace, name);
            }
            let whole: Vec<_> = ask(&store, "").unwrap().items.iter().map(|stored| place(stored)).collect();
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let page = ask(&store, &format!("limit={limit}&continue={token}")).unwrap();
                prop_assert!(page.items.len() <= limit);
                seen.extend(page.items.iter().map(|stored| place(stored)));
                if let Some(remaining) = page.remaining {
                    prop_assert_eq!(seen.len() + remaining, whole.len());
                }
                // Writers do not disturb the pages that follow.
                put(&store, "aa", &format!("new-{}", seen.len()));
                token = page.next;
                if token.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, whole);
        }
    }
}
