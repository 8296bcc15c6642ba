//! The kernels: each does a fixed amount of work divided by `scale`, and returns a checksum of it.

use core::arch::x86_64::{_mm_add_pd, _mm_cvtsd_f64, _mm_mul_pd, _mm_set_pd, _mm_unpackhi_pd};
use core::hint::black_box;

use crate::linux;

/// A kernel: what it needs is prepared first, and not measured.
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// Makes what the work needs.
    pub prepare: fn(),
    /// The work, divided by the argument.
    pub work: fn(u64) -> u64,
}

const fn kernel(name: &'static str, prepare: fn(), work: fn(u64) -> u64) -> Kernel {
    Kernel { name, prepare, work }
}

/// All of them, in the order of docs/performance.md.
pub const ALL: [Kernel; 9] = [
    kernel("integer", nothing, integer),
    kernel("calls", nothing, calls),
    kernel("random-reads", numbers, random_reads),
    kernel("dependent-reads", cycle, dependent_reads),
    kernel("sequential-sum", numbers, sequential_sum),
    kernel("sse2-double", nothing, sse2_double),
    kernel("scalar-double", nothing, scalar_double),
    kernel("sha256", numbers, sha256),
    kernel("lseek", nothing, lseek),
];

const WORDS: usize = 8 << 20;
static mut TABLE: [u64; WORDS] = [0; WORDS];

/// 64 MiB.
fn table() -> &'static mut [u64; WORDS] {
    // SAFETY: the program has one thread, and one kernel at a time holds this.
    unsafe { &mut *(&raw mut TABLE) }
}

fn nothing() {}

fn numbers() {
    for (number, word) in table().iter_mut().enumerate() {
        *word = number as u64;
    }
}

/// A cycle through the table, each step by the word just read.
fn cycle() {
    for (number, word) in table().iter_mut().enumerate() {
        *word = (number as u64).wrapping_mul(5_000_011).wrapping_add(12_345_677) % WORDS as u64;
    }
}

fn integer(scale: u64) -> u64 {
    let (mut x, mut y) = (black_box(0x9e37_79b9_7f4a_7c15u64), 1u64);
    for i in 0..150_000_000 / scale {
        x ^= x << 7;
        x ^= x >> 9;
        y = y.wrapping_add(x ^ i);
    }
    y
}

#[inline(never)]
fn fibonacci(n: u64) -> u64 {
    if n < 2 { n } else { fibonacci(black_box(n - 1)) + fibonacci(black_box(n - 2)) }
}

fn calls(scale: u64) -> u64 {
    (0..(10 / scale).max(1)).map(|_| fibonacci(black_box(32))).fold(0, u64::wrapping_add)
}

fn random_reads(scale: u64) -> u64 {
    let table = table();
    let (mut seed, mut sum) = (1u64, 0u64);
    for _ in 0..10_000_000 / scale {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        sum = sum.wrapping_add(table[(seed >> 41) as usize % WORDS]);
    }
    sum
}

fn dependent_reads(scale: u64) -> u64 {
    let table = table();
    let mut at = 0;
    for _ in 0..5_000_000 / scale {
        at = table[at as usize % WORDS];
    }
    at
}

fn sequential_sum(scale: u64) -> u64 {
    let table = table();
    let mut sum = 0u64;
    for _ in 0..(8 / scale).max(1) {
        for word in black_box(&*table) {
            sum = sum.wrapping_add(*word);
        }
    }
    sum
}

fn sse2_double(scale: u64) -> u64 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { packed_double(scale) }
}

#[target_feature(enable = "sse2")]
fn packed_double(scale: u64) -> u64 {
    let factor = _mm_set_pd(0.999_999_9, 1.000_000_1);
    let (mut a, mut b) = (_mm_set_pd(1.0, 2.0), _mm_set_pd(3.0, 4.0));
    for _ in 0..black_box(20_000_000 / scale) {
        a = _mm_add_pd(_mm_mul_pd(a, factor), b);
        b = _mm_mul_pd(b, factor);
    }
    let sum = _mm_add_pd(a, b);
    (_mm_cvtsd_f64(sum) + _mm_cvtsd_f64(_mm_unpackhi_pd(sum, sum))).to_bits()
}

fn scalar_double(scale: u64) -> u64 {
    let (mut x, mut sum) = (black_box(1.5f64), 0.0f64);
    for i in 0..20_000_000 / scale {
        x = (x + i as f64) / (x + 1.0);
        sum += x * 0.5;
    }
    sum.to_bits()
}

const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// SHA-256's compression function (FIPS 180-4, 6.2.2).
#[inline(never)]
fn compress(state: &mut [u32; 8], block: &[u64; 8]) {
    let mut w = [0u32; 64];
    for (number, word) in w.iter_mut().take(16).enumerate() {
        *word = (block[number / 2] >> (32 * (number % 2))) as u32;
    }
    for t in 16..64 {
        let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
        let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1);
    }
    let mut v = *state;
    for t in 0..64 {
        let [a, b, c, d, e, f, g, h] = v;
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let t1 = h.wrapping_add(s1).wrapping_add(e & f ^ !e & g).wrapping_add(K[t]).wrapping_add(w[t]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
        v = [t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g];
    }
    for (word, add) in state.iter_mut().zip(v) {
        *word = word.wrapping_add(add);
    }
}

fn sha256(scale: u64) -> u64 {
    let mut state = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let blocks = (WORDS as u64 / 8 / scale) as usize;
    for block in table().as_chunks::<8>().0.iter().take(blocks) {
        compress(&mut state, block);
    }
    u64::from(state[0]) << 32 | u64::from(state[1])
}

fn lseek(scale: u64) -> u64 {
    let fd = linux::open_null();
    for _ in 0..1_000_000 / scale {
        linux::seek(fd);
    }
    0
}
