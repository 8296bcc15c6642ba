//! The real world: clock, sockets, entropy. Nothing outside this module and the process drivers reads host
//! time.

pub mod clock;
pub mod control;

use std::io::Read;

/// 128 random bits from the kernel.
pub fn random_u128() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}
