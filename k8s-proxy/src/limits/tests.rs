use super::*;
use crate::identity::Mode;
use proptest::prelude::*;

fn caller(name: &str) -> Caller {
    Caller::new(name, Vec::new(), Mode::Agent)
}

fn book(limits: Limits) -> Book {
    let book = Book::default();
    book.set(limits);
    book
}

fn cause(result: Result<Permit, Failure>) -> &'static str {
    result.map_or_else(
        |failure| {
            assert_eq!(failure.code.as_u16(), 429);
            assert!(failure.retry_after.is_some_and(|seconds| seconds >= 1));
            failure.cause
        },
        |_| "admitted",
    )
}

#[tokio::test(start_paused = true)]
async fn each_caller_has_its_own_places_and_gets_them_back() {
    let book = book(Limits {
        streams: 3,
        in_flight: 1,
        ..Limits::default()
    });
    let (one, two) = (caller("one"), caller("two"));
    let get = book.admit(&one, false).unwrap();
    assert_eq!(cause(book.admit(&one, false)), "limit_in_flight");
    let watches = [book.admit(&one, true).unwrap(), book.admit(&one, true).unwrap()];
    assert_eq!(cause(book.admit(&one, true)), "limit_streams");
    assert_eq!(cause(book.admit(&two, false)), "admitted");
    assert_eq!(cause(book.admit(&Caller::agent_core(), false)), "admitted");
    drop(get);
    assert_eq!(cause(book.admit(&one, false)), "admitted");
    drop(watches);
    assert_eq!(cause(book.admit(&one, true)), "admitted");
}

#[tokio::test(start_paused = true)]
async fn calls_a_second_come_back_with_time() {
    let book = book(Limits {
        requests_per_second: 2,
        ..Limits::default()
    });
    let one = caller("one");
    for expected in ["admitted", "admitted", "limit_requests", "limit_requests"] {
        assert_eq!(cause(book.admit(&one, false)), expected);
    }
    tokio::time::advance(Duration::from_millis(500)).await;
    assert_eq!(cause(book.admit(&one, false)), "admitted");
    assert_eq!(cause(book.admit(&one, false)), "limit_requests");
}

#[tokio::test(start_paused = true)]
async fn bytes_are_paced_and_debt_refuses_new_calls() {
    let rate = 1024 * 1024;
    let book = book(Limits {
        bytes_per_second: rate,
        ..Limits::default()
    });
    let one = caller("one");
    let mut permit = book.admit(&one, false).unwrap();
    let started = Instant::now();
    let mut moved = 0;
    while moved < 5 * 1024 * 1024 {
        std::future::poll_fn(|cx| permit.poll_ready(cx)).await;
        permit.pay(32 * 1024);
        moved += 32 * 1024;
    }
    // One second's worth comes at once, the rest at the rate.
    let took = started.elapsed().as_secs_f64();
    assert!((3.9..4.2).contains(&took), "{took}");
    permit.pay(2 * 1024 * 1024);
    let refused = book.admit(&one, false).unwrap_err();
    assert_eq!((refused.cause, refused.retry_after), ("limit_bytes", Some(3)));
    tokio::time::advance(Duration::from_millis(2100)).await;
    assert_eq!(cause(book.admit(&one, false)), "admitted");
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_holds_for_what_comes_and_lifting_it_again_too() {
    let owner = Limits {
        streams: 2,
        ..Limits::default()
    };
    let book = book(owner);
    let one = caller("one");
    let open = [book.admit(&one, true).unwrap(), book.admit(&one, true).unwrap()];
    book.set(owner.lowered_by(Limits {
        streams: 1,
        ..Limits::default()
    }));
    let [first, second] = open;
    drop(first);
    assert_eq!(cause(book.admit(&one, true)), "limit_streams");
    book.set(owner);
    assert_eq!(cause(book.admit(&one, true)), "admitted");
    drop(second);
}

fn limits() -> impl Strategy<Value = Limits> {
    (0_u32..5, 0_u32..5, 0_u32..5, 0_u64..5).prop_map(
        |(streams, in_flight, requests_per_second, bytes_per_second)| Limits {
            streams,
            in_flight,
            requests_per_second,
            bytes_per_second,
        },
    )
}

proptest! {
    #[test]
    fn nobody_can_raise_what_the_owner_set(owner in limits(), asked in limits()) {
        let result = owner.lowered_by(asked);
        let at_most = |result: u64, owner: u64| owner == 0 || (result > 0 && result <= owner);
        prop_assert!(at_most(result.streams.into(), owner.streams.into()));
        prop_assert!(at_most(result.in_flight.into(), owner.in_flight.into()));
        prop_assert!(at_most(result.requests_per_second.into(), owner.requests_per_second.into()));
        prop_assert!(at_most(result.bytes_per_second, owner.bytes_per_second));
        prop_assert_eq!(result, asked.lowered_by(owner));
        prop_assert_eq!(Limits::from_proto(Some(&result.to_proto())), result);
    }

    /// The account against a model that only counts.
    #[test]
    fn an_account_never_passes_its_bounds(
        limits in limits(), steps in prop::collection::vec((0_u8..4, any::<bool>(), 0_u64..2000), 0..60)
    ) {
        let mut account = Account::default();
        let mut now = Instant::now();
        let (mut open, mut admitted) = (Vec::new(), Vec::new());
        for (step, endless, millis) in steps {
            match step {
                0 | 1 => {
                    if account.admit(&limits, now, endless).is_ok() {
                        open.push(endless);
                        admitted.push(now);
                    }
                }
                2 => if let Some(endless) = open.pop() { account.leave(endless) },
                _ => now += Duration::from_millis(millis),
            }
            let in_flight = open.iter().filter(|endless| !**endless).count();
            prop_assert!(limits.streams == 0 || open.len() <= limits.streams as usize);
            prop_assert!(limits.in_flight == 0 || in_flight <= limits.in_flight as usize);
            let second = admitted.iter().filter(|at| now.saturating_duration_since(**at) < Duration::from_secs(1)).count();
            prop_assert!(limits.requests_per_second == 0 || second <= 2 * limits.requests_per_second as usize);
            prop_assert_eq!(account.is_open(), !open.is_empty());
        }
    }
}
