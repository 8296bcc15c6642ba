//! Debian's gdb in batch mode.

use lockstep::debug::symbols::Symbols;

use crate::guest::kvm_or_skip;
use crate::support::{Debuggee, gdb_or_skip};

/// Called for each INCR, at CPL3.
const INCR: &str = "minikv_core::commands::strings::incr";

fn address(name: &str) -> u64 {
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("minikv has symbols");
    symbols.address(name).unwrap_or_else(|| panic!("no symbol {name}"))
}

#[test]
fn gdb_stops_at_a_function_steps_looks_and_leaves() {
    const NAME: &str = "gdb_stops_at_a_function_steps_looks_and_leaves";
    if !kvm_or_skip(NAME) || !gdb_or_skip(NAME) {
        return;
    }
    let mut debuggee = Debuggee::start(&["--engine", "kvm"]);
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
    println!("{output}");
    assert!(output.contains("Breakpoint 1, "), "{output}");
    assert!(
        output.contains("<_ZN11minikv_core8commands7strings4incr") || output.contains("strings::incr"),
        "{output}"
    );
    assert!(output.contains("again"), "{output}");
    assert_eq!(client.ask("GET n"), "$2");
    assert_eq!(client.ask(""), "43");
}
