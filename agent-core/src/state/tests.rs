use super::{keeper::unite, *};
use proptest::prelude::*;

fn stored(pairs: &[(&str, &str)]) -> Stored {
    pairs.iter().copied().collect()
}

#[test]
fn a_known_value_is_never_blanked() {
    let mut known = stored(&[(AGENT_ID, "a"), (CLUSTER_ID, "c")]);
    known.merge(&stored(&[(AGENT_ID, ""), (PROXY_URL, "wss://p")]));
    known.set(CLUSTER_ID, "  ");
    assert_eq!(
        known,
        stored(&[(AGENT_ID, "a"), (CLUSTER_ID, "c"), (PROXY_URL, "wss://p")])
    );
}

#[test]
fn the_secret_counts_except_for_what_it_was_not_told() {
    let secret = stored(&[(AGENT_ID, "a"), (CLUSTER_ID, "old")]);
    let told = stored(&[(AGENT_ID, "x"), (CLUSTER_ID, "stale"), (PROXY_URL, "p")]);
    let united = unite(Some(secret.clone()), Some(told.clone()));
    assert_eq!(
        united,
        stored(&[(AGENT_ID, "a"), (CLUSTER_ID, "old"), (PROXY_URL, "p")])
    );
    let untold = told.with(UNSAVED, "true");
    assert_eq!(unite(Some(secret), Some(untold)).get(CLUSTER_ID), Some("stale"));
    assert_eq!(unite(None, None), Stored::default());
}

#[test]
fn values_are_not_in_the_debug_text() {
    let text = format!(
        "{:?}",
        stored(&[
            (AGENT_ID, "a"),
            (PROXY_TOKEN, "canary"),
            (CLUSTER_TOKEN, "canary")
        ])
    );
    assert!(text.contains("proxy_token") && !text.contains("canary"), "{text}");
}

proptest! {
    #[test]
    fn no_merge_loses_a_name(
        old in proptest::collection::btree_map("[a-c]", "[x-z]?", 0..3),
        new in proptest::collection::btree_map("[a-c]", "[x-z]?", 0..3),
    ) {
        let before: Stored = old.iter().collect();
        let newer: Stored = new.iter().collect();
        let mut after = before.clone();
        after.merge(&newer);
        for (name, _) in before.iter() {
            prop_assert!(after.get(name).is_some_and(|value| !value.is_empty()));
        }
        for (name, value) in newer.iter() {
            prop_assert_eq!(after.get(name), Some(value));
        }
    }
}
