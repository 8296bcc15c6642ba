//! The engine around the software CPU: what it caches, exits, states.

use super::*;
use crate::engine::state::Segment;

const CODE: usize = 0x10_0000;
const PML4: usize = 0x1000;

/// An engine in 64-bit mode at `CODE`, with the first 4 GiB mapped to themselves.
fn engine(ram: &mut Ram, code: &[u8]) -> SoftEngine {
    let word = |ram: &mut Ram, at: usize, value: u64| ram.write(at, &value.to_le_bytes());
    word(ram, PML4, 0x2003);
    for gib in 0..4 {
        word(ram, 0x2000 + gib * 8, (gib as u64) << 30 | 0x83);
    }
    ram.write(CODE, code);
    let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
    let (code, data) = (flat(0x10, 0xa09b), flat(0x18, 0xc093));
    let state = CpuState {
        rip: CODE as u64,
        rflags: 2,
        segments: [data, code, data, data, data, data, flat(0, 1 << 16), flat(0, 0x8b)],
        cr: [0x8001_0031, 0, PML4 as u64, 0x20, 0],
        efer: 0x500,
        ..CpuState::default()
    };
    let mut engine = SoftEngine::new(ram);
    engine.restore(&state, Position::at(0)).expect("a state");
    engine
}

fn ram() -> Ram {
    Ram::new(4 << 20).expect("memory")
}

fn run(engine: &mut SoftEngine, entry: VmEntry, until: u64) -> VmExit {
    engine.run(entry, Some(Position::at(until))).expect("no host failure")
}

#[test]
fn code_that_a_device_overwrites_is_decoded_anew() {
    let mut ram = ram();
    // inc eax; jmp $-2
    let mut engine = engine(&mut ram, &[0xff, 0xc0, 0xeb, 0xfc]);
    assert_eq!(run(&mut engine, VmEntry::Resume, 1000), VmExit::Reached);
    assert_eq!(engine.save().expect("a state").gpr[0], 500);
    ram.write(CODE + 1, &[0xc8]); // dec eax
    assert_eq!(run(&mut engine, VmEntry::Resume, 2000), VmExit::Reached);
    assert_eq!(engine.save().expect("a state").gpr[0], 0);
}

#[test]
fn page_tables_that_a_device_overwrites_are_walked_anew() {
    let mut ram = ram();
    // mov al, [rbx]; jmp $-2
    let mut engine = engine(&mut ram, &[0x8a, 0x03, 0xeb, 0xfc]);
    ram.write(0x2000 + 4 * 8, &0x83u64.to_le_bytes());
    ram.write(0x2000 + 5 * 8, &0x83u64.to_le_bytes());
    ram.write(0x3000, &[7]);
    let mut state = engine.save().expect("a state");
    state.gpr[3] = (4 << 30) + 0x3000;
    engine.restore(&state, Position::at(0)).expect("a state");
    assert_eq!(run(&mut engine, VmEntry::Resume, 100), VmExit::Reached);
    assert_eq!(engine.save().expect("a state").gpr[0], 7);
    ram.write(0x2000 + 4 * 8, &0u64.to_le_bytes());
    assert_eq!(run(&mut engine, VmEntry::Resume, 200), VmExit::Shutdown, "the page is gone, and no IDT");
}

#[test]
fn an_instruction_with_two_exits_is_one_position() {
    let mut ram = ram();
    // add [rbx], ecx; mov al, [rbx]; hlt
    let mut engine = engine(&mut ram, &[0x01, 0x0b, 0x8a, 0x03, 0xf4]);
    let mut state = engine.save().expect("a state");
    (state.gpr[3], state.gpr[1]) = (0xd000_0000, 5);
    engine.restore(&state, Position::at(7)).expect("a state");
    let read = run(&mut engine, VmEntry::Resume, 100);
    assert_eq!((read, engine.position().count), (VmExit::MmioRead { address: 0xd000_0000, size: 4 }, 7));
    engine.complete(VmEntry::Value(37)).expect("no host failure");
    assert!(!engine.between_instructions());
    let write = run(&mut engine, VmEntry::Resume, 100);
    assert_eq!(write, VmExit::MmioWrite { address: 0xd000_0000, size: 4, value: 42 });
    assert!(engine.between_instructions());
    assert_eq!(engine.position().count, 8, "a write has retired when it is handed out");
    let read = run(&mut engine, VmEntry::Resume, 100);
    assert_eq!(read, VmExit::MmioRead { address: 0xd000_0000, size: 1 });
    assert_eq!(run(&mut engine, VmEntry::Value(0xab), 100), VmExit::Hlt);
    assert_eq!(engine.position().count, 10);
    assert_eq!(engine.save().expect("a state").gpr[0], 0xab);
}

#[test]
fn states_go_out_and_in_unchanged() {
    let mut ram = ram();
    let mut engine = engine(&mut ram, &[0xf4]);
    let mut state = engine.save().expect("a state");
    for (number, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x0101_0101_0101_0101 * number as u64;
    }
    state.rflags = 0x246;
    state.dr = [1, 2, 3, 4, 0xffff_0ff1, 0x400];
    for (number, (_, value)) in state.msrs.iter_mut().enumerate() {
        *value = 77 + number as u64;
    }
    for number in 0..16 {
        state.xsave[160 + 17 * number] = 9;
    }
    state.xsave[4] = 0xff;
    (state.events.interrupt, state.events.shadow) = (Some(33), 2);
    engine.restore(&state, Position::at(1_000_000)).expect("a state");
    let again = engine.save().expect("a state");
    assert_eq!(state.diff(&again), Vec::<String>::new());
}

#[test]
fn the_hosts_arithmetic_is_named() {
    assert_eq!(host_arithmetic(), host_arithmetic());
}

/// An engine like `engine`, checked from the first translation on.
fn checked(ram: &mut Ram, code: &[u8]) -> SoftEngine {
    let mut plain = engine(ram, code);
    let state = plain.save().expect("a state");
    let options = EngineOptions { jit: Jit::Check, ..EngineOptions::default() };
    let mut checked = SoftEngine::with(ram, options).expect("memory for two");
    assert!(checked.checker.is_some(), "the host lets code be executed");
    checked.restore(&state, Position::at(0)).expect("a state");
    checked
}

#[test]
fn a_checked_processor_takes_all_inputs_twice() {
    let mut ram = ram();
    // again: inc eax; mov [rsi], eax; mov ecx, [rbx]; jmp again
    let mut engine = checked(&mut ram, &[0xff, 0xc0, 0x89, 0x06, 0x8b, 0x0b, 0xeb, 0xf8]);
    let mut state = engine.save().expect("a state");
    (state.gpr[3], state.gpr[6]) = (0x8000, 0x9000);
    engine.restore(&state, Position::at(0)).expect("a state");
    engine.track_dirty_pages(true).expect("it can");
    assert_eq!(run(&mut engine, VmEntry::Resume, 400_000), VmExit::Reached);
    assert!(engine.statistics().expect("a translator").native_instructions > 300_000);
    let pages = engine.take_dirty_pages().expect("it tracks");
    assert_eq!(pages[0], 1 << 9 | 6, "the page and two page tables, of two processors");
    // A device writes what the guest wrote as well, and somebody asks for pages before the guest goes on.
    assert_eq!(run(&mut engine, VmEntry::Resume, 401_000), VmExit::Reached);
    ram.write(0x9008, &[1; 16]);
    assert_eq!(engine.take_dirty_pages().expect("they agree")[0], 1 << 9);
    // A device writes data, then code; then the data is a device's.
    ram.write(0x8000, &[7]);
    assert_eq!(run(&mut engine, VmEntry::Resume, 500_000), VmExit::Reached);
    assert_eq!(engine.save().expect("a state").gpr[1], 7);
    ram.write(CODE + 1, &[0xc8]);
    assert_eq!(run(&mut engine, VmEntry::Resume, 600_000), VmExit::Reached);
    let mut state = engine.save().expect("a state");
    assert_eq!(state.gpr[0], 100_000);
    state.gpr[3] = 0xd000_0000;
    engine.restore(&state, Position::at(600_000)).expect("a state");
    for value in 0..50 {
        let exit = run(&mut engine, VmEntry::Value(value), u64::MAX);
        assert_eq!(exit, VmExit::MmioRead { address: 0xd000_0000, size: 4 });
        engine.skip_time(5);
    }
    engine.kicker().expect("it can be kicked")();
    assert_eq!(run(&mut engine, VmEntry::Value(1), u64::MAX), VmExit::Kicked);
}

#[test]
fn a_checked_processor_that_differs_is_found() {
    let mut ram = ram();
    // mov ecx, 100000; again: inc eax; mov [rsi], ecx; dec ecx; jnz again
    let code = [0xb9, 0xa0, 0x86, 1, 0, 0xff, 0xc0, 0x89, 0x0e, 0xff, 0xc9, 0x75, 0xf8, 0xf4];
    let mut engine = checked(&mut ram, &code);
    let mut state = engine.save().expect("a state");
    state.gpr[6] = 0x9000;
    engine.restore(&state, Position::at(0)).expect("a state");
    assert_eq!(run(&mut engine, VmEntry::Resume, 100_000), VmExit::Reached);
    let told = |engine: &mut SoftEngine| {
        let end = engine.run(VmEntry::Resume, Some(Position::at(300_000))).map_err(|error| error.to_string());
        end.expect_err("they differ")
    };
    // Where one of them wrote, and the other another value.
    let page = [0xa5; PAGE_BYTES];
    engine.checker.as_mut().expect("a checker").ram_for_tests().write(0x9000, &page);
    let memory = told(&mut engine);
    assert!(
        memory.contains("internal error") && memory.contains("memory from 0x9004 on 00 -> a5"),
        "{memory}"
    );
    // A register.
    engine.restore(&state, Position::at(0)).expect("a state");
    assert_eq!(run(&mut engine, VmEntry::Resume, 100_000), VmExit::Reached);
    let mut other = engine.cpu.state();
    other.gpr[8] ^= 1;
    engine.cpu.set_state(&other);
    let register = told(&mut engine);
    assert!(register.contains("position 100") && register.contains("register r8 0x1 -> 0x0"), "{register}");
}

/// A loop whose instruction another one overwrites.
#[test]
fn a_lost_invalidation_is_found_by_the_check() {
    // again: inc eax; cmp eax, 1000; jne 1f; mov byte [rsi], 0xc8; 1: jmp again
    let code = [0xff, 0xc0, 0x3d, 0xe8, 3, 0, 0, 0x75, 0x03, 0xc6, 0x06, 0xc8, 0xeb, 0xf2];
    for lost in [false, true] {
        let mut ram = ram();
        let mut engine = checked(&mut ram, &code);
        let mut state = engine.save().expect("a state");
        state.gpr[6] = CODE as u64 + 1;
        engine.restore(&state, Position::at(0)).expect("a state");
        if lost {
            engine.cpu.lose_invalidations_from(0);
        }
        let end = engine.run(VmEntry::Resume, Some(Position::at(10_000)));
        match lost {
            false => assert_eq!(end.expect("they agree"), VmExit::Reached),
            true => {
                let told = end.expect_err("they differ").to_string();
                assert!(told.contains("register rax"), "{told}");
            }
        }
    }
}
