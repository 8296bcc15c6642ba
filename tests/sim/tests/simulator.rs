//! The simulator finds nothing in the protocol, and everything that is planted.

use lockstep_sim::{Bug, Run, Stats, repeat_command, run};

const SEEDS: u64 = 1_000;
const SEEDS_PER_BUG: u64 = 1_000;

/// Seeds that once violated an invariant, and why: see the commit that added each.
const SEEDS_OF_OLD: [u64; 1] = [1_003_333];

fn check(run_: &Run) -> Stats {
    let outcome = run(run_);
    if let Some(violation) = outcome.violation {
        panic!("seed {}: {violation}\nrepeat with: {}", run_.seed, repeat_command(run_));
    }
    outcome.stats
}

#[test]
fn no_seed_violates_an_invariant_and_everything_comes_up() {
    let mut sum = Stats::default();
    for seed in (0..SEEDS).chain(SEEDS_OF_OLD) {
        let stats = check(&Run { seed, ..Run::default() });
        sum.answered += stats.answered;
        sum.joined += stats.joined;
        sum.took_over += stats.took_over;
        sum.went_alone += stats.went_alone;
        sum.handed_over += stats.handed_over;
        sum.lost += stats.lost;
        sum.fenced += stats.fenced;
        sum.disk_reads += stats.disk_reads;
        sum.cannot_read += stats.cannot_read;
        sum.diverged += stats.diverged;
        sum.ended += stats.ended;
    }
    let counts = [
        ("requests answered", sum.answered),
        ("backups joined", sum.joined),
        ("backups took over", sum.took_over),
        ("primaries went on alone", sum.went_alone),
        ("primaries handed over", sum.handed_over),
        ("processes lost the test-and-set", sum.lost),
        ("processes were fenced", sum.fenced),
        ("reads of the disk by backups", sum.disk_reads),
        ("backups that could not read the disk", sum.cannot_read),
        ("backups diverged", sum.diverged),
        ("guests ended", sum.ended),
    ];
    for (what, count) in counts {
        assert!(count > 0, "{what}: never in {SEEDS} seeds; the simulator exercises too little: {sum:?}");
    }
}

#[test]
fn a_seed_repeats_a_run_exactly() {
    for seed in 0..25 {
        let one = Run { seed, ..Run::default() };
        assert_eq!(run(&one), run(&one), "seed {seed}");
    }
    let trace = |seed| run(&Run { seed, ..Run::default() }).trace;
    assert_ne!(trace(1), trace(2));
}

fn first_found(bug: Bug, blind: bool) -> Option<u64> {
    let found =
        |seed: &u64| run(&Run { seed: *seed, bug: Some(bug), blind, narrate: false }).violation.is_some();
    (0..SEEDS_PER_BUG).find(found)
}

#[test]
fn every_planted_bug_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<_> = Bug::ALL.into_iter().filter(|bug| first_found(*bug, false).is_none()).collect();
    assert_eq!(missed, [], "not found in {SEEDS_PER_BUG} seeds");
}

#[test]
fn every_planted_bug_is_found_by_what_clients_and_disk_see_alone() {
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<_> = Bug::ALL.into_iter().filter(|bug| first_found(*bug, true).is_none()).collect();
    assert_eq!(missed, [], "not found in {SEEDS_PER_BUG} seeds");
}
