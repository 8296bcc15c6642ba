//! Runs one instruction in the software CPU, as code at CPL3 of a small 64-bit guest (`guest`) whose memory
//! lies at the same linear addresses as in the host process.

use crate::case::{Case, End, Outcome, PAGE, REGIONS, SEGMENTS};
use crate::guest::{FREE, Guest};
use softcpu::Segment;

/// Numbers of `Case::segments` in `State::segments`: CS, SS, DS, ES, GS.
const PLACES: [usize; SEGMENTS] = [1, 2, 3, 0, 5];

/// The software CPU as an executor.
pub struct Soft {
    guest: Guest,
}

impl Soft {
    /// A guest with the regions one after the other.
    pub fn new() -> Self {
        let mut guest = Guest::new();
        let mut physical = FREE;
        for (at, bytes) in REGIONS {
            for linear in (at..at + bytes as u64).step_by(PAGE as usize) {
                guest.map_user(linear, physical, true);
                physical += PAGE;
            }
        }
        Self { guest }
    }

    /// Runs a case on `memory`, whose bytes of all regions are then as it leaves them.
    pub fn run(&mut self, case: &Case, memory: &mut [Vec<u8>]) -> Outcome {
        let mut physical = FREE;
        for bytes in memory.iter() {
            self.guest.write(physical, bytes);
            physical += bytes.len() as u64;
        }
        let mut state = self.guest.state.clone();
        for (n, place) in PLACES.into_iter().enumerate() {
            if !case.segments[n].null {
                state.segments[place] = Segment {
                    selector: case.selector(n),
                    base: case.segments[n].base.into(),
                    limit: case.segments[n].bytes(),
                    access: case.segments[n].access(),
                };
            }
        }
        for (register, value) in state.gpr.iter_mut().zip(case.gpr) {
            *register = value.into();
        }
        state.rip = case.eip.into();
        state.rflags = u64::from(case.flags) | 0x202;
        self.guest.cpu.set_state(&state);
        let start = self.guest.cpu.retired();
        self.guest.cpu.run(start + 1);
        let outcome = self.outcome();
        let mut physical = FREE;
        for bytes in memory {
            let count = bytes.len();
            bytes.copy_from_slice(self.guest.read(physical, count));
            physical += bytes.len() as u64;
        }
        outcome
    }

    fn outcome(&self) -> Outcome {
        let state = self.guest.cpu.state();
        let mut gpr: [u32; 8] = std::array::from_fn(|n| state.gpr[n] as u32);
        let Some(taken) = self.guest.taken(&state) else {
            assert!(state.rip >> 32 == 0, "EIP is {:#x}", state.rip);
            return Outcome { end: End::Retired, gpr, eip: state.rip as u32, flags: state.rflags as u32 };
        };
        assert!(taken.in_place, "RSP is {:#x}", state.gpr[4]);
        gpr[4] = taken.rsp as u32;
        let cr2 = if taken.vector == 14 { state.cr2 as u32 } else { 0 };
        let end = End::Fault(taken.vector, taken.error, cr2);
        Outcome { end, gpr, eip: taken.rip as u32, flags: taken.rflags as u32 }
    }
}
