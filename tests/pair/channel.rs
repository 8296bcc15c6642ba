//! The logging channel fails while both halves are alive: both claim at once, one goes on, the other halts.

use lockstep::cluster::Part;

use crate::harness::{Pair, scale, wait_until};
use crate::load::Load;
use crate::relay::{Relay, Tamper, Way};

const CONNECTIONS: usize = 4;
const SOME: u64 = 150;
/// Times that both claim at once.
const CUTS: usize = 10;

/// A pair with a relay between its halves.
fn start(test: &str) -> Option<(Pair, Relay)> {
    let mut pair = Pair::services(test, |_| {})?;
    let mut relay = None;
    pair.start_halves(|backup| {
        let made = relay.insert(Relay::start(backup));
        made.address().to_string()
    });
    Some((pair, relay.expect("it was started")))
}

/// One copy goes on, with the same connections and everything they were told.
fn one_goes_on(pair: &mut Pair, load: Load) -> Part {
    let winner = pair.wait_for_the_loser();
    load.wait_for(SOME);
    pair.assert_one_live(winner, 2);
    load.stop().assert_unbroken().check(pair.port());
    winner
}

#[test]
fn cut_channel_with_heartbeats_going_on_leaves_one_copy() {
    let mut winners = Vec::new();
    for _ in 0..CUTS * scale() {
        let Some((mut pair, relay)) = start("cut_channel") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        relay.cut();
        winners.push(one_goes_on(&mut pair, load));
    }
    let primaries = winners.iter().filter(|winner| **winner == Part::Primary).count();
    eprintln!("{} cuts: the primary went on {primaries} times", winners.len());
}

/// Nothing breaks, nothing comes: heartbeats say that the other half lives, but entries get no ack.
#[test]
fn channel_that_swallows_everything_leaves_one_copy() {
    for _ in 0..scale() {
        let Some((mut pair, relay)) = start("channel_that_swallows") else { return };
        let load = Load::start(pair.port(), CONNECTIONS);
        load.wait_for(SOME);
        relay.swallow();
        one_goes_on(&mut pair, load);
    }
}

/// Bytes changed on their way, in either direction: whoever sees it ends the pairing with a clear word.
#[test]
fn damaged_replayed_and_foreign_frames_end_the_pairing_not_the_service() {
    for tamper in Tamper::ALL.repeat(scale()) {
        for way in [Way::ToBackup, Way::ToPrimary] {
            let Some((mut pair, relay)) = start("damaged_frames") else { return };
            let load = Load::start(pair.port(), CONNECTIONS);
            load.wait_for(SOME / 5);
            relay.tamper(way, tamper);
            wait_until("bytes to tamper with", || relay.tampered());
            one_goes_on(&mut pair, load);
            let victim = if way == Way::ToBackup { Part::Backup } else { Part::Primary };
            let said = match tamper {
                Tamper::Replay | Tamper::Truncate => ["is due", "is damaged", "not a logging channel frame"],
                Tamper::Flip => ["is damaged"; 3],
                Tamper::Oversize => ["allowed"; 3],
                Tamper::Version => ["version"; 3],
                Tamper::Garbage => ["not a logging channel frame"; 3],
            };
            let log = pair.log_text(victim);
            assert!(said.iter().any(|word| log.contains(word)), "{tamper:?} {way:?}: {said:?} not in\n{log}");
        }
    }
}
