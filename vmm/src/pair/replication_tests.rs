//! Tests of attempts.

use super::*;

#[test]
fn attempts_come_one_at_a_time_and_say_how_they_ended() {
    let replication = Arc::new(Replication::default());
    assert_eq!(replication.status(), None);
    let first = replication.attempt("a:1").unwrap();
    assert_eq!(replication.attempt("b:2").unwrap_err(), "a:1");
    first.transferring();
    first.sent(10);
    first.sent(5);
    assert_eq!(replication.attempt("b:2").unwrap_err(), "a:1");
    first.fail(&anyhow::anyhow!("no room").context("writing"));
    drop(first);
    let last = replication.status().unwrap();
    assert_eq!((last.attempt, last.state, last.bytes), (1, AttemptState::Failed, 15));
    assert_eq!(last.error.as_deref(), Some("writing: no room"));

    drop(replication.attempt("b:2").unwrap());
    let last = replication.status().unwrap();
    assert_eq!((last.attempt, last.state), (2, AttemptState::Failed));
    assert!(last.error.unwrap().contains("standard error"));

    replication.attempt("c:3").unwrap().done();
    let last = replication.status().unwrap();
    assert_eq!((last.to.as_str(), last.state, last.error), ("c:3", AttemptState::Done, None));
}
