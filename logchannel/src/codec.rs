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
    let (value, rest) = decode_prefix(bytes)?;
    match rest.len() {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// Decodes one value at the start of `bytes`; also the bytes after it.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), CodecError> {
    let (value, used) =
        bincode::serde::borrow_decode_from_slice(bytes, config()).map_err(CodecError::Decode)?;
    Ok((value, &bytes[used..]))
}

/// Appends `value`, at most 70 bits of it, seven bits a byte, low bits first, the top bit telling that more
/// follow.
pub(crate) fn put_varint(mut value: u128, out: &mut Vec<u8>) {
    debug_assert!(value >> 70 == 0);
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Takes a varint of at most ten bytes from the start of `bytes`. `None`: it is cut off, or longer.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u128> {
    let mut value = 0;
    for i in 0..10 {
        let byte = *bytes.get(i)?;
        value |= u128::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(value);
        }
    }
    None
}

/// For `#[serde(with)]` on a `Vec<u8>`: the same encoding as without, moved as one block instead of byte by
/// byte.
pub(crate) mod bytes {
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_bytes(Bytes)
    }

    struct Bytes;

    impl<'de> de::Visitor<'de> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = seq.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes)
        }
    }
}
