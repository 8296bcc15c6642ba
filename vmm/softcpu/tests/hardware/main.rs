//! The software CPU against the CPU of this host: every user-level instruction form is executed on both
//! from the same random state, and everything but what the architecture leaves undefined is compared:
//! registers, flags, x87, MXCSR and XMM state, memory, and for faults the vector, error code and CR2.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOCKSTEP_VECTORS` | vectors of each form (200) |
//! | `LOCKSTEP_TRANSLATED` | how many of them are translated as well, by themselves and before others (50) |
//! | `LOCKSTEP_FORM` | only forms with this name, or with this in their name |
//! | `LOCKSTEP_SEED` | only the vector of this seed |
//! | `LOCKSTEP_REPORT` | a file for the whole report |
//!
//! A worker process per CPU takes its share of the forms: code and data of the test lie at fixed addresses.

mod encode;
mod forms;
mod frame;
mod guest;
mod native;
mod reach;
mod refused;
mod report;
mod soft;
mod state;
mod translated;
mod undefined;
mod values;
mod vector;

use forms::Form;
use iced_x86::{Formatter, GasFormatter};
use native::Native;
use report::{Tallies, Tally};
use soft::Soft;
use state::{DATA_BYTES, End, Mask, Outcome, PAGE, PAGES, Vector, differences};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use translated::Both;
use values::Random;

/// Mismatches of a form that are kept in full.
const KEPT: usize = 3;
/// Vectors of a form that the host runs twice, to show that it agrees with itself.
const TWICE: u64 = 2;
/// Panics go into the report, while this is set.
static CAUGHT: AtomicBool = AtomicBool::new(false);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let value = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(value.unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// What is done with a vector beside the comparison.
struct How {
    /// The host runs it twice.
    twice: bool,
    /// It is translated as well.
    translated: bool,
}

/// Both CPUs with the same data pages.
struct Pair {
    base: Vec<u8>,
    native: Native,
    soft: Soft,
    both: Both,
}

impl Pair {
    fn new() -> Self {
        let mut random = Random::new(0x1ed6_e25e);
        let mut base: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
        // Where no operand can be written, there is no bit 17 that MXCSR has on one vendor's CPUs only.
        let slot = PAGES.iter().position(|(_, writable)| !writable).expect("a read-only page");
        base[slot * PAGE as usize..][..PAGE as usize].iter_mut().for_each(|byte| *byte &= !2);
        let native = Native::new(&base);
        let soft = Soft::new(&base, native.selectors());
        let both = Both::new(&base, native.selectors());
        Self { base, native, soft, both }
    }

    /// Runs a vector on both; what differs, if anything does.
    fn compare(&mut self, form: &Form, seed: u64, how: How) -> (Outcome, End, Option<String>) {
        let (encoded, vector) = vector::make(form, seed, self.native.bases);
        let host = self.native.run(&vector);
        CAUGHT.store(true, Ordering::Relaxed);
        let soft = catch_unwind(AssertUnwindSafe(|| self.soft.run(&vector)));
        CAUGHT.store(false, Ordering::Relaxed);
        let found = match &soft {
            Ok(soft) if host == *soft && self.native.data() == self.soft.data() => String::new(),
            Ok(soft) if undefined::is_choice(&encoded.instruction, &vector, [&host, soft]) => String::new(),
            Ok(soft) => {
                let mask = undefined::mask(&encoded, &vector, &host);
                differences(&vector, (&host, self.native.data()), (soft, self.soft.data()), &mask)
            }
            Err(panic) => format!("    the software CPU panicked: {}\n", panic_text(panic.as_ref())),
        };
        let end = soft.as_ref().map_or(End::Lost, |soft| soft.end);
        if soft.is_err() {
            self.soft = Soft::new(&self.base, self.native.selectors());
        }
        self.soft.restore();
        let mut found = found;
        if how.twice {
            found += &self.host_again(&vector, &host);
        }
        if how.translated
            && let Err((interpreted, translated)) = self.both.agree(&vector, seed)
        {
            let _ = writeln!(found, "    interpreted {interpreted:x?}, translated {translated:x?}");
        }
        self.native.restore();
        let text = (!found.is_empty()).then(|| {
            let mut assembly = String::new();
            GasFormatter::new().format(&encoded.instruction, &mut assembly);
            format!(
                "{}: {assembly}  [{:02x?}] at {:#x}\n    host {:x?}, softcpu {:x?}, rflags {:x}, \
                 mxcsr {:x}\n{found}    LOCKSTEP_FORM='{}' LOCKSTEP_SEED={seed:#x} cargo test --release \
                 -p lockstep-softcpu \
                 --test hardware",
                form.name(),
                encoded.bytes,
                encoded.at,
                host.end,
                end,
                vector.user.rflags,
                vector.user.mxcsr,
                form.name()
            )
        });
        (host, end, text)
    }

    fn host_again(&mut self, vector: &Vector, first: &Outcome) -> String {
        let data = self.native.data().to_vec();
        self.native.restore();
        let again = self.native.run(vector);
        let found = differences(vector, (first, &data), (&again, self.native.data()), &Mask::default());
        if found.is_empty() { found } else { format!("    the host differs from itself:\n{found}") }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// The forms asked for.
fn chosen() -> Vec<Form> {
    let (forms, _) = forms::all();
    let Ok(wanted) = std::env::var("LOCKSTEP_FORM") else { return forms };
    let exact: Vec<Form> = forms.iter().filter(|form| form.name() == wanted).copied().collect();
    if exact.is_empty() {
        forms.into_iter().filter(|form| form.name().contains(&wanted)).collect()
    } else {
        exact
    }
}

/// Seeds of a form begin at a number of its own (FNV-1a of its name).
fn first_seed(form: &Form) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    form.name().bytes().fold(0xcbf2_9ce4_8422_2325, step) & !0xffff_ffff
}

/// Runs every `of`-th form, from `first` on, and prints what it found.
fn work(first: usize, of: usize) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !CAUGHT.load(Ordering::Relaxed) {
            usual(info);
        }
    }));
    let mut pair = Pair::new();
    let vectors = number("LOCKSTEP_VECTORS").unwrap_or(200);
    let translated = number("LOCKSTEP_TRANSLATED").unwrap_or(50);
    let only = number("LOCKSTEP_SEED");
    for form in chosen().iter().skip(first).step_by(of) {
        let mut tally = Tally { group: report::group(form).into(), ..Tally::default() };
        let from = only.unwrap_or(first_seed(form));
        let count = if only.is_some() { 1 } else { vectors };
        println!("next\t{}", form.name());
        for n in 0..count {
            let how = How { twice: n < TWICE, translated: n < translated };
            let (host, soft, text) = pair.compare(form, from + n, how);
            tally.vectors += 1;
            tally.faults += u64::from(host.end != End::Retired);
            let refused = matches!(soft, End::Fault { vector: 6, .. }) && host.end != soft;
            tally.refused += u64::from(refused);
            if let Some(text) = text {
                tally.mismatches += 1;
                if tally.texts.len() < KEPT {
                    tally.texts.push(text);
                }
            }
        }
        print!("{}", report::lines(&form.name(), &tally));
    }
    let whole = std::env::var("LOCKSTEP_FORM").is_err() && translated > 0;
    assert!(!whole || pair.both.translations() > 0, "nothing was translated");
}

/// Starts the workers and collects what they print.
fn collect() -> Tallies {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let program = std::env::current_exe().expect("the path of this test");
    let children: Vec<_> = (0..workers)
        .map(|n| {
            Command::new(&program)
                .args(["--exact", "every_form_equals_the_host", "--nocapture", "--test-threads=1"])
                .env("LOCKSTEP_WORKER", format!("{n}/{workers}"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a worker process")
        })
        .collect();
    let mut tallies = Tallies::new();
    let mut broken = String::new();
    // One after the other: a worker whose pipe is full waits, so each has a reader of its own.
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> =
            children.into_iter().map(|child| scope.spawn(move || child.wait_with_output())).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().expect("a reader").expect("a worker's output"))
            .collect()
    });
    for output in outputs {
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().for_each(|line| report::read_line(line, &mut tallies));
        if !output.status.success() {
            let last = text.lines().rev().find_map(|line| line.strip_prefix("next\t"));
            let _ = writeln!(broken, "a worker ended with {} at {last:?}", output.status);
        }
    }
    assert!(broken.is_empty(), "{broken}");
    tallies
}

#[test]
fn every_form_equals_the_host() {
    if let Ok(worker) = std::env::var("LOCKSTEP_WORKER") {
        let (first, of) = worker.split_once('/').expect("a worker's number");
        return work(first.parse().expect("a number"), of.parse().expect("a number"));
    }
    let tallies = collect();
    let (forms, out) = forms::all();
    let table = report::table(&tallies);
    let found = report::mismatches(&tallies, 10);
    println!("{table}\nleft out, {} codes:", out.len());
    for (reason, codes) in by_reason(&out) {
        println!("  {reason}: {codes}");
    }
    if let Ok(path) = std::env::var("LOCKSTEP_REPORT") {
        std::fs::write(&path, format!("{table}\n{}", report::mismatches(&tallies, usize::MAX)))
            .expect("the report file can be written");
    }
    assert!(!tallies.is_empty(), "LOCKSTEP_FORM names no form");
    if std::env::var("LOCKSTEP_FORM").is_err() {
        let names: std::collections::BTreeSet<String> = forms.iter().map(Form::name).collect();
        assert_eq!(names.len(), tallies.len(), "every form is there");
    }
    assert!(found.is_empty(), "differs from the host:\n{found}");
}

fn by_reason(out: &[(iced_x86::Code, &'static str)]) -> std::collections::BTreeMap<&'static str, String> {
    let mut reasons = std::collections::BTreeMap::<_, String>::new();
    for (code, reason) in out {
        let _ = write!(reasons.entry(*reason).or_default(), "{code:?} ");
    }
    reasons
}
