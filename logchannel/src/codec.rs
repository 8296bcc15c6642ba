//! The one place that knows how values become bytes: bincode 2 with variable-length integers, little endian,
//! and a limit on what a decode may read or allocate.
//!
//! bincode is unmaintained; whoever replaces it changes this file and `LOG_VERSION`.

use serde::{Serialize, de::DeserializeOwned};

/// Upper bound of one encoded value, in bytes: no message of any protocol here is larger.
pub const MAX_ENCODED_LEN: usize = 16 << 20;

/// What can go wrong between values and bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value would exceed `MAX_ENCODED_LEN`, or serde refused it.
    #[error("cannot encode: {0}")]
    Encode(#[source] bincode::error::EncodeError),
    /// The bytes are no such value, or claim a larger one than the limit.
    #[error("cannot decode: {0}")]
    Decode(#[source] bincode::error::DecodeError),
    /// The bytes hold a value, and then more.
    #[error("{0} bytes left over after the value")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_ENCODED_LEN>()
}

/// Appends the encoding of `value` to `out`.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(value, out, config()).map(|_| ()).map_err(CodecError::Encode)
}

/// The encoding of `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    encode_into(value, &mut out)?;
    Ok(out)
}

/// Decodes one value that must fill `bytes` exactly.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(CodecError::Decode)?;
    match bytes.len() - used {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}
