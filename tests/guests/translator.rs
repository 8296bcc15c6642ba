//! The translator under Linux: the same run with it, without it, and checked; what `status` says of it; hosts
//! that give it no memory to execute.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::guest::{Guest, PROGRAM, World};
use crate::seccomp::refuse_memory_files;

/// What a boot that switches itself off does: processes, pipes, numbers.
const LINE: &str = "console=ttyS0 panic=-1 reboot=t cryptomgr.notests quiet \
    run=\"dmesg | md5sum; seq 3000 | sort -r | head -n 2; ls -R /sys | wc -l; echo done-$((40 + 2))\"";

/// Where a run with only its own time ended, and in which state.
fn end_of(world: &World, jit: &str) -> String {
    let options = ["--cmdline", LINE, "--clock", "virtual", "--jit", jit, "--vm", jit, "--disk", jit];
    let mut guest = Guest::start(world, "busybox", &options);
    guest.expect("done-42");
    guest.ends("the same inputs end at position");
    let said = guest.transcript();
    said.lines().find(|line| line.contains("the same inputs end at")).expect("just seen").to_owned()
}

#[test]
fn a_boot_ends_alike_translated_interpreted_and_checked() {
    let Some(world) = World::new("busybox") else { return };
    let ends = ["on", "off", "check"].map(|jit| end_of(&world, jit));
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:#?}");
}

/// The kernel rewrites its own code while it boots.
#[test]
fn a_planted_fault_of_the_translator_ends_a_checked_run() {
    let Some(world) = World::new("busybox") else { return };
    let options = ["--cmdline", LINE, "--clock", "virtual", "--jit", "check"];
    let mut guest = Guest::start_as(&world, "busybox", &options, |command| {
        command.env("LOCKSTEP_PLANTED", "lost-invalidation@0");
    });
    guest.ends("internal error: translated code does not what the interpreter does: position ");
    assert_eq!(guest.exit_code(), Some(1), "{}", guest.transcript());
    assert!(guest.said("translated -> interpreted: "), "{}", guest.transcript());
}

fn status(world: &World) -> Value {
    let control = world.path("control");
    let output =
        Command::new(PROGRAM).args(["status", "--json"]).arg(control).output().expect("lockstep starts");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn status_text(world: &World) -> String {
    let output = Command::new(PROGRAM).arg("status").arg(world.path("control")).output();
    String::from_utf8_lossy(&output.expect("lockstep starts").stdout).into_owned()
}

#[test]
fn the_numbers_of_the_translator_are_in_status_and_its_code_is_listed() {
    let Some(world) = World::new("busybox") else { return };
    let control = world.path("control");
    let options = ["--control", control.to_str().expect("UTF-8"), "--perf-map"];
    let mut guest = Guest::start(&world, "busybox", &options);
    guest.expect("~ # ");
    guest.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1; echo end-$((1 + 2))", "end-3");
    let whole = status(&world);
    let translator = &whole["guest"]["translator"];
    let number = |name: &str| translator[name].as_u64().unwrap_or_else(|| panic!("{name}: {whole}"));
    assert_eq!((&translator["jit"], &translator["untranslated"]), (&"on".into(), &Value::Null), "{whole}");
    let (blocks, translations) = (number("blocks"), number("translations"));
    assert!(blocks > 1000, "{whole}");
    assert_eq!(blocks + number("invalidations"), translations, "{whole}");
    assert!(number("invalidations") > 0, "the kernel rewrites its own code: {whole}");
    let size = number("bytes") / translations;
    assert!((30..3000).contains(&size), "bytes of a block: {whole}");
    let spent = number("translating_ns") / translations;
    assert!((100..10_000_000).contains(&spent), "ns for a block: {whole}");
    let share = translator["native_share"].as_f64().expect("a share");
    assert!((0.5..=1.0).contains(&share), "{whole}");
    assert!(status_text(&world).contains("  translated: "), "{}", status_text(&world));
    let listed = format!("/tmp/perf-{}.map", whole["pid"]);
    let lines = std::fs::read_to_string(&listed).expect("a list");
    assert!(lines.lines().count() as u64 >= translations, "{} lines", lines.lines().count());
    for line in lines.lines().take(100) {
        let mut words = line.splitn(3, ' ');
        let mut hex = || u64::from_str_radix(words.next().expect("a word"), 16).expect("hexadecimal");
        assert!(hex() > 0 && hex() > 0, "{line}");
        assert!(words.next().expect("a name").starts_with("guest 0x"), "{line}");
    }
    guest.type_in("exit\n");
    guest.ends("the guest switched itself off, status 0");
    assert!(!Path::new(&listed).exists(), "{listed} is left");
}

#[test]
fn a_host_without_executable_memory_interprets_and_says_so() {
    let Some(world) = World::new("busybox") else { return };
    let mut doctor = Command::new(PROGRAM);
    refuse_memory_files(doctor.args(["doctor", "--json"]));
    let report: Value = serde_json::from_slice(&doctor.output().expect("it runs").stdout).expect("JSON");
    let why = report["untranslatable"].as_str().expect("a reason");
    assert_eq!(why, "the host gives no executable memory: Permission denied (os error 13)");
    let control = world.path("control");
    let options = ["--control", control.to_str().expect("UTF-8")];
    let mut guest = Guest::start_as(&world, "busybox", &options, refuse_memory_files);
    guest.expect("~ # ");
    let warning = format!("the guest's code is interpreted, not translated: {why}");
    assert_eq!(guest.transcript().matches(&warning).count(), 1, "{}", guest.transcript());
    let translator = &status(&world)["guest"]["translator"];
    assert_eq!(translator["untranslated"], why);
    assert_eq!((&translator["native_share"], &translator["translations"]), (&0.0.into(), &0.into()));
    assert!(status_text(&world).contains("  interpreted: the host gives no executable memory"));
    guest.type_in("exit\n");
    guest.ends("the guest switched itself off, status 0");
}
