//! Strangers at the port of a backup that waits: whatever they do, the backup waits on, and its primary gets
//! in.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use lockstep::cluster::Part;
use logchannel::message::Message;

use crate::crafted::{Noise, connect, hello, message, pair_config};
use crate::harness::Pair;

const MACHINE: [&str; 2] = ["--disk-size", "16"];
const SILENT: usize = 50;

/// Somebody who connects, says this much, and stays.
fn stranger(address: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(bytes);
    stream
}

#[test]
fn silent_connections_do_not_keep_the_primary_out() {
    let Some(mut pair) = Pair::services("silent_connections", |_| {}) else { return };
    pair.start_backup().unwrap();
    let address = pair.backup_address().to_string();
    let greeting = message(&Message::Hello(Box::new(hello(pair_config(&MACHINE)))));
    let mut strangers: Vec<TcpStream> = Vec::new();
    strangers.extend((0..SILENT).map(|_| stranger(&address, &[])));
    strangers.extend((0..10).map(|cut| stranger(&address, &greeting[..10 + cut * 5])));
    (0..10).for_each(|seed| drop(stranger(&address, &Noise(seed + 1).bytes(5000))));
    // A greeting, and nobody there any more.
    (0..10).for_each(|_| drop(stranger(&address, &greeting)));
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    pair.wait_for_state(Part::Backup, "Following");
    drop(strangers);
}

/// Past the bound of greetings the next one waits its turn, and past that of primaries it is told.
#[test]
fn more_strangers_than_there_is_room_for_are_turned_away_in_turn() {
    let Some(mut pair) = Pair::services("more_strangers", |_| {}) else { return };
    pair.start_backup().unwrap();
    let address = pair.backup_address().to_string();
    let _strangers: Vec<TcpStream> = (0..100).map(|_| stranger(&address, &[])).collect();
    let long = Duration::from_secs(60);
    let greet = || logchannel::tcp::connect(&address, &hello(pair_config(&MACHINE)), long);
    let welcomed: Vec<_> = (0..16).map(|_| greet().unwrap()).collect();
    let error = greet().unwrap_err().to_string();
    assert!(error.contains("16 other primaries are about to begin here"), "{error}");
    drop(welcomed);
    pair.wait_for_state(Part::Backup, "Waiting");
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    assert!(connect(&address, &hello(pair_config(&MACHINE)), 1).is_err(), "a backup has one primary");
}

/// A flood fills no log.
#[test]
fn a_flood_of_strangers_is_counted_not_told_one_by_one() {
    let Some(mut pair) = Pair::services("a_flood_of_strangers", |_| {}) else { return };
    pair.start_backup().unwrap();
    let address = pair.backup_address().to_string();
    (0..1000).for_each(|_| drop(stranger(&address, b"GET / HTTP/1.1\r\n\r\n")));
    pair.wait_for_state(Part::Backup, "Waiting");
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    let lines =
        pair.log_text(Part::Backup).lines().filter(|line| line.contains("refused a connection")).count();
    // Two minutes' worth, should the flood have taken so long.
    assert!((1..=200).contains(&lines), "{lines} lines");
}
