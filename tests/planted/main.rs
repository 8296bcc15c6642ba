//! Faults planted in the backup of Linux: each is caught by the first check after it acted, the pair falls
//! apart as it should, and `diverge` names the place.
//!
//! ```text
//!   lockstep primary --record FILE ──────────▶ lockstep backup, LOCKSTEP_PLANTED=KIND@POSITION
//!        goes on alone ◀── "diverged" ────────────┘ report, exit code 4
//!        replicate ──▶ the next backup, the next fault
//!   lockstep diverge FILE --against 'env LOCKSTEP_PLANTED=... lockstep' ──▶ position, instruction
//! ```
//!
//! One machine boots once, and gets a backup for each fault. The faults are in the program only as tests
//! build it (feature `planted-faults`).

#[path = "../pair/client.rs"]
#[allow(dead_code)]
mod client;
#[path = "../../vmm/softcpu/tests/translated/guest.rs"]
#[allow(dead_code)]
mod guest;
#[path = "../pair/harness.rs"]
#[allow(dead_code)]
mod harness;
mod image;
#[path = "../../vmm/softcpu/tests/translated/mistakes.rs"]
mod mistakes;
mod translator;

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep::cluster::Part;
use lockstep::io::control;
use lockstep::recording::Recording;
use logchannel::{Event, LogEntry, Seq};
use serde_json::Value;

use crate::harness::{DIVERGED, PROGRAM, Pair, wait_until};

/// What the guest does: a disk that holds something, time from the ACPI timer; then, from one connection of a
/// client to the next, reads of the disk, processes that come and go, and a switch that makes the kernel
/// rewrite its own code. It stands still in between.
const WORK: &str = "\
    echo acpi_pm >/sys/devices/system/clocksource/clocksource0/current_clocksource; \
    dd if=/bin/busybox of=/dev/vda bs=64k 2>/dev/null; \
    called() { echo called | nc -l -p 6379; }; \
    while called; do rm -f /called; (called; touch /called) & while [ ! -e /called ]; do \
    for switch in 1 0; do echo $switch >/proc/sys/kernel/sched_schedstats; \
    dd if=/dev/vda of=/dev/null bs=4k count=1 2>/dev/null; i=0; \
    while [ $i -lt 1000 ]; do i=$((i+1)); done; done; done; done";
const MEMORY_MIB: &str = "96";
/// Recordings of the primary, and of a backup.
const OF_PRIMARY: &str = "primary.lkr";
const OF_BACKUP: &str = "backup.lkr";
/// Where the first fault may act: after the boot, which takes 700 million instructions.
const BOOTED: u64 = 1_500_000_000;
/// Positions from the moment at which another backup is started to the one at which its fault may act: more
/// than a guest that stands still gets through while a backup joins and compares a digest.
const HEAD_START: u64 = 200_000_000;
/// A busy host may keep a process waiting for that long.
const TIMEOUT_MS: &str = "20000";

/// A fault, and how the place is to be named where it acts first.
struct Fault {
    kind: &'static str,
    /// Whether the backup records.
    recorded: bool,
    named: fn(&Value),
}

const FAULTS: [Fault; 3] = [
    Fault { kind: "host-clock", recorded: false, named: a_read_of_the_timer },
    Fault { kind: "stale-dma", recorded: true, named: a_completion_of_the_disk },
    Fault { kind: "lost-invalidation", recorded: false, named: code_that_was_rewritten },
];

fn text<'a>(verdict: &'a Value, name: &str) -> &'a str {
    verdict[name].as_str().unwrap_or_default()
}

fn a_read_of_the_timer(verdict: &Value) {
    let instruction = text(verdict, "instruction");
    assert!(instruction.contains("in %dx,%eax") && instruction.contains("<acpi_pm_read"), "{verdict}");
    assert!(verdict["entry"].is_null(), "{verdict}");
}

fn a_completion_of_the_disk(verdict: &Value) {
    assert!(text(verdict, "entry").contains("DiskDone"), "{verdict}");
    let difference = &verdict["difference"];
    assert_eq!(difference["registers"].as_array().map(Vec::len), Some(0), "{verdict}");
    assert_eq!(difference["pages"], 1, "the end of one buffer: {verdict}");
}

fn code_that_was_rewritten(verdict: &Value) {
    let instruction = text(verdict, "instruction");
    assert!(verdict["entry"].is_null() && instruction.contains('<'), "in the kernel: {verdict}");
    // What a static key is rewritten to, or on the way there.
    let rewritten = ["  jmp", "  nop", "  int3", "  xchg %ax,%ax"];
    assert!(rewritten.iter().any(|name| instruction.contains(name)), "{verdict}");
}

/// What was seen of one fault in the pair.
struct Caught {
    planted: String,
    /// The command that the report names.
    next: Option<String>,
    /// The last entry whose digest agreed; 0 for none.
    agreed: Seq,
    /// The entry at which the backup saw that it had diverged.
    at: Seq,
}

/// The number after `words` in a report.
fn number_after(report: &str, words: &str) -> u64 {
    let rest = report.split_once(words).map_or("0", |(_, rest)| rest);
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The only report in the directory, which is taken away.
fn take_report(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).expect("the directory").flatten();
    let is_report = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("divergence-vm0-"))
    };
    let reports: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_report).collect();
    assert_eq!(reports.len(), 1, "{reports:?}");
    let text = std::fs::read_to_string(&reports[0]).expect("a report");
    std::fs::remove_file(&reports[0]).expect("a report");
    text
}

/// Starts a backup with a fault that may act from a position on; how it was planted.
fn start_backup(pair: &mut Pair, fault: &Fault, from: u64) -> String {
    let value = format!("{}@{from}", fault.kind);
    pair.options_mut().backup_environment = vec![("LOCKSTEP_PLANTED".into(), value.clone())];
    pair.start_backup().expect("the backup");
    format!("LOCKSTEP_PLANTED={value}")
}

/// Starts something that records into a file of the name.
fn recorded<T>(pair: &mut Pair, name: &str, every: &str, start: impl FnOnce(&mut Pair) -> T) -> T {
    let path = pair.directory().join(name);
    let others = pair.options_mut().vm_options.clone();
    let record = ["--record", path.to_str().expect("UTF-8"), "--checkpoint-every", every];
    pair.options_mut().vm_options.extend(record.map(String::from));
    let started = start(pair);
    pair.options_mut().vm_options = others;
    started
}

/// Gives a machine that runs alone a backup with a fault.
fn replicate(pair: &mut Pair, recording: &Path, fault: &Fault) -> String {
    let from = Recording::open(recording).expect("a recording under way").end().count + HEAD_START;
    let planted = match fault.recorded {
        true => recorded(pair, OF_BACKUP, "0", |pair| start_backup(pair, fault, from)),
        false => start_backup(pair, fault, from),
    };
    let request = format!("replicate {}", pair.backup_address());
    let answer = control::ask(&pair.control(Part::Primary), &request).expect("an answer");
    assert!(!answer.contains("error"), "{answer}");
    planted
}

/// Calls the guest, which begins to work, or ends it.
fn call(pair: &Pair) {
    wait_until("the guest to answer", || {
        let mut answer = String::new();
        let stream = TcpStream::connect(("127.0.0.1", pair.port()));
        stream.and_then(|mut stream| stream.read_to_string(&mut answer)).is_ok() && answer == "called\n"
    });
}

/// Waits until the backup has compared a digest, has the guest work until the backup has gone astray, and
/// looks at what that did to the pair.
fn catch(pair: &mut Pair, fault: &Fault, planted: String, generation: u64) -> Caught {
    let log = pair.log(Part::Backup);
    let compared = |pair: &Pair| pair.status(Part::Backup).ok()?["backup"]["digests"].as_u64();
    wait_until("a digest to be compared", || compared(pair) > Some(0));
    call(pair);
    assert_eq!(pair.exit_code(Part::Backup), DIVERGED, "{}: {}", fault.kind, pair.log_tail(Part::Backup));
    let said = std::fs::read_to_string(log).expect("its log");
    assert!(said.contains("a fault is planted here") && !said.contains("is live here"), "{said}");
    // The primary goes on alone, and so does its guest.
    pair.assert_one_live(Part::Primary, generation);
    let appended = |pair: &Pair| pair.status(Part::Primary).expect("status")["live"]["appended"].as_u64();
    let before = appended(pair);
    wait_until("the guest to go on", || appended(pair) > before);
    call(pair);
    let report = take_report(pair.directory());
    let at = number_after(&report, "diverged at entry ");
    let agreed = number_after(&report, "the state agreed last at entry ");
    println!("{}: {}", fault.kind, report.lines().next().unwrap_or_default());
    assert!(agreed > 0 && agreed < at, "{report}");
    let next = report.split_once("replay with: ").map(|(_, command)| command.trim().to_string());
    assert_eq!(next.is_some(), fault.recorded, "{report}");
    Caught { planted, next, agreed, at }
}

/// `diverge` of the machine's own replay against one with the fault.
fn diverge(recording: &Path, caught: &Caught, from: u64) -> Value {
    let against = format!("env {} {PROGRAM}", caught.planted);
    let mut command = Command::new(PROGRAM);
    command.arg("diverge").arg(recording).args([
        "--json",
        "--from",
        &from.to_string(),
        "--against",
        &against,
    ]);
    verdict(command)
}

fn verdict(mut command: Command) -> Value {
    let output = command.output().expect("the program runs");
    assert_eq!(output.status.code(), Some(DIVERGED), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("a verdict")
}

/// What the report told to type shows what differs in the backup that diverged, from what its log leads to.
fn follow_the_report(next: &str) {
    let words: Vec<&str> = next.split(' ').collect();
    let mut command = Command::new(PROGRAM);
    command.args(words.strip_prefix(&["lockstep"]).expect("a lockstep")).arg("--json");
    let verdict = verdict(command);
    assert_eq!(verdict["verdict"], "astray", "{verdict}");
    assert!(verdict["difference"]["pages"].as_u64() > Some(0), "{verdict}");
}

/// The fault acted after the digest that agreed, and no digest lies between it and the check that caught it.
fn check_interval(log: &[LogEntry], caught: &Caught, verdict: &Value) {
    let acted = verdict["agreed"].as_u64().expect("a position");
    let of = |seq: Seq| &log[seq as usize - 1];
    assert!(of(caught.agreed).at.count <= acted, "acted at {acted}, agreed at {:?}", of(caught.agreed).at);
    assert!(acted <= of(caught.at).at.count, "acted at {acted}, caught at {:?}", of(caught.at).at);
    let missed = log[..caught.at as usize - 1]
        .iter()
        .filter(|entry| matches!(entry.event, Event::Digest(_)) && entry.at.count > acted);
    assert_eq!(missed.count(), 0, "digests after position {acted} and before entry {}", caught.at);
}

/// The features that cargo gives the crates of the program when dependencies of these kinds count.
fn features(edges: &str) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["tree", "--offline", "--package", "lockstep", "--prefix", "none", "--format", "{p} {f}"]);
    let output = command.args(["--edges", edges]).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn faults_are_in_what_is_built_for_tests_and_in_nothing_else() {
    assert!(features("normal,build,dev").contains("planted-faults"));
    let of_use = features("normal,build");
    assert!(of_use.contains("lockstep-softcpu") && !of_use.contains("planted-faults"), "{of_use}");
}

#[test]
fn planted_faults_in_a_backup_of_linux_are_caught_at_once_and_named() {
    let name = "planted_faults_in_a_backup_of_linux_are_caught_at_once_and_named";
    if let Err(error) = lockstep::cli::guest::build_if_missing("busybox") {
        eprintln!("SKIPPED {name}: {error:#}");
        return;
    }
    let line = format!(
        "console=ttyS0 panic=-1 reboot=t cryptomgr.notests quiet ip=10.77.0.2/24 gw=10.77.0.1 run=\"{WORK}\""
    );
    let options = ["--guest", "busybox", "--engine", "soft", "--memory", MEMORY_MIB, "--cmdline", &line];
    let mut pair = Pair::services(name, |cluster| {
        cluster.vm_options.extend(options.map(String::from));
        cluster.pair_options.extend(["--timeout-ms", TIMEOUT_MS].map(String::from));
    })
    .expect("it needs no KVM");
    let recording = pair.directory().join(OF_PRIMARY);
    let mut planted = start_backup(&mut pair, &FAULTS[0], BOOTED);
    recorded(&mut pair, OF_PRIMARY, "0.5", |pair| pair.start_primary().expect("the primary"));
    let mut caught = Vec::new();
    for (number, fault) in FAULTS.iter().enumerate() {
        if number > 0 {
            planted = replicate(&mut pair, &recording, fault);
        }
        caught.push(catch(&mut pair, fault, planted.clone(), number as u64 + 2));
    }
    control::ask(&pair.control(Part::Primary), "shutdown").expect("an answer");
    assert_eq!(pair.exit_code(Part::Primary), 0);

    let log: Vec<LogEntry> = {
        let recording = Recording::open(&recording).expect("a recording");
        recording.log().map(|entry| entry.expect("sound")).collect()
    };
    for (fault, caught) in FAULTS.iter().zip(&caught) {
        let from = log[caught.agreed as usize - 1].at.count;
        let verdict = diverge(&recording, caught, from);
        println!("{}: {verdict}", fault.kind);
        assert_eq!(verdict["verdict"], "parted", "{verdict}");
        (fault.named)(&verdict);
        caught.next.iter().for_each(|next| follow_the_report(next));
        check_interval(&log, caught, &verdict);
    }
}
