//! Debian's gdb in batch mode.

use lockstep::debug::symbols::Symbols;
use lockstep::engine::EngineKind;

use crate::guest::engines;
use crate::support::{Debuggee, gdb_or_skip};

/// Called for each INCR, at CPL3.
const INCR: &str = "minikv_core::commands::strings::incr";

fn address(name: &str) -> u64 {
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("minikv has symbols");
    symbols.address(name).unwrap_or_else(|| panic!("no symbol {name}"))
}

#[test]
fn gdb_stops_steps_looks_and_leaves_on_kvm() {
    stop_step_look_leave(EngineKind::Kvm);
}

#[test]
fn gdb_stops_steps_looks_and_leaves_on_soft() {
    stop_step_look_leave(EngineKind::Soft);
}

fn stop_step_look_leave(kind: EngineKind) {
    let test = "gdb stops, steps, looks and leaves";
    if !engines(test).contains(&kind) || !gdb_or_skip(test) {
        return;
    }
    let mut debuggee = Debuggee::start(&["--engine", kind.name()]);
    let mut gdb = debuggee.gdb(&[
        "info registers rip cs cr0 cr3 efer",
        &format!("break *{:#x}", address(INCR)),
        "continue",
        "echo at-breakpoint\\n",
        "info registers rip rsp eflags fs_base mxcsr",
        "x/4i $pc",
        "x/8bx $pc",
        "x/2gx $rsp",
        "stepi",
        "stepi",
        "stepi",
        "info registers rip",
        "monitor where",
        "monitor position",
        "continue",
        "echo again\\n",
        "delete",
        "detach",
    ]);
    let mut client = debuggee.client();
    assert_eq!(client.ask("SET n 41"), "+OK");
    assert_eq!(client.ask("INCR n"), ":42");
    gdb.wait_for("at-breakpoint");
    assert_eq!(client.ask("INCR n"), ":43");
    let output = gdb.finish();
    assert_eq!(output.matches("Breakpoint 1, ").count(), 2, "{output}");
    let incr = address(INCR);
    let rip = |offset: u64| format!("rip            {:#x}", incr + offset);
    // PUSH RBX, MOV RBX RDI, MOV EDX imm32.
    assert!(output.contains(&rip(0)) && output.contains(&rip(9)), "{output}");
    assert!(output.contains("0x53\t0x48\t0x89\t0xfb"), "the code without the breakpoint:\n{output}");
    assert!(output.contains(&format!("{:#x} {INCR}+0x9", incr + 9)), "{output}");
    assert!(output.contains("again") && output.contains("detached"), "{output}");
    assert_eq!(client.ask("GET n"), "$2");
    assert_eq!(client.ask(""), "43");
}

#[test]
fn ctrl_c_stops_a_guest_that_idles_and_registers_and_memory_can_be_written() {
    if !gdb_or_skip("Ctrl-C stops a guest that idles") {
        return;
    }
    for engine in engines("Ctrl-C stops a guest that idles") {
        let mut debuggee = Debuggee::start(&["--engine", engine.name()]);
        // Where minikv says why it died.
        let scratch = address("EXCEPTION_RECORD");
        let start = format!("{:#x}", address("_start"));
        let mut gdb = debuggee.gdb(&[
            "continue",
            "echo stopped\\n",
            "set $saved = $r15",
            "set var $r15 = 0x1122334455667788",
            "print/x $r15",
            "set var $r15 = $saved",
            &format!("set var *(unsigned char *){scratch:#x} = 0x77"),
            &format!("print/x *(unsigned char *){scratch:#x}"),
            &format!("set var *(unsigned char *){scratch:#x} = 0"),
            "monitor translate 0xffff800000000000",
            &format!("monitor translate {scratch:#x}"),
            "monitor physical 0x100000 4",
            "monitor address _start",
            "detach",
        ]);
        let mut client = debuggee.client();
        assert_eq!(client.ask("SET a b"), "+OK");
        gdb.interrupt();
        gdb.wait_for("stopped");
        assert_eq!(client.ask("STRLEN a"), ":1");
        let output = gdb.finish();
        for expected in
            ["SIGINT", "0x1122334455667788", "= 0x77", "is not mapped", "000000100000  ", &start, "detached"]
        {
            assert!(output.contains(expected), "{engine}: no {expected:?}:\n{output}");
        }
        assert_eq!(client.ask("GET a"), "$1");
    }
}

#[test]
fn watchpoints_stop_where_memory_changes_on_soft() {
    if !gdb_or_skip("watchpoints stop where memory changes") {
        return;
    }
    let mut debuggee = Debuggee::start(&["--engine", "soft"]);
    let gdb = debuggee.gdb(&[
        &format!("break *{:#x}", address(INCR)),
        "continue",
        "delete",
        "set $place = $rsp - 8",
        "watch *(long *)$place",
        "continue",
        "echo changed\\n",
        "delete",
        "info registers rip",
        "detach",
    ]);
    let mut client = debuggee.client();
    assert_eq!(client.ask("INCR n"), ":1");
    let output = gdb.finish();
    let after_push = format!("rip            {:#x}", address(INCR) + 1);
    assert!(output.contains("Hardware watchpoint 2") && output.contains(&after_push), "{output}");
}
