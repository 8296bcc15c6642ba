//! Runs that stop at stores to watched memory, against single steps with a look at that memory after each:
//! over random guests, with interrupts, kicks, device writes and answers to exits, both must see the same
//! changes at the same positions and end in the same state. And the guest's own data breakpoints, whose pages
//! alone are slow, against the same while every instruction is executed by itself.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOCKSTEP_WATCH_CASES` | how many guests (2000) |
//! | `LOCKSTEP_WATCH_SEED` | only the guest of this seed |

#[allow(dead_code)]
#[path = "../hardware/encode.rs"]
mod encode;
#[allow(dead_code)]
#[path = "../hardware/forms.rs"]
mod forms;
#[allow(dead_code)]
#[path = "../fuzz/guest.rs"]
mod guest;
#[allow(dead_code)]
#[path = "../hardware/state.rs"]
mod state;
#[allow(dead_code)]
#[path = "../hardware/values.rs"]
mod values;
#[allow(dead_code)]
#[path = "../hardware/vector.rs"]
mod vector;

use std::ops::Range;

use forms::Form;
use guest::{Guest, RAM, Ram};
use softcpu::{Cpu, Exit, State};
use values::Random;

const EFER_LMA: u64 = 1 << 10;
const CR0_PG: u64 = 1 << 31;

/// What comes from outside, and where.
#[derive(Debug, Clone)]
enum Event {
    Interrupt(u8),
    Window,
    DeviceWrite(u64, Vec<u8>),
}

/// How a guest is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Instruction by instruction.
    Steps,
    /// From stop to stop.
    Stops,
    /// The same, with other stops in between.
    ManyStops,
}

/// What is compared.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Where watched memory, or the roots of translation, had changed.
    changes: Vec<u64>,
    exits: Vec<(u64, Exit)>,
    retired: u64,
    state: State,
    ram: Vec<u8>,
}

struct Case {
    seed: u64,
    guest: Guest,
    steps: u64,
    events: Vec<(u64, Event)>,
    watched: Vec<Range<u64>>,
}

/// Places that programs write to often: tables of the processor, its stacks, page tables, data, code.
const PLACES: [Range<u64>; 8] = [
    0x1000..0x4000,
    0x5c00..0x6000,
    0x8000..0x1_0000,
    0x2_0000..0x2_4000,
    0x2_8000..0x2_9000,
    0x3_0000..0x3_4000,
    0x3_0000..0x3_1000,
    0..RAM as u64,
];

fn watched(random: &mut Random) -> Vec<Range<u64>> {
    let range = |random: &mut Random| {
        let place = &PLACES[random.below(PLACES.len() as u64) as usize];
        let start = place.start + random.below(place.end - place.start);
        let bytes = match random.below(4) {
            0 => 1 + random.below(8),
            1 => 8,
            2 => 1 + random.below(512),
            _ => 1 + random.below(4096),
        };
        start..(start + bytes).min(RAM as u64)
    };
    (0..1 + random.below(4)).map(|_| range(random)).collect()
}

fn event(random: &mut Random) -> Event {
    match random.below(4) {
        0 => Event::Window,
        1 => Event::Interrupt(random.bits() as u8),
        _ => {
            let count = 1 + random.below(64);
            let at = random.below(RAM as u64 - count);
            Event::DeviceWrite(at, (0..count).map(|_| random.bits() as u8).collect())
        }
    }
}

fn apply(event: &Event, cpu: &mut Cpu, ram: &mut Ram) {
    match event {
        Event::Interrupt(vector) => cpu.inject(*vector),
        Event::Window => cpu.request_window(true),
        Event::DeviceWrite(at, bytes) => {
            ram.bytes()[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            cpu.ram_written(*at, bytes.len());
        }
    }
}

/// What a debugger compares: the bytes, and what decides where linear addresses lead.
fn content(watched: &[Range<u64>], cpu: &Cpu, ram: &mut Ram) -> (Vec<u8>, [u64; 3]) {
    let bytes = ram.bytes();
    let watched = watched.iter().flat_map(|r| &bytes[r.start as usize..r.end as usize]);
    let state = cpu.state();
    (watched.copied().collect(), [state.cr0 & CR0_PG, state.cr3, state.efer & EFER_LMA])
}

fn is_question(exit: Exit) -> bool {
    !matches!(exit, Exit::Reached | Exit::Kicked | Exit::Watched | Exit::Window | Exit::Hlt | Exit::Shutdown)
}

impl Case {
    fn new(seed: u64, forms: &[Form]) -> Self {
        let mut random = Random::new(!seed);
        let steps = 50 + random.below(800);
        let mut events: Vec<_> =
            (0..random.below(8)).map(|_| (random.below(steps), event(&mut random))).collect();
        events.sort_by_key(|(at, _)| *at);
        Self { seed, guest: guest::guest(seed, forms), steps, events, watched: watched(&mut random) }
    }

    fn run(&self, ram: &mut Ram, way: Way) -> (Seen, u64) {
        ram.bytes().copy_from_slice(&self.guest.ram);
        // SAFETY: the RAM outlives the processor, and is touched only between its runs.
        let mut cpu = unsafe { Cpu::new(ram.start(), RAM) };
        cpu.set_state(&self.guest.state);
        if way != Way::Steps {
            cpu.set_watched(&self.watched);
        }
        let mut random = Random::new(self.seed ^ 0xabcd);
        let (mut changes, mut exits, mut stops) = (Vec::new(), Vec::new(), 0);
        let mut events = self.events.iter().peekable();
        let mut last = content(&self.watched, &cpu, ram);
        // Devices may have written, or an exit may have been answered: one step, and a look.
        let mut fresh = true;
        while cpu.retired() < self.steps && exits.len() < 1000 {
            let before = cpu.retired();
            while let Some((_, event)) = events.next_if(|(at, _)| *at <= before) {
                apply(event, &mut cpu, ram);
                fresh = true;
            }
            let next = events.peek().map_or(self.steps, |(at, _)| *at).min(self.steps);
            let step = fresh || way == Way::Steps;
            let until = match way {
                _ if step => before + 1,
                Way::ManyStops => next.min(before + 1 + random.below(60)),
                _ => next,
            };
            if way == Way::ManyStops && random.one_in(8) {
                cpu.kicker().kick();
            }
            cpu.obey_watched(!step);
            let exit = cpu.run(until);
            cpu.obey_watched(false);
            // An instruction that waits for an answer may have begun to store: it is not done.
            if cpu.retired() != before && !is_question(exit) {
                fresh = false;
                let now = content(&self.watched, &cpu, ram);
                if now != last {
                    changes.push(cpu.retired());
                    last = now;
                }
            }
            match exit {
                Exit::Reached | Exit::Kicked => {}
                Exit::Watched => stops += 1,
                exit => {
                    exits.push((cpu.retired(), exit));
                    if exit == Exit::Shutdown {
                        break;
                    }
                    self.answer(&mut cpu, exit, exits.len() as u64);
                    fresh = true;
                }
            }
        }
        let (retired, state) = (cpu.retired(), cpu.state());
        (Seen { changes, exits, retired, state, ram: ram.bytes().to_vec() }, stops)
    }

    fn answer(&self, cpu: &mut Cpu, exit: Exit, number: u64) {
        let value = Random::new(self.seed.wrapping_add(number << 32)).integer();
        match exit {
            Exit::Window => {
                cpu.request_window(false);
                cpu.inject(value as u8);
            }
            Exit::MsrRead { .. } | Exit::MsrWrite { .. } if value & 1 == 0 => cpu.refuse(),
            Exit::Hlt => {}
            _ => cpu.answer(value),
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn runs_that_stop_at_stores_see_what_single_steps_see() {
    let forms = guest::all_forms();
    let mut ram = Ram::new();
    let seeds = match number("LOCKSTEP_WATCH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LOCKSTEP_WATCH_CASES").unwrap_or(2000),
    };
    let (mut steps, mut changes, mut stops) = (0, 0, 0);
    for seed in seeds {
        let case = Case::new(seed, &forms);
        let (stepped, _) = case.run(&mut ram, Way::Steps);
        for way in [Way::Stops, Way::ManyStops] {
            let (seen, count) = case.run(&mut ram, way);
            let same = seen == stepped;
            let at = seen.changes.iter().zip(&stepped.changes).position(|(a, b)| a != b);
            assert!(
                same,
                "LOCKSTEP_WATCH_SEED={seed}, {way:?}: {:?} at {:x?}, {} and {} changes, the first that \
                 differs: {at:?}; ends at {} and {}",
                case.watched,
                at.map(|at| (seen.changes[at], stepped.changes[at])),
                seen.changes.len(),
                stepped.changes.len(),
                seen.retired,
                stepped.retired
            );
            stops += count;
        }
        steps += stepped.retired;
        changes += stepped.changes.len();
    }
    println!("{steps} steps with {changes} changes; two runs of each guest stopped {stops} times");
    // Nearly every change is met by a stop; few stops are in vain.
    assert!(number("LOCKSTEP_WATCH_SEED").is_some() || stops > changes as u64, "{stops} stops");
}

/// Guests with data breakpoints end the same whether or not a breakpoint on an instruction, which is never
/// reached, has every instruction looked at.
#[test]
fn data_breakpoints_hit_the_same_as_when_every_instruction_is_looked_at() {
    const NEVER: u64 = 0x1234_5678_9000;
    let forms = guest::all_forms();
    let mut ram = Ram::new();
    let seeds = match number("LOCKSTEP_WATCH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LOCKSTEP_WATCH_CASES").unwrap_or(2000),
    };
    let (mut hits, mut steps) = (0, 0);
    for seed in seeds {
        let mut case = Case::new(seed, &forms);
        let mut random = Random::new(seed ^ 0x5eed);
        let mut control = 0x400;
        for number in 1..4 {
            let near = case.guest.state.gpr[random.below(16) as usize];
            case.guest.state.dr[number] = match random.below(4) {
                0 => guest::KERNEL + watched(&mut random)[0].start,
                1 => state::DATA + random.below(5 * state::PAGE),
                2 => case.guest.state.gpr[4].wrapping_sub(8 * random.below(16)),
                _ => near.wrapping_add(random.below(32)).wrapping_sub(16),
            };
            let fields = random.below(4) << 2 | if random.one_in(2) { 1 } else { 3 };
            control |= 1 << (2 * number) | fields << (16 + 4 * number);
        }
        case.guest.state.dr[0] = NEVER;
        if case.guest.state.segments[1].access & softcpu::Segment::LONG == 0 {
            // Compatibility mode never comes to more: what such a state does is nobody's promise.
            case.guest.state.rip &= 0xffff_ffff;
        }
        case.guest.state.dr[5] = control;
        let (fast, _) = case.run(&mut ram, Way::Steps);
        case.guest.state.dr[5] = control | 1;
        let (mut slow, _) = case.run(&mut ram, Way::Steps);
        let (straight, _) = {
            case.guest.state.dr[5] = control;
            case.run(&mut ram, Way::Stops)
        };
        let both = (fast.retired, straight.retired);
        assert!(fast == straight, "LOCKSTEP_WATCH_SEED={seed}: straight and in steps end at {both:?}");
        if slow.state.dr[5] == control | 1 {
            slow.state.dr[5] = control;
        }
        hits += u64::from(slow.state.dr[4] & 15 != 0);
        steps += slow.retired;
        assert!(
            fast == slow,
            "LOCKSTEP_WATCH_SEED={seed}: ends at {} and {}; {:x?}\n{:x?}",
            fast.retired,
            slow.retired,
            fast.state,
            slow.state
        );
    }
    println!("{steps} steps, data breakpoints hit in {hits} guests");
}
