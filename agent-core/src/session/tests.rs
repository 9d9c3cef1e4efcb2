use proptest::prelude::*;

use super::*;

const BEAT: Duration = Duration::from_secs(5);
const POLICY: Policy = Policy {
    min: Duration::from_millis(500),
    max: Duration::from_secs(15),
    stable: Duration::from_secs(15),
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn session() -> Session {
    Session::new(BEAT, POLICY, 7)
}

fn loaded(cluster: Option<&str>) -> Session {
    let mut session = session();
    session.on(
        at(0),
        Event::Loaded {
            cluster: cluster.map(str::to_owned),
            current: true,
        },
    );
    session
}

fn active() -> Session {
    let mut session = loaded(Some("u"));
    assert_eq!(
        session.poll(at(0)),
        [Action::Beat {
            cluster: "u".to_owned()
        }]
    );
    session.on(at(0), Event::BeatAccepted);
    assert_eq!(session.phase(), Phase::Active);
    session
}

fn failed(reason: &str) -> Event {
    Event::RegistrationFailed {
        reason: reason.to_owned(),
        retry_after: None,
    }
}

fn refused() -> Event {
    Event::RegistrationRefused {
        sentence: "refused: change the token".to_owned(),
    }
}

fn not_registered() -> Event {
    Event::BeatRefused {
        reason: "cluster not registered".to_owned(),
    }
}

#[test]
fn nothing_is_registered_before_the_identity_is_read() {
    let mut session = session();
    session.on(at(0), Event::Waiting("state: k8s-proxy unreachable".to_owned()));
    assert_eq!(
        (session.phase(), session.reason()),
        (Phase::Loading, "state: k8s-proxy unreachable")
    );
    session.on(at(1), Event::TokenChanged);
    session.on(at(1), Event::RegistrationWanted);
    session.on(at(1), Event::BeatWanted);
    assert!(session.poll(at(3600)).is_empty() && session.wake().is_none());
}

#[test]
fn a_control_plane_that_is_down_at_the_start_is_tried_until_it_is_up() {
    let mut session = loaded(None);
    let mut now = at(0);
    for _ in 0..100 {
        assert_eq!(session.poll(now), [Action::Register { hint: None }]);
        assert!(session.poll(now).is_empty(), "one registration at a time");
        session.on(now, failed("connection refused"));
        assert_eq!(session.phase(), Phase::Unregistered);
        let wake = session.wake().unwrap();
        assert!(wake - now <= POLICY.max);
        now = wake;
    }
    session.poll(now);
    session.on(
        now,
        Event::Registered {
            cluster: "u".to_owned(),
        },
    );
    assert_eq!(
        session.poll(now),
        [Action::Beat {
            cluster: "u".to_owned()
        }],
        "the first beat is sent at once"
    );
}

#[test]
fn retry_after_is_honoured() {
    let mut session = loaded(None);
    session.poll(at(0));
    let wait = Some(at(40));
    session.on(
        at(0),
        Event::RegistrationFailed {
            reason: "503".to_owned(),
            retry_after: wait,
        },
    );
    assert!(session.wake().unwrap() >= at(40));
    let mut session = active();
    session.poll(at(5));
    session.on(
        at(5),
        Event::BeatFailed {
            reason: "429".to_owned(),
            retry_after: wait,
        },
    );
    assert!(session.wake().unwrap() >= at(45));
}

#[test]
fn only_the_first_registration_ends_the_process() {
    let mut session = loaded(None);
    session.poll(at(0));
    session.on(at(0), refused());
    assert_eq!(session.wake(), Some(Duration::ZERO));
    assert_eq!(
        session.poll(at(0)),
        [Action::Fail("refused: change the token".to_owned())]
    );

    let mut session = active();
    session.on(at(5), not_registered());
    assert_eq!(
        session.poll(at(5)),
        [Action::Register {
            hint: Some("u".to_owned())
        }]
    );
    session.on(at(5), refused());
    assert_eq!(session.phase(), Phase::Refused);
    assert!(session.poll(at(5)).is_empty());
}

#[test]
fn a_forgotten_cluster_is_registered_once_with_its_name_as_hint() {
    let mut session = active();
    session.on(at(5), not_registered());
    assert_eq!(session.phase(), Phase::Registering);
    assert_eq!(
        session.poll(at(5)),
        [Action::Register {
            hint: Some("u".to_owned())
        }]
    );
    session.on(at(5), not_registered());
    assert!(
        session.poll(at(100)).is_empty(),
        "a late second refusal starts nothing"
    );
    session.on(
        at(6),
        Event::Registered {
            cluster: "u2".to_owned(),
        },
    );
    assert_eq!(session.cluster(), Some("u2"));
    assert_eq!(
        session.poll(at(6)),
        [Action::Beat {
            cluster: "u2".to_owned()
        }]
    );
    session.on(at(6), Event::BeatAccepted);
    assert_eq!(session.phase(), Phase::Active);
    // And it may be forgotten again later.
    session.on(at(11), not_registered());
    assert_eq!(session.phase(), Phase::Registering);
}

fn registered_again() -> Session {
    let mut session = active();
    session.on(at(5), not_registered());
    assert_eq!(session.poll(at(5)).len(), 1);
    session.on(
        at(5),
        Event::Registered {
            cluster: "u".to_owned(),
        },
    );
    session
}

#[test]
fn a_control_plane_whose_replicas_learn_late_is_given_half_a_minute() {
    let mut session = registered_again();
    for beat in 1..=SETTLING_BEATS {
        let now = session.wake().unwrap();
        assert_eq!(
            session.poll(now),
            [Action::Beat {
                cluster: "u".to_owned()
            }],
            "beat {beat} is sent and nothing is registered"
        );
        session.on(now, not_registered());
        assert_eq!(session.phase(), Phase::Lapsed);
        assert!(session.reason().contains("not known everywhere yet"));
    }
    let now = session.wake().unwrap();
    assert_eq!(session.poll(now).len(), 1);
    session.on(now, Event::BeatAccepted);
    assert_eq!(session.phase(), Phase::Active);
    // Being forgotten after that is news again.
    session.on(now + BEAT, not_registered());
    assert_eq!(session.phase(), Phase::Registering);
}

#[test]
fn the_first_registration_may_settle_too() {
    let mut session = loaded(None);
    session.poll(at(0));
    session.on(
        at(0),
        Event::Registered {
            cluster: "u".to_owned(),
        },
    );
    session.poll(at(0));
    session.on(at(0), not_registered());
    assert!(
        session
            .poll(session.wake().unwrap())
            .iter()
            .all(|action| matches!(action, Action::Beat { .. }))
    );
}

#[test]
fn registering_and_refusing_in_turns_does_not_become_a_loop() {
    let mut session = registered_again();
    let mut now = at(5);
    for _ in 0..=SETTLING_BEATS {
        now = session.wake().unwrap().max(now);
        assert!(!session.poll(now).contains(&Action::Register {
            hint: Some("u".to_owned())
        }));
        session.on(now, not_registered());
    }
    assert_eq!(session.phase(), Phase::Refused);
    assert!(session.wake().unwrap() >= now + REFUSED_RETRY.0);
}

#[test]
fn a_refused_agent_tries_every_few_minutes_and_at_once_with_a_new_token() {
    let mut session = active();
    session.on(at(5), not_registered());
    session.poll(at(5));
    session.on(at(5), refused());
    for _ in 0..20 {
        let now = session.wake().unwrap();
        assert_eq!(
            session.poll(now),
            [Action::Register {
                hint: Some("u".to_owned())
            }]
        );
        session.on(now, refused());
        let pause = session.wake().unwrap() - now;
        assert!((REFUSED_RETRY.0..=REFUSED_RETRY.1).contains(&pause));
        assert_eq!(session.phase(), Phase::Refused);
    }
    session.on(at(9000), Event::TokenChanged);
    assert_eq!(
        session.poll(at(9000)),
        [Action::Register {
            hint: Some("u".to_owned())
        }]
    );
    session.on(
        at(9000),
        Event::Registered {
            cluster: "u".to_owned(),
        },
    );
    assert_eq!(session.phase(), Phase::Active);
}

#[test]
fn the_pace_is_exact_and_does_not_drift() {
    let mut session = active();
    for beat in 1..50 {
        let due = BEAT * beat;
        assert_eq!(session.wake(), Some(due));
        let late = due + Duration::from_millis(30);
        assert_eq!(session.poll(late).len(), 1);
        session.on(late, Event::BeatAccepted);
    }
}

#[test]
fn a_missed_beat_is_a_hiccup_and_three_are_a_lapse() {
    let mut session = active();
    for (index, phase) in [Phase::Active, Phase::Active, Phase::Lapsed]
        .into_iter()
        .enumerate()
    {
        let now = session.wake().unwrap();
        assert_eq!(session.poll(now).len(), 1);
        session.on(
            now,
            Event::BeatFailed {
                reason: "timed out".to_owned(),
                retry_after: None,
            },
        );
        assert_eq!(session.phase(), phase, "after {} misses", index + 1);
        let pause = session.wake().unwrap() - now;
        assert!(pause <= BEAT * 2);
    }
    assert_eq!(session.reason(), "timed out");
    session.on(at(60), Event::BeatAccepted);
    assert_eq!(session.phase(), Phase::Active);
}

#[test]
fn a_restart_beats_at_once_and_tells_only_what_changed() {
    let mut session = loaded(Some("u"));
    assert_eq!(session.phase(), Phase::Lapsed);
    assert_eq!(
        session.poll(at(0)),
        [Action::Beat {
            cluster: "u".to_owned()
        }]
    );
    let mut session = Session::new(BEAT, POLICY, 7);
    session.on(
        at(0),
        Event::Loaded {
            cluster: Some("u".to_owned()),
            current: false,
        },
    );
    let hint = Some("u".to_owned());
    assert_eq!(
        session.poll(at(0)),
        [
            Action::Register { hint },
            Action::Beat {
                cluster: "u".to_owned()
            }
        ]
    );
    // A registration that fails, or is refused, does not stop the beats.
    session.on(at(0), failed("503"));
    session.poll(session.wake().unwrap());
    session.on(at(1), refused());
    session.on(at(0), Event::BeatAccepted);
    assert_eq!(session.phase(), Phase::Active);
}

#[test]
fn a_drain_is_told_first_and_registers_nothing() {
    let mut session = active();
    session.on(at(7), Event::Drain);
    assert_eq!(
        session.poll(at(7)),
        [Action::Beat {
            cluster: "u".to_owned()
        }]
    );
    session.on(at(7), not_registered());
    session.on(at(7), Event::RegistrationWanted);
    session.on(at(8), Event::BeatAccepted);
    assert_eq!(session.phase(), Phase::Draining);
    assert!(session.poll(at(8)).is_empty());
    let mut session = loaded(None);
    session.on(at(1), Event::Drain);
    assert!(session.poll(at(100)).is_empty() && session.wake().is_none());
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Waiting("w".to_owned())),
        (any::<bool>(), any::<bool>()).prop_map(|(known, current)| Event::Loaded {
            cluster: known.then(|| "u".to_owned()),
            current
        }),
        Just(Event::Registered {
            cluster: "v".to_owned()
        }),
        Just(refused()),
        Just(failed("f")),
        Just(Event::BeatAccepted),
        Just(not_registered()),
        (0..100u64).prop_map(|wait| Event::BeatFailed {
            reason: "b".to_owned(),
            retry_after: Some(at(wait))
        }),
        Just(Event::TokenChanged),
        Just(Event::BeatWanted),
        Just(Event::RegistrationWanted),
        Just(Event::Drain),
    ]
}

proptest! {
    /// Whatever comes in whatever order: one registration at a time, nothing before the identity is read, and
    /// never an exit once a cluster is known.
    #[test]
    fn no_order_of_events_breaks_the_rules(events in proptest::collection::vec((any_event(), 0..30u64), 0..60)) {
        let mut session = session();
        let (mut now, mut open, mut read, mut known) = (at(0), false, false, false);
        for (event, wait) in events {
            now += at(wait);
            let answers = matches!(event, Event::Registered { .. } | Event::RegistrationFailed { .. }
                | Event::RegistrationRefused { .. });
            if answers && !open {
                continue;
            }
            open &= !answers;
            read |= matches!(event, Event::Loaded { .. });
            session.on(now, event);
            known |= session.cluster().is_some();
            for action in session.poll(now) {
                prop_assert!(read);
                match action {
                    Action::Register { .. } => {
                        prop_assert!(!open);
                        open = true;
                    }
                    Action::Beat { .. } => prop_assert!(known),
                    Action::Fail(_) => {
                        prop_assert!(!known);
                        return Ok(());
                    }
                }
            }
            prop_assert!(session.wake().is_none_or(|wake| wake > now || session.phase() == Phase::Loading));
        }
    }
}
