//! The event port and its shared page: time, the wait, and one exit that serves every queue.

use core::ptr::NonNull;

use crate::heap;
use crate::port::{in32, out32};

const COMMAND_PORT: u16 = 0x4c50;
const PAGE_PORT: u16 = 0x4c54;
/// What the command port reads as: "LKS" and version 1.
const IDENTITY: u32 = 0x4c4b_5301;
const POLL: u32 = 0;
const WAIT: u32 = 1;

/// Words of the shared page.
#[derive(Clone, Copy)]
enum Word {
    NowNs = 0,
    WallBaseNs = 1,
    WakeAtNs = 2,
    InputsApplied = 3,
    InputsSeen = 4,
    PowerButton = 5,
}

/// The event port.
pub struct EventPort {
    page: NonNull<u64>,
    commands: u64,
}

impl EventPort {
    /// Gives the device its shared page. The error is what the port read as, if it is none.
    pub fn new() -> Result<Self, u32> {
        let found = in32(COMMAND_PORT);
        if found != IDENTITY {
            return Err(found);
        }
        let page = heap::dma_pages(1).cast();
        out32(PAGE_PORT, (page.as_ptr() as usize >> 12) as u32);
        Ok(Self { page, commands: 0 })
    }

    fn read(&self, word: Word) -> u64 {
        // SAFETY: the page is ours for ever and its words are aligned; the device writes to it only while the
        // CPU is stopped at an exit.
        unsafe { self.page.as_ptr().wrapping_add(word as usize).read_volatile() }
    }

    fn write(&mut self, word: Word, value: u64) {
        // SAFETY: as `read`; the device reads it only at an exit.
        unsafe { self.page.as_ptr().wrapping_add(word as usize).write_volatile(value) };
    }

    /// Virtual time: nanoseconds since power-on.
    pub fn now_ns(&self) -> u64 {
        self.read(Word::NowNs)
    }

    /// Unix time at power-on, in nanoseconds.
    pub fn wall_base_ns(&self) -> u64 {
        self.read(Word::WallBaseNs)
    }

    /// How many commands were given.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Says that every input applied so far will be looked at now. Call it before looking.
    pub fn see_inputs(&mut self) {
        let applied = self.read(Word::InputsApplied);
        self.write(Word::InputsSeen, applied);
    }

    /// Whether the power button was pressed.
    pub fn power_button(&self) -> bool {
        self.read(Word::PowerButton) != 0
    }

    /// Lets the devices serve all queues, and inputs come in.
    pub fn poll(&mut self) {
        self.commands += 1;
        out32(COMMAND_PORT, POLL);
    }

    /// As `poll`, and stops until there is an input that was not seen, or until `wake_at_ns`.
    pub fn wait(&mut self, wake_at_ns: u64) {
        self.write(Word::WakeAtNs, wake_at_ns);
        self.commands += 1;
        out32(COMMAND_PORT, WAIT);
    }
}
