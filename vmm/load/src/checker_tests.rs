//! Histories that are right pass, histories with one thing wrong do not.

use super::*;
use crate::random::Random;

/// A correct machine served these operations one after the other at random moments inside their intervals.
fn valid(seed: u64, operations: usize) -> History {
    let mut random = Random::new(seed);
    let (clients, keys) = (4u32, 3u32);
    let mut free_at = vec![0u64; clients as usize];
    let mut planned = Vec::new();
    for n in 0..operations {
        let client = random.below(u64::from(clients)) as u32;
        let invoked = free_at[client as usize] + 1 + random.below(20);
        let effect = invoked + random.below(50);
        let answered = effect + 1 + random.below(50);
        free_at[client as usize] = answered;
        let key = random.below(u64::from(keys)) as u32;
        let request = match random.below(4) {
            0 => Request::Increment,
            1 => Request::Set { key, value: n as u64 + 1 },
            2 => Request::Get { key },
            _ => Request::Append { bytes: 2 },
        };
        planned.push((effect, client, request, invoked, answered));
    }
    planned.sort_by_key(|plan| plan.0);
    let mut history = History { final_values: vec![0; 3], final_lengths: vec![0; 4], ..History::default() };
    let mut counter = 0;
    for (_, client, request, invoked_ns, answered) in planned {
        let result = match request {
            Request::Increment => {
                counter += 1;
                counter
            }
            Request::Set { key, value } => {
                history.final_values[key as usize] = value;
                0
            }
            Request::Get { key } => history.final_values[key as usize],
            Request::Append { bytes } => {
                history.final_lengths[client as usize] += u64::from(bytes);
                history.final_lengths[client as usize]
            }
        };
        // Some answers never reach their client.
        let answered_ns =
            (random.below(20) != 0 || matches!(request, Request::Append { .. })).then_some(answered);
        history.operations.push(Operation { client, request, invoked_ns, answered_ns, result });
    }
    history.final_counter = Some(counter);
    history
}

#[test]
fn what_one_machine_answered_is_accepted() {
    for seed in 0..300 {
        let verdict = check(&valid(seed, 200));
        assert!(verdict.is_linearizable(), "seed {seed}: {:?}", verdict.violations);
    }
}

fn answered(history: &History, wanted: impl Fn(&Request) -> bool) -> Vec<usize> {
    let fits = |o: &Operation| o.answered_ns.is_some() && wanted(&o.request);
    (0..history.operations.len()).filter(|index| fits(&history.operations[*index])).collect()
}

fn all_caught(name: &str, mutate: impl Fn(&mut History, &mut Random)) {
    for seed in 0..100 {
        let mut history = valid(seed, 200);
        mutate(&mut history, &mut Random::new(seed ^ 0xabcd));
        assert!(!check(&history).is_linearizable(), "{name}: seed {seed} was not caught");
    }
}

fn pick(candidates: &[usize], random: &mut Random) -> usize {
    candidates[random.below(candidates.len() as u64) as usize]
}

#[test]
fn a_lost_increment_is_caught() {
    all_caught("an increment given twice", |history, random| {
        let increments = answered(history, |r| *r == Request::Increment);
        let result = |index: &usize| history.operations[*index].result;
        let followed = |index: &&usize| increments.iter().any(|other| result(other) == result(index) + 1);
        let from = pick(&increments.iter().filter(followed).copied().collect::<Vec<_>>(), random);
        let value = history.operations[from].result;
        for operation in &mut history.operations {
            if operation.request == Request::Increment && operation.result > value {
                operation.result -= 1;
            }
        }
    });
}

#[test]
fn a_value_from_the_future_is_caught() {
    all_caught("a read of what nobody wrote", |history, random| {
        let read = pick(&answered(history, |r| matches!(r, Request::Get { .. })), random);
        history.operations[read].result = 1 << 50;
    });
}

#[test]
fn a_lost_last_write_is_caught() {
    all_caught("the last acknowledged write gone", |history, _| {
        // Two acknowledged writes after everything else, and a final read that knows only the first.
        let end = history.operations.iter().filter_map(|o| o.answered_ns).max().unwrap_or(0) + 500;
        for (at, value) in [(0, 1 << 40), (20, 1 << 41)] {
            let (request, invoked_ns) = (Request::Set { key: 1, value }, end + at);
            let answered_ns = Some(invoked_ns + 10);
            history.operations.push(Operation { client: 0, request, invoked_ns, answered_ns, result: 0 });
        }
        history.final_values[1] = 1 << 40;
    });
}

#[test]
fn a_stale_read_is_caught() {
    all_caught("a read of an overwritten value", |history, _| {
        let end = history.operations.iter().filter_map(|o| o.answered_ns).max().unwrap_or(0) + 500;
        let mut push = |at, request, result| {
            let (invoked_ns, answered_ns) = (end + at, Some(end + at + 5));
            history.operations.push(Operation { client: 0, request, invoked_ns, answered_ns, result });
        };
        push(0, Request::Set { key: 0, value: 1 << 40 }, 0);
        push(10, Request::Set { key: 0, value: 1 << 41 }, 0);
        push(20, Request::Get { key: 0 }, 1 << 40);
        push(30, Request::Set { key: 0, value: 1 << 42 }, 0);
        history.final_values[0] = 1 << 42;
    });
}

#[test]
fn a_counter_that_forgets_is_caught() {
    all_caught("the counter ends below what was acknowledged", |history, _| {
        history.final_counter = history.final_counter.map(|counter| counter.saturating_sub(20));
    });
    all_caught("the counter ends above what anybody asked", |history, _| {
        let unanswered = history.operations.iter().filter(|o| o.answered_ns.is_none()).count() as u64;
        history.final_counter = history.final_counter.map(|counter| counter + unanswered + 1);
    });
}

#[test]
fn a_lost_append_is_caught() {
    all_caught("an append gone", |history, random| {
        let append = pick(&answered(history, |r| matches!(r, Request::Append { .. })), random);
        history.operations[append].result -= 1;
    });
}

#[test]
fn increments_out_of_real_time_order_are_caught() {
    all_caught("two increments swapped", |history, _| {
        let end = history.operations.iter().filter_map(|o| o.answered_ns).max().unwrap_or(0) + 500;
        let counter = history.final_counter.unwrap_or(0);
        for (at, value) in [(0, counter + 2), (20, counter + 1)] {
            let (invoked_ns, answered_ns) = (end + at, Some(end + at + 5));
            let request = Request::Increment;
            history.operations.push(Operation { client: 1, request, invoked_ns, answered_ns, result: value });
        }
        history.final_counter = Some(counter + 2);
    });
}
