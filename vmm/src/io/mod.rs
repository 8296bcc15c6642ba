//! The real world: clock, sockets, entropy. Nothing outside this module and the process drivers reads host
//! time.

pub mod clock;
pub mod console;
pub mod control;
pub mod repeated;

use std::io::Read;

/// Random words from the kernel.
pub fn random_words(count: usize) -> std::io::Result<Vec<u64>> {
    let mut bytes = vec![0; 8 * count];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect())
}

/// 128 random bits from the kernel.
pub fn random_u128() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}
