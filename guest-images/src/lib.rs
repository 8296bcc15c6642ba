//! (being written)
/// x
pub const MINIKV: &[u8] = &[];
