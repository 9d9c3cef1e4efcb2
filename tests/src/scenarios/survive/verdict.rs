//! What a recorder noted, compared with what was done. Pure.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::recorder::Notes;

/// One change that was made.
#[derive(Clone, Debug)]
pub struct Change {
    /// Name of the object.
    pub name: String,
    /// The resourceVersion that the change gave it.
    pub version: u64,
    /// When it was answered.
    pub at: Instant,
}

/// How much of the truth came through, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Changes that were made.
    pub changes: usize,
    /// Of these, seen as events.
    pub seen: usize,
    /// Events that were one too many.
    pub duplicates: usize,
    /// Changes that were neither seen nor covered by a list after a 410.
    pub missing: usize,
    /// Events that came after a newer one.
    pub unordered: usize,
    /// The longest time between a change and its event.
    pub silence: f64,
}

/// Compares.
pub fn judge(changes: &[Change], notes: &Notes) -> Verdict {
    let mut seen: BTreeMap<(&str, &str), Vec<Instant>> = BTreeMap::new();
    for (name, version, at) in &notes.events {
        seen.entry((name, version)).or_default().push(*at);
    }
    let mut verdict = Verdict {
        changes: changes.len(),
        ..Verdict::default()
    };
    for change in changes {
        let version = change.version.to_string();
        match seen.get(&(change.name.as_str(), version.as_str())) {
            Some(times) => {
                verdict.seen += 1;
                verdict.duplicates += times.len() - 1;
                let waited = times[0].saturating_duration_since(change.at).as_secs_f64();
                verdict.silence = verdict.silence.max(waited);
            }
            // The first list is where the recorder began, no answer to a 410.
            None if notes
                .relists
                .iter()
                .skip(1)
                .any(|(_, list)| *list >= change.version) => {}
            None => verdict.missing += 1,
        }
    }
    let (mut newest, mut relists) = (0, notes.relists.iter().peekable());
    for (place, (_, version, _)) in notes.events.iter().enumerate() {
        while relists.next_if(|(events, _)| *events <= place).is_some() {
            newest = 0;
        }
        let version: u64 = version.parse().unwrap_or_default();
        verdict.unordered += usize::from(version <= newest);
        newest = newest.max(version);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(events: &[u64], relists: &[(usize, u64)]) -> Notes {
        let at = Instant::now();
        Notes {
            events: events
                .iter()
                .map(|version| ("a".to_owned(), version.to_string(), at))
                .collect(),
            relists: relists.to_vec(),
            ..Notes::default()
        }
    }

    fn changes(versions: &[u64]) -> Vec<Change> {
        let at = Instant::now();
        let change = |version: &u64| Change {
            name: "a".to_owned(),
            version: *version,
            at,
        };
        versions.iter().map(change).collect()
    }

    #[test]
    fn what_is_missing_twice_or_out_of_order_is_told() {
        let truth = changes(&[2, 3, 4]);
        let told = |events: &[u64], relists: &[(usize, u64)]| {
            let verdict = judge(&truth, &notes(events, relists));
            (
                verdict.seen,
                verdict.duplicates,
                verdict.missing,
                verdict.unordered,
            )
        };
        assert_eq!(told(&[2, 3, 4], &[(0, 1)]), (3, 0, 0, 0));
        assert_eq!(told(&[2, 4], &[(0, 1)]), (2, 0, 1, 0));
        assert_eq!(told(&[2, 3, 3, 4], &[(0, 1)]), (3, 1, 0, 1));
        assert_eq!(told(&[3, 2, 4], &[(0, 1)]), (3, 0, 0, 1));
        assert_eq!(
            told(&[2, 4], &[(0, 1), (1, 3)]),
            (2, 0, 0, 0),
            "a list after a 410 covers it"
        );
        assert_eq!(
            told(&[2], &[(0, 9)]),
            (1, 0, 2, 0),
            "the first list covers nothing"
        );
    }
}
