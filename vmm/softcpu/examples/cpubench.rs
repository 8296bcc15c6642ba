//! Runs a static Linux program that makes a handful of system calls (guest-images/cpubench) on the processor
//! alone, and says how fast: `cpubench PROGRAM [scale] [interpret]`.

use softcpu::{Cpu, Exit, State};

const RAM: usize = 128 << 20;
const HALT: u64 = 0x1000;
const STACK: u64 = 0x10_0000;

fn le(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// CPU time of this process: others may be using the machine, too.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let image = std::fs::read(arguments.next().expect("the program's path")).expect("it can be read");
    let scale = format!("scale={}\0", arguments.next().unwrap_or_else(|| "1".into()));
    let mut ram = vec![0u8; RAM];
    let (table, size, count) = (le(&image, 32, 8) as usize, le(&image, 54, 2) as usize, le(&image, 56, 2));
    for header in (0..count as usize).map(|n| table + n * size).filter(|at| le(&image, *at, 4) == 1) {
        let [offset, at, bytes] = [8, 16, 32].map(|field| le(&image, header + field, 8) as usize);
        ram[at..at + bytes].copy_from_slice(&image[offset..offset + bytes]);
    }
    ram[HALT as usize] = 0xf4;
    ram[STACK as usize + 256..][..scale.len()].copy_from_slice(scale.as_bytes());
    ram[STACK as usize + 16..][..8].copy_from_slice(&(STACK + 256).to_le_bytes());
    let host = ram.as_mut_ptr();
    // SAFETY: the vector outlives the processor, and is read only between its runs.
    let mut cpu = unsafe { Cpu::new(host, RAM) };
    if arguments.next().is_none() && !cpu.set_translation(Some(softcpu::THRESHOLD)) {
        println!("nothing is translated: this host lets no memory be executed");
    }
    let mut state = State { rip: le(&image, 24, 8), cr0: 0x33, cr4: 0x620, efer: 0xd01, ..State::default() };
    state.segments[1].access = 0xa09b;
    state.msrs.lstar = HALT;
    state.gpr[4] = STACK;
    cpu.set_state(&state);
    let mut last = (0.0, 0);
    loop {
        let exit = cpu.run(u64::MAX);
        let mut state = cpu.state();
        assert_eq!(exit, Exit::Hlt, "at {:#x}, {:x?}", state.rip, state.gpr);
        match state.gpr[0] {
            1 => {
                // SAFETY: the processor does not run.
                let ram = unsafe { std::slice::from_raw_parts(host, RAM) };
                let text = &ram[state.gpr[6] as usize..][..state.gpr[2] as usize];
                let (now, steps) = (cpu_seconds(), cpu.retired() - last.1);
                let rate = steps as f64 / (now - last.0) / 1e6;
                let line = String::from_utf8_lossy(text);
                println!("{:52} {steps:12} steps, {rate:6.0} million/s", line.trim());
                last = (now, cpu.retired());
            }
            60 => break,
            _ => state.gpr[0] = 0,
        }
        state.rip = state.gpr[1];
        state.rflags = state.gpr[11];
        cpu.set_state(&state);
    }
}
