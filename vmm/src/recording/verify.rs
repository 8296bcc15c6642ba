//! Verifying a recording: the same log must lead to the same states and outputs, however the host disturbs
//! the run and wherever the run is stopped.
//!
//! A session checks every output and every digest of the log as it goes; here it is made to do so again and
//! again, with kicks that make the engine leave the guest at moments no log determines.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use logchannel::{Event, MachineDigest, Position};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use vmm_sys_util::signal::register_signal_handler;

use crate::assemble::Surroundings;
use crate::engine::{Engine as _, Kick};
use crate::random::Random;
use crate::recording::format::RecordingError;
use crate::recording::reader::Recording;
use crate::recording::session::{Arrival, Session, SessionError};

/// Longest time between two kicks.
const KICK_WITHIN_US: u64 = 2_000;

/// Where a recording ends, by replaying it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LastState {
    /// Its last position.
    pub position: u64,
    /// Its last entry.
    pub entries: u64,
    /// The machine there.
    #[serde(serialize_with = "crate::recording::verify::digest_fields")]
    pub digest: MachineDigest,
}

/// A digest as three hexadecimal numbers.
pub fn digest_fields<S: serde::Serializer>(digest: &MachineDigest, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeStruct as _;
    let mut fields = serializer.serialize_struct("MachineDigest", 3)?;
    for (name, value) in
        [("registers", digest.registers), ("devices", digest.devices), ("memory", digest.memory)]
    {
        fields.serialize_field(name, &format!("{value:016x}"))?;
    }
    fields.end()
}

/// How many outputs and digests of a recording a replay compares.
pub fn to_compare(recording: &Recording) -> Result<(u64, u64), RecordingError> {
    let (mut outputs, mut digests) = (0, 0);
    for entry in recording.log() {
        match entry?.event {
            Event::Output { .. } => outputs += 1,
            Event::Digest(_) => digests += 1,
            _ => {}
        }
    }
    Ok((outputs, digests))
}

/// Plays a session to the end of its log.
pub fn play(session: &mut Session) -> Result<LastState, SessionError> {
    session.run_to_end()?;
    last_state(session)
}

fn last_state(session: &mut Session) -> Result<LastState, SessionError> {
    let (position, entries) = (session.position().count, session.executed());
    Ok(LastState { position, entries, digest: session.digest()? })
}

/// Plays a session to `stops` random positions, one after the other, and then to the end of its log.
pub fn play_with_stops(session: &mut Session, stops: u64, seed: u64) -> anyhow::Result<LastState> {
    let (first, last) = (session.position().count, session.end().count);
    ensure!(last > first, "the recording has no positions to stop at");
    let mut random = Random::new(seed);
    let mut places: Vec<u64> = (0..stops).map(|_| first + random.below(last - first)).collect();
    places.sort_unstable();
    for place in places {
        let arrival = session.run_to(Position::at(place))?;
        ensure!(
            arrival == Arrival::There,
            "stopped at {} instead of {place}: {arrival:?}",
            session.position()
        );
        ensure!(session.position().count == place, "stopped at {}, asked for {place}", session.position());
    }
    Ok(play(session)?)
}

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Plays a session to the end of its log while its vCPU is kicked at random moments; how often it was.
pub fn play_kicked(
    path: &std::path::Path,
    around: &Surroundings,
    seed: u64,
) -> anyhow::Result<(LastState, u64)> {
    register_signal_handler(Signal::SIGUSR1 as i32, nothing).context("cannot install a signal handler")?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let (stop, sent) = (&stop, &sent);
        let player = scope.spawn(move || -> anyhow::Result<LastState> {
            let mut session = Session::with(Recording::open(path)?, around)?;
            let kick: Option<Kick> = session.machine().engine().kicker();
            tell.send((pthread_self(), kick)).context("nobody kicks")?;
            Ok(play(&mut session)?)
        });
        let kicker = scope.spawn(move || {
            let Ok((thread, kick)) = told.recv() else { return };
            let mut random = Random::new(seed);
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_micros(random.below(KICK_WITHIN_US)));
                match &kick {
                    Some(kick) => kick(),
                    // Not joined yet, so its id is still its own.
                    None if pthread_kill(thread, Signal::SIGUSR1).is_err() => return,
                    None => {}
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        while !player.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        let _ = kicker.join();
        let state = player.join().map_err(|_| anyhow::anyhow!("the replay panicked"))??;
        Ok((state, sent.load(Ordering::Relaxed)))
    })
}
