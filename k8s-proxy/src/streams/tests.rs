use super::*;
use crate::identity::Mode;
use futures_util::FutureExt as _;
use prometheus::IntGauge;
use proptest::prelude::*;
use std::collections::VecDeque;

fn new(path: &str, watch: bool) -> NewStream {
    NewStream {
        door: "http".into(),
        request_id: String::new(),
        caller: Arc::new(Caller::new("u", Vec::new(), Mode::Agent)),
        who: Caller::new("u", Vec::new(), Mode::Agent).who(),
        method: http::Method::GET,
        target: Arc::new(Target {
            path: path.to_owned(),
            watch,
            ..Target::default()
        }),
        endless: watch,
        cancel: Cancel::default(),
        stop: None,
    }
}

fn table(limit: usize, bytes: usize) -> StreamTable {
    StreamTable::new(limit, Budget::new(bytes, IntGauge::new("x", "x").unwrap()))
}

#[test]
fn the_first_reason_stands() {
    let cancel = Cancel::default();
    assert_eq!(cancel.reason(), None);
    cancel.cancel(CancelReason::Operator);
    cancel.cancel(CancelReason::Draining);
    assert_eq!(cancel.reason(), Some(CancelReason::Operator));
}

#[test]
fn watchers_of_the_table_see_each_call_open_and_close() {
    let table = table(2, 0);
    let mut events = table.subscribe();
    drop(table.open(new("/a", true)));
    let seen = |event: v1::StreamEvent| (event.kind(), event.stream.unwrap().path);
    assert_eq!(seen(events.try_recv().unwrap()), (Kind::Opened, "/a".to_owned()));
    assert_eq!(seen(events.try_recv().unwrap()), (Kind::Closed, "/a".to_owned()));
}

#[test]
fn a_full_table_keeps_places_for_agent_core() {
    let table = table(1, 0);
    let first = table.open(new("/a", true)).unwrap();
    assert!(table.open(new("/a", true)).is_none());
    let ours = || NewStream {
        caller: Arc::new(Caller::agent_core()),
        ..new("/a", false)
    };
    let open: Vec<_> = (0..RESERVED).map(|_| table.open(ours()).unwrap()).collect();
    assert!(table.open(ours()).is_none());
    drop((first, open));
    assert!(table.open(new("/a", true)).is_some());
}

#[tokio::test(start_paused = true)]
async fn short_of_memory_the_longest_stalled_goes_first_and_no_further_than_needed() {
    let table = table(10, 250);
    let open: Vec<_> = (0..4).map(|_| table.open(new("/a", true)).unwrap()).collect();
    let mut holds: Vec<_> = open.iter().map(OpenStream::hold).collect();
    // The first two are stalled, the third has its bytes but a moment, and the fourth takes what it gets.
    open[1].stream.hand(table.now());
    tokio::time::advance(Duration::from_millis(10)).await;
    open[0].stream.hand(table.now());
    tokio::time::advance(Duration::from_secs(2)).await;
    open[2].stream.hand(table.now());
    for hold in &mut holds {
        hold.set(100);
    }
    assert_eq!((table.budget().used(), table.budget().excess()), (400, 150));
    assert_eq!(table.shed(), 2);
    let reasons: Vec<_> = open.iter().map(|open| open.stream.cancel.reason()).collect();
    let gone = Some(CancelReason::Memory);
    assert_eq!(reasons, [gone, gone, None, None]);
    assert_eq!(
        table.shed(),
        0,
        "who is ended already is not counted twice, and nobody else is stalled"
    );
    assert_eq!(open[2].stream.take(table.now()), Duration::ZERO);
    drop(holds);
    assert_eq!((table.budget().used(), open[0].stream.held.load(Relaxed)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn stalled_readers_are_counted_by_door() {
    let table = table(10, 1000);
    let [first, second] = [(); 2].map(|()| table.open(new("/a", true)).unwrap());
    first.stream.hand(table.now());
    second.stream.hand(table.now());
    assert!(table.stalled().is_empty(), "a moment is no stall");
    tokio::time::advance(Duration::from_secs(6)).await;
    let door: Arc<str> = "http".into();
    assert_eq!(table.stalled()[&door], 2);
    assert_eq!(first.stream.take(table.now()), Duration::from_secs(6));
    assert_eq!(table.stalled()[&door], 1);
    drop(second);
}

#[test]
fn an_ended_call_whose_reader_sleeps_loses_its_carrier_too() {
    let table = table(10, 0);
    let stop = CancellationToken::new();
    let with_stop = NewStream {
        stop: Some(stop.clone()),
        ..new("/a", true)
    };
    let open = table.open(with_stop).unwrap();
    table.cancel(open.stream.id, CancelReason::Operator);
    assert!(
        !stop.is_cancelled(),
        "a reader that is there hears of it by itself"
    );
    open.stream.hand(table.now());
    table.cancel(open.stream.id, CancelReason::Operator);
    assert!(stop.is_cancelled());
}

#[tokio::test]
async fn half_full_shares_do_not_wait_for_each_other() {
    let budget = Budget::new(100, IntGauge::new("x", "x").unwrap());
    let (mut one, mut two) = (budget.try_share(50).unwrap(), budget.try_share(50).unwrap());
    assert!(budget.try_share(1).is_none());
    one.grow(40).await;
    assert_eq!(budget.used(), 140, "one may go over");
    let mut second = Box::pin(two.grow(40));
    assert!((&mut second).now_or_never().is_none());
    one.grow(40).await;
    assert_eq!(budget.used(), 180, "and is not stopped again");
    drop(one);
    second.await;
    drop(two);
    assert_eq!(budget.used(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Open(bool),
    CloseOldest,
    CancelOldest,
    CancelEndless,
    Hold(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Open),
        Just(Step::CloseOldest),
        Just(Step::CancelOldest),
        Just(Step::CancelEndless),
        (0_usize..2000).prop_map(Step::Hold),
    ]
}

proptest! {
    #[test]
    fn the_table_is_a_bounded_set_of_calls(limit in 1_usize..5, steps in prop::collection::vec(step(), 0..40)) {
        let table = table(limit, 1000);
        let mut model: VecDeque<(OpenStream, Hold, usize, bool, bool)> = VecDeque::new();
        for step in steps {
            match step {
                Step::Open(watch) => match table.open(new("/x", watch)) {
                    Some(open) => {
                        let hold = open.hold();
                        model.push_back((open, hold, 0, watch, false));
                    }
                    None => prop_assert_eq!(model.len(), limit),
                },
                Step::CloseOldest => drop(model.pop_front()),
                Step::CancelOldest => match model.front_mut() {
                    Some((open, .., cancelled)) => {
                        prop_assert!(table.cancel(open.stream.id, CancelReason::Operator));
                        *cancelled = true;
                    }
                    None => prop_assert!(!table.cancel(1, CancelReason::Operator)),
                },
                Step::CancelEndless => {
                    table.cancel_endless(CancelReason::Draining);
                    for (.., watch, cancelled) in &mut model {
                        *cancelled |= *watch;
                    }
                }
                Step::Hold(bytes) => {
                    if let Some((_, hold, held, ..)) = model.back_mut() {
                        hold.set(bytes);
                        *held = bytes;
                    }
                }
            }
            let counts = table.counts();
            prop_assert!(counts.open <= limit);
            prop_assert_eq!(counts.open, model.len());
            prop_assert_eq!(counts.watches, model.iter().filter(|(.., watch, _)| *watch).count());
            let ids: Vec<_> = table.list().iter().map(|stream| stream.id).collect();
            let expected: Vec<_> = model.iter().map(|(open, ..)| open.stream.id).collect();
            prop_assert_eq!(ids, expected);
            let waiting: usize = model.iter().map(|(_, _, held, ..)| held).sum();
            prop_assert_eq!(table.budget().used(), waiting);
            prop_assert_eq!(table.budget().excess(), waiting.saturating_sub(1000));
            for (open, _, held, _, cancelled) in &model {
                prop_assert_eq!(open.stream.held.load(Relaxed), *held);
                prop_assert_eq!(open.stream.cancel.reason().is_some(), *cancelled);
            }
        }
    }
}
