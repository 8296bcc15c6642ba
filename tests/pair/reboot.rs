//! Guests that reset their machine: it starts again in place, on both halves, and the pair stays one.
//!
//! minikv resets by the port of PC chipsets (`DEBUG RESTART`), at once and whatever is under
//! way. Its clients lose their connections and come back. LOCKSTEP_REBOOTS says how often the guest reboots
//! under load (default 5).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep::cluster::{ClusterOptions, Part};
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::harness::{DIVERGED, Pair, wait_until};

/// Acknowledged writes between two things that happen.
const SOME: u64 = 40;
const CLIENTS: usize = 3;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Exit code of a machine whose guest cannot run on.
const GUEST_STUCK: i32 = 6;

fn reboots() -> u64 {
    std::env::var("LOCKSTEP_REBOOTS").map_or(5, |text| text.parse().expect("a number of reboots"))
}

fn unlimited(options: &mut ClusterOptions) {
    options.vm_options.extend(["--reset-limit", "0", "--digest-ms", "200"].map(String::from));
    // A busy host keeps a process waiting; one that is killed is noticed at once all the same.
    options.pair_options.extend(["--timeout-ms", "10000"].map(String::from));
}

/// One client's key: the last value that was acknowledged, and the last that was sent.
#[derive(Debug, Default)]
struct Key {
    acked: AtomicU64,
    sent: AtomicU64,
}

/// Clients that write rising numbers, each to a key of its own, and connect anew whenever they must.
struct Writers {
    stop: Arc<AtomicBool>,
    keys: Arc<Vec<Key>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let keys: Arc<Vec<Key>> = Arc::new((0..CLIENTS).map(|_| Key::default()).collect());
        let threads = (0..CLIENTS).map(|index| {
            let (stop, keys) = (stop.clone(), keys.clone());
            spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    let _ = write(port, index, &keys[index], &stop);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, keys, threads }
    }

    fn acked(&self) -> u64 {
        self.keys.iter().map(|key| key.acked.load(Ordering::Acquire)).sum()
    }

    /// Waits until every client has got on.
    fn wait(&self) {
        let before: Vec<u64> = self.keys.iter().map(|key| key.acked.load(Ordering::Acquire)).collect();
        wait_until("acknowledged writes", || {
            let mut keys = self.keys.iter().zip(&before);
            keys.all(|(key, before)| key.acked.load(Ordering::Acquire) >= before + SOME / CLIENTS as u64)
        });
    }

    /// Every key holds what was acknowledged last, or what was sent since.
    fn check(&self, port: u16) {
        for (index, key) in self.keys.iter().enumerate() {
            let acked = key.acked.load(Ordering::Acquire);
            let mut found = None;
            wait_until("the guest to answer", || {
                found = connect(port).and_then(|mut client| client.number(&name(index))).ok();
                found.is_some()
            });
            let (found, sent) = (found.expect("an answer") as u64, key.sent.load(Ordering::Acquire));
            assert!((acked..=sent).contains(&found), "{}: {found}, acked {acked}, sent {sent}", name(index));
        }
    }

    fn stop(mut self, port: u16) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.threads.drain(..).for_each(|thread| thread.join().expect("a client"));
        self.check(port);
        self.acked()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().spawn(work).expect("a thread")
}

fn name(index: usize) -> String {
    format!("writer:{index}")
}

/// A connection that is given up when nothing comes: a guest that reset its machine knows nothing of a
/// request that it had received, and nobody tells the client.
fn connect(port: u16) -> std::io::Result<Client> {
    let client = Client::connect(port)?;
    client.closer()?.set_read_timeout(Some(ANSWER_WITHIN))?;
    Ok(client)
}

fn write(port: u16, index: usize, key: &Key, stop: &AtomicBool) -> std::io::Result<()> {
    let mut client = connect(port)?;
    while !stop.load(Ordering::Acquire) {
        let value = key.sent.load(Ordering::Acquire) + 1;
        key.sent.store(value, Ordering::Release);
        client.set(&name(index), &value.to_string())?;
        key.acked.store(value, Ordering::Release);
    }
    Ok(())
}

fn resets(pair: &Pair, part: Part) -> u64 {
    pair.status(part).ok().and_then(|status| status["live"]["resets"].as_u64()).unwrap_or(0)
}

/// Has the guest reset its machine; no answer comes.
fn restart(pair: &Pair) {
    wait_until("the guest to take a command", || {
        connect(pair.port()).is_ok_and(|client| client.restart().is_ok())
    });
}

/// The same, and waits until the log says so.
fn restarted(pair: &Pair, part: Part) {
    let before = resets(pair, part);
    restart(pair);
    wait_until("a reset in the log", || resets(pair, part) > before);
}

fn output(pair: &Pair, part: Part) -> String {
    pair.log_text(part)
}

#[test]
fn a_guest_reboots_again_and_again_under_load_and_the_pair_stays_one() {
    for engine in ["soft", "kvm"] {
        let started = Pair::start_with("a_guest_reboots", |options| {
            unlimited(options);
            options.vm_options.extend(["--engine", engine].map(String::from));
        });
        let Some(mut pair) = started else { continue };
        let writers = Writers::start(pair.port());
        for _ in 0..reboots() {
            writers.wait();
            restarted(&pair, Part::Primary);
            writers.check(pair.port());
        }
        writers.wait();
        assert!(resets(&pair, Part::Primary) >= reboots());
        pair.wait_for_state(Part::Primary, "Replicating");
        pair.wait_for_state(Part::Backup, "Following");
        assert_eq!(pair.holding().holding.generation, 1, "a reset is no failover");
        // The backup executed all of it: it goes live with the same machine.
        pair.kill(Part::Primary).unwrap();
        writers.wait();
        pair.assert_one_live(Part::Backup, 2);
        restarted(&pair, Part::Backup);
        writers.wait();
        let acked = writers.stop(pair.port());
        println!("{engine}: {} reboots, {acked} acknowledged writes, none lost", reboots() + 1);
    }
}

/// The guest is held in reset, because its disk does not answer; then the primary is killed.
#[test]
fn a_primary_that_dies_in_the_middle_of_a_reboot_leaves_it_to_its_backup() {
    let Some(mut pair) = Pair::start_with("killed_in_a_reboot", unlimited) else { return };
    let writers = Writers::start(pair.port());
    writers.wait();
    pair.signal(Part::DiskServer, Signal::SIGSTOP).unwrap();
    wait_until("a write in flight", || {
        pair.status(Part::Primary).is_ok_and(|status| status["live"]["disk_in_flight"].as_u64() > Some(0))
    });
    restart(&pair);
    wait_until("a reset in the log", || resets(&pair, Part::Primary) > 0);
    wait_until("the guest to be held for its requests", || {
        let status = pair.status(Part::Primary).unwrap();
        assert!(status["live"]["disk_in_flight"].as_u64() > Some(0), "{status}");
        status["live"]["waiting"] == true
    });
    pair.kill(Part::Primary).unwrap();
    pair.signal(Part::DiskServer, Signal::SIGCONT).unwrap();
    pair.wait_for_state(Part::Backup, "Alone");
    writers.wait();
    pair.assert_one_live(Part::Backup, 2);
    writers.stop(pair.port());
}

/// Killed at whatever moment of a reboot it is.
#[test]
fn a_primary_that_dies_at_any_moment_of_a_reboot_loses_nothing() {
    for round in 0..3 * crate::harness::scale() {
        let Some(mut pair) = Pair::start_with("killed_about_a_reboot", unlimited) else { return };
        let writers = Writers::start(pair.port());
        writers.wait();
        restart(&pair);
        // From none at all to as long as a boot takes.
        (0..round * 2).for_each(|_| drop(pair.status(Part::Primary)));
        pair.kill(Part::Primary).unwrap();
        pair.wait_for_state(Part::Backup, "Alone");
        writers.wait();
        pair.assert_one_live(Part::Backup, 2);
        writers.stop(pair.port());
    }
}

#[test]
fn a_backup_joins_a_guest_that_reboots_all_the_time() {
    let Some(mut pair) = Pair::services("joins_a_reboot", |options| {
        unlimited(options);
        options.replicated = false;
    }) else {
        return;
    };
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    let writers = Writers::start(pair.port());
    let (port, stop) = (pair.port(), Arc::new(AtomicBool::new(false)));
    let over = stop.clone();
    let restarting = spawn(move || {
        while !over.load(Ordering::Acquire) {
            let _ = connect(port).and_then(Client::restart);
        }
    });
    wait_until("resets", || resets(&pair, Part::Primary) >= 3);
    pair.start_backup().unwrap();
    let request = format!("replicate {}", pair.backup_address());
    let asked = lockstep::io::control::ask(&pair.control(Part::Primary), &request).unwrap();
    assert!(!asked.contains("error"), "{asked}");
    pair.wait_for_state(Part::Backup, "Following");
    let before = resets(&pair, Part::Primary);
    wait_until("more resets", || resets(&pair, Part::Primary) >= before + 3);
    pair.wait_for_state(Part::Primary, "Replicating");
    pair.kill(Part::Primary).unwrap();
    pair.wait_for_state(Part::Backup, "Alone");
    wait_until("resets of the backup", || resets(&pair, Part::Backup) >= 3);
    stop.store(true, Ordering::Release);
    restarting.join().unwrap();
    writers.wait();
    pair.assert_one_live(Part::Backup, 2);
    writers.stop(pair.port());
}

/// One reset too many within a minute: both halves say so, and show why.
#[test]
fn a_guest_that_resets_itself_again_and_again_ends_with_an_error_on_both_halves() {
    let limited = |options: &mut ClusterOptions| {
        options.vm_options.extend(["--reset-limit", "2"].map(String::from));
    };
    let Some(mut pair) = Pair::start_with("a_crash_loop", limited) else { return };
    for count in 1..=2 {
        restart(&pair);
        wait_until("a reset", || resets(&pair, Part::Primary) >= count);
        pair.wait_for_guest().unwrap();
    }
    let status = pair.status(Part::Primary).unwrap();
    assert_eq!(status["live"]["resets"], 2, "{status}");
    restart(&pair);
    for part in [Part::Primary, Part::Backup] {
        assert_eq!(pair.exit_code(part), GUEST_STUCK, "{}:\n{}", part.name(), pair.log_tail(part));
        let said = output(&pair, part);
        assert!(said.contains("the guest reset itself more than 2 times within a minute"), "{said}");
        assert!(said.contains("the console's last lines:\n  minikv"), "{said}");
    }
    assert_eq!(pair.holding().holding.generation, 1, "nobody claimed");
}

#[test]
fn a_guest_that_is_to_stop_stops() {
    let stop = |options: &mut ClusterOptions| {
        options.vm_options.extend(["--on-reset", "stop"].map(String::from));
    };
    let Some(mut pair) = Pair::start_with("to_stop", stop) else { return };
    restart(&pair);
    for part in [Part::Primary, Part::Backup] {
        assert_eq!(pair.exit_code(part), 0, "{}:\n{}", part.name(), pair.log_tail(part));
    }
    assert!(output(&pair, Part::Primary).contains("the guest asked for a reset"));
}

/// A half whose memory is not all zero when the guest starts again: the digest that follows finds it.
#[test]
fn memory_that_a_reset_leaves_behind_is_found_at_once() {
    let Some(mut pair) = Pair::services("stale_memory", unlimited) else { return };
    pair.options_mut().backup_environment = vec![("LOCKSTEP_PLANTED".into(), "stale-memory@0".into())];
    pair.start_halves(|backup| backup.to_string());
    let writers = Writers::start(pair.port());
    writers.wait();
    assert!(!pair.has_ended(Part::Backup), "nothing is wrong before the first reset");
    restart(&pair);
    assert_eq!(pair.exit_code(Part::Backup), DIVERGED, "{}", pair.log_tail(Part::Backup));
    let said = output(&pair, Part::Backup);
    assert!(said.contains("differing: memory"), "{said}");
    writers.wait();
    pair.assert_one_live(Part::Primary, 2);
    writers.stop(pair.port());
}
