//! The generation of a start: won when no other copy holds the machine or may return to it, given back when
//! the machine has ended.
//!
//! ```text
//!   look ─▶ held by a copy that is connected? ── yes ──▶ refused (exit code 3)
//!                    │ no
//!           may it return? ── yes ──▶ wait, and look again
//!                    │ no
//!           (a backup is greeted) ─▶ claim ─▶ run ─▶ the guest ends ─▶ release
//! ```
//!
//! The claim is decided by the disk server, which looks again: what was seen before is for people, and so
//! that nobody waits in the middle of forming a pair.

use std::time::Duration;

use anyhow::Context;
use disk_server::Embedded;
use disk_server::client::{ClientError, DiskClient, Start};
use disk_server::protocol::VmState;
use logchannel::Generation;

use crate::pair::host::OtherCopyLive;
use crate::pair::threads::DiskAddress;

/// How often a holder that may return is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often somebody who waits is told how long.
const TELL_EVERY_MS: u64 = 5_000;

/// How long the disk server may take to say whether another copy is live.
const LOOK: Duration = Duration::from_secs(5);

/// Waits while the copy that held the machine before may return. Fails if it is there.
pub(super) fn wait_until_free(address: &DiskAddress) -> anyhow::Result<()> {
    let client = DiskClient::connect(&address.server, LOOK);
    let mut client = client.map_err(|error| explained(address, error))?;
    let mut state = client.query(&address.vm).map_err(|error| explained(address, error))?;
    wait(&mut client, address, &mut state)
}

/// Opens the disk and wins the next generation.
pub(super) fn win(address: &DiskAddress, take_over: bool) -> anyhow::Result<(Generation, DiskClient)> {
    let (mut client, opened) = address.open().map_err(|error| explained(address, error))?;
    let mut state = opened.state;
    loop {
        match client.start(&address.vm, state.holding.generation, address.claimant, take_over)? {
            Start::Won(generation) => return Ok((generation, client)),
            Start::Lost(holding) => {
                let (vm, generation) = (address.vm.clone(), holding.generation);
                return Err(OtherCopyLive::StartedNow { vm, generation }.into());
            }
            Start::Held(held) => {
                state = held;
                wait(&mut client, address, &mut state)?;
            }
        }
    }
}

/// Waits until the holder in `state` may not return any more.
fn wait(client: &mut DiskClient, address: &DiskAddress, state: &mut VmState) -> anyhow::Result<()> {
    let mut told = None;
    loop {
        if state.holder_connected {
            let (vm, generation) = (address.vm.clone(), state.holding.generation);
            let holder = state.holding.holder.unwrap_or(0);
            return Err(OtherCopyLive::Connected { vm, generation, holder }.into());
        }
        let left = state.may_return_ms;
        if left == 0 {
            return Ok(());
        }
        match told {
            None => {
                eprintln!(
                    "lockstep: {} was run by {:032x} (generation {}), which has no connection to the disk \
                     server now and may return: starting in {} s unless it does",
                    address.vm,
                    state.holding.holder.unwrap_or(0),
                    state.holding.generation,
                    left.div_ceil(1000)
                );
                told = Some(left);
            }
            Some(before) if left + TELL_EVERY_MS <= before => {
                eprintln!("lockstep: starting in {} s", left.div_ceil(1000));
                told = Some(left);
            }
            Some(_) => {}
        }
        std::thread::sleep(LOOK_EVERY.min(Duration::from_millis(left)));
        *state = client.query(&address.vm)?;
    }
}

/// Tells the disk server that this process, which held the machine, has ended.
pub(super) fn release(address: &DiskAddress, generation: Generation) -> Result<(), ClientError> {
    let mut client = DiskClient::connect(&address.server, Duration::from_secs(2))?;
    client.release(&address.vm, generation, address.claimant)
}

/// What to do about a disk that cannot be opened.
fn explained(address: &DiskAddress, error: ClientError) -> anyhow::Error {
    let server = &address.server;
    if matches!(error, ClientError::Unreachable { .. }) && !Embedded::is_address(server) {
        return anyhow::Error::new(error).context(format!(
            "no disk server answers at {server}: start one with `lockstep disk-server --data DIR --listen \
             ADDRESS`, or say where one is (--disk-server)"
        ));
    }
    let context = format!("cannot open disk {} of virtual machine {}", address.disk, address.vm);
    Err::<(), _>(error).context(context).expect_err("just made")
}
