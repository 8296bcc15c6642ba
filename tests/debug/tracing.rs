//! The instruction trace.

use lockstep::debug::{DebugArgs, Debugging};
use lockstep::engine::EngineKind;
use lockstep::memory::Ram;

use crate::guest::engines;
use crate::looking::run;

#[test]
fn a_trace_has_every_position_once_and_changes_nothing() {
    let directory = tempfile::TempDir::new().expect("a directory");
    let file = directory.path().join("trace.txt");
    let args = DebugArgs {
        trace_from: Some(100_000),
        trace_to: Some(100_999),
        trace_file: Some(file.clone()),
        ..DebugArgs::default()
    };
    let debugging = Debugging::new(&args, guest_images::MINIKV, false).expect("a trace");
    let traced = run(EngineKind::Soft, &debugging);
    assert_eq!(traced, run(EngineKind::Soft, &Debugging::default()), "a trace changed the run");
    let text = std::fs::read_to_string(&file).expect("a trace");
    let positions: Vec<u64> = text
        .lines()
        .map(|line| line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a position"))
        .collect();
    assert_eq!(positions, (100_000..=100_999).collect::<Vec<u64>>());
    let changed = text.lines().filter(|line| line.contains('=')).count();
    let named = text.lines().filter(|line| line.contains("+0x")).count();
    assert!(changed > 500 && named > 500, "{text}");
    println!("{}", text.lines().take(12).collect::<Vec<_>>().join("\n"));
}

#[test]
fn an_engine_that_stops_only_at_exits_cannot_be_traced() {
    if !engines("an engine that stops only at exits cannot be traced").contains(&EngineKind::Kvm) {
        return;
    }
    let args = DebugArgs { trace_from: Some(0), ..DebugArgs::default() };
    let debugging = Debugging::new(&args, guest_images::MINIKV, false).expect("a trace");
    let ram = Ram::new(4 << 20).expect("guest memory");
    let wrapped = debugging.wrap(EngineKind::Kvm.create(&ram).expect("an engine"), &ram);
    let error = wrapped.err().expect("it is refused").to_string();
    assert!(error.contains("--engine soft"), "{error}");
}
