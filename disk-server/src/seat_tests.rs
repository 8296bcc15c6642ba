//! Seats: the newest connection of a claimant is the only one that counts.

use super::*;

const A: Claimant = 0xaaaa;
const B: Claimant = 0xbbbb;

fn settled(seats: &Seats, claimant: Claimant, connection: Number) -> (Place, Option<Number>) {
    let (place, older) = seats.take(claimant, connection).unwrap();
    place.settle().unwrap();
    (place, older)
}

#[test]
fn a_newer_connection_supersedes_older_ones_of_its_claimant_only() {
    let seats = Seats::default();
    let (first, older) = settled(&seats, A, 1);
    assert_eq!(older, None);
    let (other, older) = settled(&seats, B, 0);
    assert_eq!(older, None);
    drop(first.enter().unwrap());
    let (second, older) = settled(&seats, A, 2);
    assert_eq!(older, Some(1));
    assert!(first.is_superseded() && !second.is_superseded() && !other.is_superseded());
    assert_eq!(first.enter().unwrap_err(), Superseded);
    assert_eq!(first.settle(), Err(Superseded));
    drop((second.enter().unwrap(), other.enter().unwrap()));
}

#[test]
fn an_open_that_was_overtaken_comes_too_late() {
    let seats = Seats::default();
    let (newer, _) = settled(&seats, A, 7);
    assert_eq!(seats.take(A, 6).unwrap_err(), Superseded);
    drop(newer.enter().unwrap());
}

#[test]
fn places_of_a_forgotten_seat_stay_superseded() {
    let seats = Seats::default();
    let (first, _) = settled(&seats, A, 1);
    let (second, _) = settled(&seats, A, 2);
    seats.leave(&first);
    assert!(!second.is_superseded(), "an older one takes nothing with it");
    seats.leave(&second);
    assert!(lock(&seats.0).is_empty());
    assert!(first.is_superseded());
    let (third, older) = settled(&seats, A, 3);
    assert_eq!(older, None);
    assert!(first.is_superseded() && !third.is_superseded());
}

#[test]
fn a_newer_connection_waits_for_the_request_inside() {
    let seats = Seats::default();
    let (first, _) = settled(&seats, A, 1);
    let finished = Mutex::new(false);
    std::thread::scope(|scope| {
        let inside = first.enter().unwrap();
        let (second, _) = seats.take(A, 2).unwrap();
        let finished = &finished;
        let waiting = scope.spawn(move || second.settle().map(|()| *lock(finished)));
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        *lock(finished) = true;
        drop(inside);
        assert_eq!(waiting.join().unwrap(), Ok(true));
    });
}

#[test]
fn who_waits_can_be_superseded() {
    let seats = Seats::default();
    let (first, _) = settled(&seats, A, 1);
    std::thread::scope(|scope| {
        let inside = first.enter().unwrap();
        let (second, _) = seats.take(A, 2).unwrap();
        let waiting = scope.spawn(move || second.settle());
        let (third, older) = seats.take(A, 3).unwrap();
        assert_eq!(older, Some(2));
        assert_eq!(waiting.join().unwrap(), Err(Superseded));
        drop(inside);
        assert_eq!(third.settle(), Ok(()));
    });
}

/// The promise itself, with threads: once `settle` has returned, nothing older changes anything.
#[test]
fn after_settling_nothing_older_is_executed() {
    let seats = Seats::default();
    let last = Mutex::new(0);
    std::thread::scope(|scope| {
        for number in 1..=100 {
            let (place, _) = seats.take(A, number).unwrap();
            place.settle().unwrap();
            *lock(&last) = number;
            let last = &last;
            scope.spawn(move || {
                while let Ok(_inside) = place.enter() {
                    assert_eq!(*lock(last), number);
                    std::thread::yield_now();
                    *lock(last) = number;
                }
            });
        }
        settled(&seats, A, 101);
        assert_eq!(*lock(&last), 100);
    });
    assert_eq!(*lock(&last), 100);
}
