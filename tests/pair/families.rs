//! Both families of addresses: a whole pair, its disk server and its network over each, and a failover.

use std::net::TcpListener;

use lockstep::cluster::Part;

use crate::harness::{Pair, wait_until};
use crate::load::Load;

/// Runs longer than the timeout with the guest idle, so that only heartbeats keep the pair together; then
/// fails over, and gets a new backup.
fn lives_and_fails_over(host: &str) {
    let test = format!("a pair at {host}");
    if TcpListener::bind(format!("{host}:0")).is_err() {
        eprintln!("SKIPPED {test}: this machine has no such address");
        return;
    }
    let at_host = |options: &mut lockstep::cluster::ClusterOptions| {
        options.host = host.into();
        options.pair_options = ["--timeout-ms", "300"].map(String::from).to_vec();
        // An idle pair: nothing is logged.
        options.vm_options.extend(["--digest-ms", "0"].map(String::from));
    };
    let Some(mut pair) = Pair::start_with(&test, at_host) else { return };
    for address in [pair.disk_address(), pair.backup_address()] {
        assert!(address.starts_with(host), "{address}");
    }
    let load = Load::start(pair.port(), 2);
    load.wait_for(50);
    let ledger = load.stop();
    // Ten timeouts by the pair's own clock: the process' uptime.
    let uptime = |pair: &Pair| pair.status(Part::Backup).unwrap()["uptime_s"].as_f64().unwrap();
    let from = uptime(&pair);
    wait_until("ten timeouts to pass", || uptime(&pair) - from > 3.0);
    pair.wait_for_state(Part::Primary, "Replicating");
    pair.wait_for_state(Part::Backup, "Following");
    assert_eq!(pair.holding().holding.generation, 1);
    let value = ledger.check(pair.port());
    pair.kill(Part::Primary).unwrap();
    pair.assert_one_live(Part::Backup, 2);
    pair.promote_backup().unwrap();
    pair.start_backup().unwrap();
    let socket = pair.control(Part::Primary);
    let words = ["replicate", socket.to_str().unwrap(), "--to", pair.backup_address(), "--wait"];
    let mut command = pair.spawn("replicate", &words);
    assert_eq!(command.exit_code(), 0, "{}", command.output());
    pair.wait_for_state(Part::Backup, "Following");
    assert_eq!(ledger.check(pair.port()), value);
}

#[test]
fn a_pair_over_ipv4_lives_and_fails_over() {
    lives_and_fails_over("127.0.0.1");
}

#[test]
fn a_pair_over_ipv6_lives_and_fails_over() {
    lives_and_fails_over("[::1]");
}
