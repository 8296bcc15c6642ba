//! Faults that tests plant in one half of a pair, to see that digests catch them and `diverge` finds them.
//!
//! Only in what is built for tests (feature `planted-faults`). A process reads `LOCKSTEP_PLANTED` =
//! `KIND@POSITION` once; the fault acts from that position on, wherever a replay begins:
//!
//! | kind | from the position on |
//! |---|---|
//! | `host-clock` | the ACPI timer tells the host's time |
//! | `stale-dma` | the last sector of what a disk read brings does not reach the guest's buffer |
//! | `stale-memory` | a reset leaves a byte of the guest's memory as it was not at power-on |
//! | `lost-invalidation` | code that was executed, and that the guest overwrites, is executed as it was |
//! | the names of `softcpu::Mistake` | the translator makes the mistake |
//!
//! `LOCKSTEP_ODD_FORM` = a name of `iced_x86::Code` has translators make nothing of that form: the self-test
//! is to refuse it.

use std::sync::{Once, OnceLock};

use devices::{Devices, Planted};
use logchannel::Position;
use softcpu::{Cpu, Jit, Mistake};

use crate::io::clock::HostClock;
use crate::memory::Ram;

const VARIABLE: &str = "LOCKSTEP_PLANTED";
const ODD_FORM: &str = "LOCKSTEP_ODD_FORM";
const TRANSLATE_FROM: &str = "LOCKSTEP_TRANSLATE_FROM";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    HostClock,
    StaleDma,
    StaleMemory,
    LostInvalidation,
    Translator(Mistake),
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    kind: Kind,
    from: u64,
}

fn parse(text: &str) -> Option<Fault> {
    let (kind, from) = text.split_once('@')?;
    let kind = match kind {
        "host-clock" => Kind::HostClock,
        "stale-dma" => Kind::StaleDma,
        "stale-memory" => Kind::StaleMemory,
        "lost-invalidation" => Kind::LostInvalidation,
        name => Kind::Translator(Mistake::named(name)?),
    };
    Some(Fault { kind, from: from.parse().ok()? })
}

/// The fault of this process, if it has one.
fn fault() -> Option<Fault> {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    *FAULT.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let fault = parse(&text);
        assert!(fault.is_some(), "{VARIABLE}={text:?}: it is KIND@POSITION");
        eprintln!("lockstep: a fault is planted here: {text}");
        fault
    })
}

/// Plants it in the devices, once the guest is there.
pub fn in_devices(devices: &mut Devices, at: Position) {
    if let Some(Fault { kind, from }) = fault() {
        let on = |of: Kind| kind == of && at.count >= from;
        let host_ns: fn() -> u64 = || HostClock.now_ns();
        devices.plant(Planted {
            host_clock: on(Kind::HostClock).then_some(host_ns),
            stale_dma: on(Kind::StaleDma),
        });
    }
}

/// Plants it in the memory of a guest that starts again.
pub fn in_memory(ram: &mut Ram, at: Position) {
    if let Some(Fault { kind: Kind::StaleMemory, from }) = fault()
        && at.count >= from
    {
        let last = ram.as_slice().len() - 1;
        ram.write(last, &[0x5a]);
    }
}

/// Plants an odd form in all translators of the process.
pub fn before_translation() {
    static PLANTED: Once = Once::new();
    PLANTED.call_once(|| {
        if let Ok(name) = std::env::var(ODD_FORM) {
            assert!(softcpu::plant_odd_form(&name), "{ODD_FORM}={name}: no form");
        }
    });
}

/// Plants it in a processor. And one that translates does so from the run of a block on that
/// `LOCKSTEP_TRANSLATE_FROM` says.
pub fn in_processor(mut cpu: Box<Cpu>) -> Box<Cpu> {
    if let Ok(runs) = std::env::var(TRANSLATE_FROM)
        && cpu.jit() != Jit::Off
    {
        let runs = runs.parse().unwrap_or_else(|_| panic!("{TRANSLATE_FROM}={runs:?}: not a number"));
        assert!(cpu.set_translation(Some(runs)), "the host lets code be executed");
    }
    match fault() {
        Some(Fault { kind: Kind::LostInvalidation, from }) => cpu.lose_invalidations_from(from),
        Some(Fault { kind: Kind::Translator(mistake), from }) => cpu.plant(mistake, from),
        _ => {}
    }
    cpu
}
