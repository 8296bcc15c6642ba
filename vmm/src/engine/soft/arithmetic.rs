//! What of the host's processor shows in a guest's results. SSE and x87 run on the host's own instructions;
//! IEEE 754 says what most of them return, but not the approximations (RCPPS, RSQRTPS) nor the last bits of
//! the transcendental ones. Processors of one kind agree, so a pair compares a digest of samples.

use softcpu::{Cpu, Exit, Seg, Segment, State};
use twox_hash::XxHash3_64;

const RAM_BYTES: usize = 64 << 10;
const CODE: usize = 0x1000;
const SAMPLES: usize = 0x2000;
const RESULTS: usize = 0x4000;
const ROUNDS: usize = 64;
const ROUND_BYTES: usize = 128;

/// 32-bit code, a round of samples from ESI to EDI, ECX times:
/// RCPPS, RSQRTPS, FSIN, F2XM1, FPATAN, FYL2X, FPTAN, FCOS.
const PROGRAM: &[&[u8]] = &[
    &[0x0f, 0x28, 0x06],             // movaps xmm0, [esi]
    &[0x0f, 0x53, 0xc8],             // rcpps xmm1, xmm0
    &[0x0f, 0x29, 0x0f],             // movaps [edi], xmm1
    &[0x0f, 0x52, 0xc8],             // rsqrtps xmm1, xmm0
    &[0x0f, 0x29, 0x4f, 0x10],       // movaps [edi + 16], xmm1
    &[0xd9, 0x06, 0xd9, 0xfe],       // fld [esi]; fsin
    &[0xdb, 0x7f, 0x20],             // fstp tbyte [edi + 32]
    &[0xd9, 0x06, 0xd9, 0xf0],       // fld [esi]; f2xm1
    &[0xdb, 0x7f, 0x2a],             // fstp tbyte [edi + 42]
    &[0xd9, 0x06, 0xd9, 0x46, 0x04], // fld [esi]; fld [esi + 4]
    &[0xd9, 0xf3, 0xdb, 0x7f, 0x34], // fpatan; fstp tbyte [edi + 52]
    &[0xd9, 0xe8, 0xd9, 0x06],       // fld1; fld [esi]
    &[0xd9, 0xf1, 0xdb, 0x7f, 0x3e], // fyl2x; fstp tbyte [edi + 62]
    &[0xd9, 0x06, 0xd9, 0xf2],       // fld [esi]; fptan
    &[0xdd, 0xd8, 0xdb, 0x7f, 0x48], // fstp st0; fstp tbyte [edi + 72]
    &[0xd9, 0x06, 0xd9, 0xff],       // fld [esi]; fcos
    &[0xdb, 0x7f, 0x52],             // fstp tbyte [edi + 82]
    &[0x83, 0xc6, 0x10],             // add esi, 16
    &[0x81, 0xc7, 0x80, 0, 0, 0],    // add edi, 128
    &[0x49],                         // dec ecx
];

/// A digest of how this host's processor rounds where the architecture leaves it open.
pub fn host_arithmetic() -> String {
    let results = results();
    format!("arithmetic {:016x}", XxHash3_64::oneshot(&results))
}

fn results() -> Vec<u8> {
    let mut ram = vec![0u8; RAM_BYTES];
    let mut code = PROGRAM.concat();
    let back = -(code.len() as i8) - 2;
    code.extend([0x75, back as u8, 0xf4]); // jnz to the start; hlt
    ram[CODE..CODE + code.len()].copy_from_slice(&code);
    // Positive numbers below 1 that use all bits of the fraction.
    let mut seed = 0x9e37_79b9u32;
    for number in 0..4 * ROUNDS {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let sample = f32::from_bits((0x3f00_0000 - (seed >> 30 << 23)) | seed & 0x7f_ffff);
        ram[SAMPLES + 4 * number..][..4].copy_from_slice(&sample.to_le_bytes());
    }
    // SAFETY: the vector lives until the processor is dropped, and nobody touches it during the run.
    let mut cpu = unsafe { Cpu::new(ram.as_mut_ptr(), RAM_BYTES) };
    let flat = |access| Segment { selector: 8, base: 0, limit: u32::MAX, access };
    let mut state = State { rip: CODE as u64, cr0: 0x11, cr4: 0x200, ..State::default() };
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        state.segments[seg as usize] = flat(0xc093);
    }
    state.segments[Seg::Cs as usize] = flat(0xc09b);
    (state.gpr[1], state.gpr[6], state.gpr[7]) = (ROUNDS as u64, SAMPLES as u64, RESULTS as u64);
    cpu.set_state(&state);
    let exit = cpu.run((ROUNDS * PROGRAM.len() * 4) as u64);
    assert_eq!(exit, Exit::Hlt, "the samples were computed");
    drop(cpu);
    ram[RESULTS..RESULTS + ROUNDS * ROUND_BYTES].to_vec()
}
