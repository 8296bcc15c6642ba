//! Bounded fuzzing of the software CPU: random guests (`guest`) with random interrupts, kicks, device writes
//! and answers to exits, each run in seven ways that must end in the same state and the same RAM:
//!
//! - straight, from event to event, twice;
//! - with stops at other positions, and kicks, in between;
//! - one step at a time, with all caches dropped before every step;
//! - translated, every block at once; the same with stops; and translated late, with the translator switched
//!   off and on on the way.
//!
//! Every page that changed is among those that the processor says it wrote. No way may panic, and guest RAM
//! lies between guard regions: an access outside ends the process. Every block of translated code is audited:
//! its operands in memory are such that it cannot reach outside.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOCKSTEP_FUZZ_SECONDS` | how long (60) |
//! | `LOCKSTEP_FUZZ_SEED` | only the case of this seed |
//! | `LOCKSTEP_FUZZ_WAYS` | only these ways beside the first (`Native,NativeStops,Mixed`) |
//!
//! A worker process per CPU does the work, so that one which dies can be named with its seed.

#[allow(dead_code)]
#[path = "../hardware/encode.rs"]
mod encode;
#[allow(dead_code)]
#[path = "../hardware/forms.rs"]
mod forms;
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

use forms::Form;
use guest::{Guest, RAM, Ram};
use softcpu::{Cpu, Exit, State};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use values::Random;

/// What comes from outside, and where.
#[derive(Debug, Clone)]
enum Event {
    Interrupt(u8),
    Window,
    DeviceWrite(u64, Vec<u8>),
}

/// How a case is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Straight,
    Again,
    Stops,
    Flushed,
    Native,
    NativeStops,
    Mixed,
}

const WAYS: [Way; 7] =
    [Way::Straight, Way::Again, Way::Stops, Way::Flushed, Way::Native, Way::NativeStops, Way::Mixed];

/// Where a run ended.
#[derive(PartialEq)]
struct Ended {
    retired: u64,
    state: State,
    exits: Vec<(u64, Exit)>,
    ram: Vec<u8>,
    translations: Uncompared,
}

/// What ways may differ in.
#[derive(Debug, Clone, Copy)]
struct Uncompared(u64);

impl PartialEq for Uncompared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The longest list of exits that is kept.
const EXITS: usize = 10_000;

/// Steps and exits of straight runs, and blocks that were translated in others.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    cases: u64,
    steps: u64,
    exits: u64,
    translations: u64,
}

/// The ways asked for.
fn ways() -> Vec<Way> {
    let Ok(names) = std::env::var("LOCKSTEP_FUZZ_WAYS") else { return WAYS.to_vec() };
    let mut ways = vec![Way::Straight];
    for name in names.split(',') {
        let way = WAYS.iter().find(|way| format!("{way:?}") == name);
        ways.push(*way.unwrap_or_else(|| panic!("LOCKSTEP_FUZZ_WAYS={names}: {name} is none of {WAYS:?}")));
    }
    ways
}

struct Case {
    seed: u64,
    guest: Guest,
    steps: u64,
    events: Vec<(u64, Event)>,
}

impl Case {
    fn new(seed: u64, forms: &[Form]) -> Self {
        let mut random = Random::new(!seed);
        let guest = guest::guest(seed, forms);
        let steps = 50 + random.below(1500);
        let mut events: Vec<_> =
            (0..random.below(12)).map(|_| (random.below(steps), event(&mut random))).collect();
        events.sort_by_key(|(at, _)| *at);
        Self { seed, guest, steps, events }
    }

    /// Runs the case one way.
    fn run(&self, ram: &mut Ram, way: Way) -> Ended {
        ram.bytes().copy_from_slice(&self.guest.ram);
        // SAFETY: the RAM outlives the processor, and is touched only between its runs.
        let mut cpu = unsafe { Cpu::new(ram.start(), RAM) };
        cpu.set_state(&self.guest.state);
        let mut random = Random::new(self.seed ^ 0xabcd);
        match way {
            Way::Native | Way::NativeStops => translate(&mut cpu, Some(1)),
            Way::Mixed => translate(&mut cpu, Some(1 + random.below(6) as u32)),
            _ => {}
        }
        let mut exits = Vec::new();
        let mut events = self.events.iter().peekable();
        let mut pending = false;
        let mut told = ram.bytes().to_vec();
        while cpu.retired() < self.steps {
            while let Some((_, event)) = events.next_if(|(at, _)| *at <= cpu.retired()) {
                if way == Way::Again {
                    assert_told(&mut cpu, ram, &mut told);
                }
                apply(event, &mut cpu, ram, &mut told);
            }
            let next = events.peek().map_or(self.steps, |(at, _)| *at).min(self.steps);
            let until = match way {
                Way::Straight | Way::Again | Way::Native => next,
                Way::Stops | Way::NativeStops | Way::Mixed => next.min(cpu.retired() + 1 + random.below(40)),
                Way::Flushed => cpu.retired() + 1,
            };
            if way == Way::Flushed {
                drop_caches(&mut cpu, pending);
            } else if matches!(way, Way::Stops | Way::NativeStops) && random.one_in(4) {
                cpu.kicker().kick();
            } else if way == Way::Mixed && random.one_in(16) {
                translate(&mut cpu, random.one_in(2).then_some(1));
            }
            let exit = cpu.run(until);
            pending = exit != Exit::Reached;
            match exit {
                Exit::Reached | Exit::Kicked => continue,
                exit => {
                    if exits.len() == EXITS {
                        break;
                    }
                    exits.push((cpu.retired(), exit));
                    if exit == Exit::Shutdown {
                        break;
                    }
                    self.answer(&mut cpu, exit, exits.len() as u64);
                }
            }
        }
        assert_told(&mut cpu, ram, &mut told);
        let translations = Uncompared(cpu.statistics().translations);
        Ended { retired: cpu.retired(), state: cpu.state(), exits, ram: ram.bytes().to_vec(), translations }
    }

    /// Answers an exit: a function of the seed and the exit's number.
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

    /// What is wrong with the case, if anything is.
    fn check(&self, ram: &mut Ram, ways: &[Way], sums: &mut Sums) -> Option<String> {
        let mut first: Option<Ended> = None;
        sums.cases += 1;
        for way in ways.iter().copied() {
            let ended = match catch_unwind(AssertUnwindSafe(|| self.run(ram, way))) {
                Ok(ended) => ended,
                Err(_) => return Some(format!("{way:?}: panic (above)")),
            };
            if way == Way::Straight {
                sums.steps += ended.retired;
                sums.exits += ended.exits.len() as u64;
            }
            sums.translations += ended.translations.0;
            match &first {
                None => first = Some(ended),
                Some(first) if *first != ended => return Some(self.first_difference(ram, way)),
                Some(_) => {}
            }
        }
        None
    }
}

impl Case {
    /// The instructions of the last steps.
    fn trail(&self, ram: &mut Ram, steps: u64) -> String {
        let mut out = String::new();
        for steps in steps.saturating_sub(8)..steps {
            let case =
                Self { seed: self.seed, guest: self.guest.clone(), steps, events: self.events.clone() };
            let state = case.run(ram, Way::Straight).state;
            // SAFETY: the RAM outlives the processor.
            let mut cpu = unsafe { Cpu::new(ram.start(), RAM) };
            cpu.set_state(&state);
            let insn = cpu.instruction_at_rip().map(|insn| insn.to_string());
            let _ = writeln!(out, "  {steps}: {:#x} {}", state.rip, insn.unwrap_or_default());
        }
        out
    }

    /// The fewest steps after which `way` differs from a straight run, and how.
    fn first_difference(&self, ram: &mut Ram, way: Way) -> String {
        let mut before: Option<Ended> = None;
        for steps in 1..=self.steps {
            let case =
                Self { seed: self.seed, guest: self.guest.clone(), steps, events: self.events.clone() };
            let (straight, other) = (case.run(ram, Way::Straight), case.run(ram, way));
            if straight != other {
                let from = before.map(|ended| (ended.state.rip, ended.state.segments[1].selector));
                return format!(
                    "{way:?} differs from straight after {steps} of {}, from CS and RIP {from:x?}:\n{}{}",
                    self.steps,
                    self.trail(ram, steps),
                    differences(&straight, &other)
                );
            }
            before = Some(straight);
        }
        format!("{way:?} differs from straight, but not when run again")
    }
}

/// Blocks are translated from a number of runs on, or not at all.
fn translate(cpu: &mut Cpu, runs: Option<u32>) {
    assert!(cpu.set_translation(runs), "the host lets code be executed");
    cpu.audit_translations();
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

/// `told` is RAM as it was when the processor was last asked what it wrote.
fn assert_told(cpu: &mut Cpu, ram: &mut Ram, told: &mut [u8]) {
    const PAGE: usize = 4096;
    let dirty = cpu.take_dirty();
    for (number, (before, after)) in told.chunks(PAGE).zip(ram.bytes().chunks(PAGE)).enumerate() {
        let said = dirty[number / 64] >> (number % 64) & 1 != 0;
        assert!(said || before == after, "page {number} was written, and not said so");
    }
    told.copy_from_slice(ram.bytes());
}

/// What a device writes is for the device to tell.
fn apply(event: &Event, cpu: &mut Cpu, ram: &mut Ram, told: &mut [u8]) {
    match event {
        Event::Interrupt(vector) => cpu.inject(*vector),
        Event::Window => cpu.request_window(true),
        Event::DeviceWrite(at, bytes) => {
            ram.bytes()[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            told[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            cpu.ram_written(*at, bytes.len());
        }
    }
}

/// Says that all RAM was written; and, unless an answer is pending, takes the state out and puts it back.
fn drop_caches(cpu: &mut Cpu, pending: bool) {
    cpu.ram_written(0, RAM);
    if !pending {
        let state = cpu.state();
        cpu.set_state(&state);
    }
}

fn differences(first: &Ended, other: &Ended) -> String {
    let mut out = String::new();
    if first.retired != other.retired {
        let _ = writeln!(out, "  retired: {} | {}", first.retired, other.retired);
    }
    if first.exits != other.exits {
        let at = first.exits.iter().zip(&other.exits).position(|(a, b)| a != b);
        let at = at.unwrap_or(first.exits.len().min(other.exits.len()));
        let _ = writeln!(out, "  exit {at}: {:x?} | {:x?}", first.exits.get(at), other.exits.get(at));
    }
    let (a, b) = (format!("{:#x?}", first.state), format!("{:#x?}", other.state));
    for (a, b) in a.lines().zip(b.lines()).filter(|(a, b)| a != b) {
        let _ = writeln!(out, "  {} | {}", a.trim(), b.trim());
    }
    let bytes = first.ram.iter().zip(&other.ram).enumerate().filter(|(_, (a, b))| a != b);
    for (at, (a, b)) in bytes.take(16) {
        let _ = writeln!(out, "  [{at:#x}]: {a:02x} | {b:02x}");
    }
    out
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let value = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(value.unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Host time only bounds how many cases there are.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn work(first: u64, of: u64) {
    let forms = guest::all_forms();
    let mut ram = Ram::new();
    let only = number("LOCKSTEP_FUZZ_SEED");
    let end = now() + Duration::from_secs(number("LOCKSTEP_FUZZ_SECONDS").unwrap_or(60));
    let (ways, mut sums) = (ways(), Sums::default());
    let mut seed = only.unwrap_or(first);
    loop {
        println!("case\t{seed}");
        let case = Case::new(seed, &forms);
        if let Some(text) = case.check(&mut ram, &ways, &mut sums) {
            println!("found\t{seed}\t{}", text.replace('\n', "\u{1}"));
        }
        if only.is_some() || now() >= end {
            break;
        }
        seed += of;
    }
    let Sums { cases, steps, exits, translations } = sums;
    println!("sum\t{cases}\t{steps}\t{exits}\t{translations}");
}

#[test]
fn random_guests_end_the_same_however_they_are_run() {
    if let Ok(worker) = std::env::var("LOCKSTEP_WORKER") {
        let (first, of) = worker.split_once('/').expect("a worker's number");
        return work(first.parse().expect("a number"), of.parse().expect("a number"));
    }
    let workers = match number("LOCKSTEP_FUZZ_SEED") {
        Some(_) => 1,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let program = std::env::current_exe().expect("the path of this test");
    let start = |n: usize| {
        Command::new(&program)
            .args(["--exact", "random_guests_end_the_same_however_they_are_run", "--nocapture"])
            .env("LOCKSTEP_WORKER", format!("{n}/{workers}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a worker process")
    };
    let children: Vec<_> = (0..workers).map(start).collect();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> =
            children.into_iter().map(|child| scope.spawn(move || child.wait_with_output())).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().expect("a reader").expect("a worker's output"))
            .collect()
    });
    let (mut totals, mut found) = ([0u64; 4], String::new());
    for output in outputs {
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields[..] {
                ["found", seed, what] => found += &report(seed, &what.replace('\u{1}', "\n")),
                ["sum", cases, steps, exits, translations] => {
                    for (total, text) in totals.iter_mut().zip([cases, steps, exits, translations]) {
                        *total += text.parse::<u64>().expect("a number");
                    }
                }
                _ => {}
            }
        }
        if !output.status.success() {
            let last = text.lines().rev().find_map(|line| line.strip_prefix("case\t")).unwrap_or("none");
            found += &report(last, &format!("the worker ended with {}", output.status));
        }
    }
    let [cases, steps, exits, translations] = totals;
    println!("{cases} random guests, {steps} steps, {exits} exits, each guest run in {} ways", ways().len());
    println!("{translations} blocks were translated and audited");
    assert!(found.is_empty(), "{found}");
}

fn report(seed: &str, what: &str) -> String {
    format!("{what}\n  LOCKSTEP_FUZZ_SEED={seed} cargo test --release -p lockstep-softcpu --test fuzz\n\n")
}
