//! The architecture beyond the user-level instructions, on every engine: paging, exceptions, descriptors,
//! control transfers, debug traps, interrupts. One test body per subject; each case says what the manuals say
//! it must do (Intel SDM vol. 3, AMD APM vol. 2), and engines that run the same case must end in the same
//! state.
//!
//! What the manuals say is what the software CPU must do. Where a host's KVM is known to do something else
//! (`deviations`), that is counted, and checked to be still so; whatever else differs fails.

mod cases;
mod code;
mod compat;
mod control;
mod debug;
mod delivery;
mod deviations;
mod exceptions;
mod hosts;
mod interrupts;
mod machine;
mod mapper;
mod paging;
mod ports;
mod scaffold;
mod segments;
mod strings;
mod tlb;
mod transfers;

/// Every case again, with each block translated before it runs.
#[test]
fn the_software_cpu_does_the_same_translated() {
    const VARIABLE: &str = "LOCKSTEP_TRANSLATE_FROM";
    if std::env::var(VARIABLE).is_ok() {
        return;
    }
    let program = std::env::current_exe().expect("the path of this test");
    let output = std::process::Command::new(program)
        .env(VARIABLE, "1")
        .env("LOCKSTEP_SYSTEM_ENGINE", "soft")
        .output()
        .expect("the same tests");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok"), "{text}");
}
