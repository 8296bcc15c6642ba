//! Ways to run a guest, and their comparison.

use std::cell::Cell;

use softcpu::{Cpu, Exit, Mistake, State};

use crate::guest::{Guest, PAGE, RAM};

/// What comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Interrupt(u8),
    Window,
    Kick,
}

/// How a guest is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Blocks are translated from this run on.
    pub translation: Option<u32>,
    /// Steps between two stops; 0 for none.
    pub stride: u64,
    /// What was written is asked for at every stop.
    pub asked: bool,
}

pub const INTERPRETED: Way = Way { translation: None, stride: 0, asked: false };
pub const TRANSLATED: Way = Way { translation: Some(1), stride: 0, asked: false };

thread_local! {
    /// What the translators of this thread's processors do wrong.
    pub static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// A processor and its RAM.
pub struct Machine {
    pub ram: Box<[u8]>,
    pub cpu: Box<Cpu>,
    pub exits: Vec<(u64, Exit)>,
}

/// Where a run ended.
#[derive(PartialEq)]
pub struct Ended {
    pub retired: u64,
    pub state: State,
    pub exits: Vec<(u64, Exit)>,
    pub ram: Vec<u8>,
}

impl Machine {
    pub fn new(guest: &Guest, translation: Option<u32>) -> Self {
        let mut ram = guest.ram.clone().into_boxed_slice();
        // SAFETY: the RAM outlives the processor, and is touched only between its runs.
        let mut cpu = unsafe { Cpu::new(ram.as_mut_ptr(), RAM) };
        cpu.set_state(&guest.state);
        assert!(cpu.set_translation(translation), "the host lets code be executed");
        if let Some(mistake) = PLANTED.get() {
            cpu.plant(mistake, 0);
        }
        Self { ram, cpu, exits: Vec::new() }
    }

    /// The guest's start again, with nothing decoded.
    fn reset(&mut self, guest: &Guest) {
        self.ram.copy_from_slice(&guest.ram);
        self.cpu.ram_written(0, RAM);
        self.cpu.request_window(false);
        self.cpu.set_state(&guest.state);
        self.cpu.set_retired(0);
        self.exits.clear();
    }

    /// Runs to a position, over exits; false if it halted or broke down before.
    pub fn run(&mut self, until: u64) -> bool {
        loop {
            match self.cpu.run(until) {
                Exit::Reached => return true,
                Exit::Kicked => {}
                exit => {
                    self.exits.push((self.cpu.retired(), exit));
                    match exit {
                        Exit::Hlt | Exit::Shutdown => return false,
                        Exit::Window => {
                            self.cpu.request_window(false);
                            self.cpu.inject(crate::guest::IRQ);
                        }
                        _ => self.cpu.answer(0x0102_0304_0506_0708),
                    }
                }
            }
        }
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Interrupt(vector) => self.cpu.inject(vector),
            Event::Window => self.cpu.request_window(true),
            Event::Kick => self.cpu.kicker().kick(),
        }
    }

    pub fn ended(&self) -> Ended {
        Ended {
            retired: self.cpu.retired(),
            state: self.cpu.state(),
            exits: self.exits.clone(),
            ram: self.ram.to_vec(),
        }
    }

    /// `told` is RAM as it was when the processor was last asked what it wrote.
    fn assert_told(&mut self, told: &mut [u8]) {
        let dirty = self.cpu.take_dirty();
        let pages = told.chunks_mut(PAGE as usize).zip(self.ram.chunks(PAGE as usize));
        for (number, (before, after)) in pages.enumerate() {
            let said = dirty[number / 64] >> (number % 64) & 1 != 0;
            assert!(said || before == after, "page {number} was written, and not said so");
            before.copy_from_slice(after);
        }
    }
}

/// Runs a guest at most `steps` steps.
pub fn run(guest: &Guest, way: Way, steps: u64, events: &[(u64, Event)]) -> Ended {
    run_on(&mut Machine::new(guest, way.translation), guest, way, steps, events)
}

/// The same on a processor that was reset.
fn run_on(machine: &mut Machine, guest: &Guest, way: Way, steps: u64, events: &[(u64, Event)]) -> Ended {
    let mut told = guest.ram.clone();
    let mut events = events.iter().peekable();
    loop {
        while let Some((_, event)) = events.next_if(|(at, _)| *at <= machine.cpu.retired()) {
            machine.apply(*event);
        }
        let next = events.peek().map_or(steps, |(at, _)| *at).min(steps);
        let stride = if way.stride == 0 { u64::MAX } else { way.stride };
        let goes_on = machine.run(next.min(machine.cpu.retired().saturating_add(stride)));
        if way.asked {
            machine.assert_told(&mut told);
        }
        if !goes_on || machine.cpu.retired() >= steps {
            return machine.ended();
        }
    }
}

/// What is different, if anything is.
pub fn difference(expected: &Ended, found: &Ended) -> Option<String> {
    if expected == found {
        return None;
    }
    let mut text = format!("{} | {} steps", expected.retired, found.retired);
    for line in expected.state.diff(&found.state) {
        text += &format!("\n  {line}");
    }
    if expected.exits != found.exits {
        text += &format!("\n  {:x?} | {:x?}", expected.exits, found.exits);
    }
    let bytes = expected.ram.iter().zip(&found.ram).enumerate().filter(|(_, (a, b))| a != b);
    for (at, (a, b)) in bytes.take(16) {
        text += &format!("\n  [{at:#x}]: {a:02x} | {b:02x}");
    }
    Some(text)
}

/// Most steps of a program.
pub const MOST: u64 = 20_000;

/// The first way in which a translated run differs from an interpreted one.
pub fn first_difference(guest: &Guest, events: &[(u64, Event)]) -> Option<String> {
    let expected = run(guest, INTERPRETED, MOST, events);
    let ways = [
        TRANSLATED,
        Way { asked: true, ..TRANSLATED },
        Way { stride: 1, asked: true, ..TRANSLATED },
        Way { stride: 7, ..TRANSLATED },
        Way { stride: 29, asked: true, ..TRANSLATED },
        Way { translation: Some(3), stride: 11, asked: false },
    ];
    ways.iter().find_map(|way| {
        let found = run(guest, *way, MOST, events);
        difference(&expected, &found).map(|text| format!("{way:?}: interpreted | translated: {text}"))
    })
}

/// Translated runs equal the interpreted one; the result is how that ended.
pub fn check(name: &str, guest: &Guest) -> Ended {
    if let Some(text) = first_difference(guest, &[]) {
        panic!("{name}: {text}");
    }
    let ended = run(guest, INTERPRETED, MOST, &[]);
    assert!(ended.exits.iter().any(|(_, exit)| *exit == Exit::Hlt), "{name}: {:x?}", ended.exits);
    ended
}

/// A run that stops at any count, or gets any of the events there, equals the interpreted one.
pub fn check_at_every_count(name: &str, guest: &Guest, events: &[Event]) {
    let count = check(name, guest).retired;
    let mut stepped = Machine::new(guest, None);
    let mut machines = [INTERPRETED, TRANSLATED].map(|way| (way, Machine::new(guest, way.translation)));
    for at in 0..=count {
        stepped.run(at);
        let (way, translated) = &mut machines[1];
        translated.reset(guest);
        let stopped = run_on(translated, guest, *way, at, &[]);
        if let Some(text) = difference(&stepped.ended(), &stopped) {
            panic!("{name}: stop at {at}: {text}");
        }
        for event in events {
            let [expected, found] = [0, 1].map(|number| {
                let (way, machine) = &mut machines[number];
                machine.reset(guest);
                run_on(machine, guest, *way, MOST, &[(at, *event)])
            });
            if let Some(text) = difference(&expected, &found) {
                panic!("{name}: {event:?} at {at}: {text}");
            }
        }
    }
}
