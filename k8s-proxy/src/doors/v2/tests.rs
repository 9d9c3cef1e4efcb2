//! What the link does with its calls, without a link.

use http_body::Body as _;

use super::calls::Calls;
use crate::streams::{Cancel, CancelReason};

#[tokio::test]
async fn ended_calls_are_forgotten_and_open_ones_cancelled() {
    let calls = Calls::default();
    for _ in 0..1000 {
        drop(calls.open(Cancel::default(), None));
    }
    let cancel = Cancel::default();
    let slot = calls.open(cancel.clone(), None);
    assert!(!calls.look().window_full);
    calls.cancel(CancelReason::ConnectionLost, |_| true);
    assert_eq!(cancel.reason(), Some(CancelReason::ConnectionLost));
    drop(slot);
    assert_eq!(calls.look().ended, 0);
}

#[test]
fn a_refusal_knows_its_length() {
    let body = super::calls::CallBody::Full(bytes::Bytes::from_static(b"{}"));
    assert_eq!(body.size_hint().exact(), Some(2));
}
