//! Compressed data as distributions have it: kernels inside a bzImage, and kernel modules.
//!
//! The kernel's build appends the unpacked size, four bytes, to what the compressor wrote (all but gzip,
//! whose own trailer holds it): what follows the compressed data is ignored here.

use std::io::Read;

/// Most bytes that anything here may unpack to.
const MAX_UNPACKED: u64 = 512 << 20;
/// A block of the legacy LZ4 format unpacks to at most so much.
const LZ4_BLOCK: usize = 8 << 20;

/// Why data cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// None of the formats known here.
    #[error("packed with {0}, which is not known here: gzip, xz, zstd and legacy LZ4 are")]
    Format(&'static str),
    /// The data contradicts its format.
    #[error("damaged {format} data: {reason}")]
    Damaged {
        /// The format.
        format: &'static str,
        /// What the unpacker said.
        reason: String,
    },
    /// More than a kernel can have.
    #[error("it unpacks to more than {} MiB", MAX_UNPACKED >> 20)]
    TooLarge,
}

/// Unpacks `data`, whose first bytes tell the format.
pub fn unpack(data: &[u8]) -> Result<Vec<u8>, UnpackError> {
    match data {
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => legacy_lz4(rest),
        [0x1f, 0x8b, ..] => read("gzip", flate2::read::GzDecoder::new(data)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read("xz", liblzma::read::XzDecoder::new(data)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(data);
            read("zstd", decoder.map_err(|error| damaged("zstd", error))?.single_frame())
        }
        [b'B', b'Z', b'h', ..] => Err(UnpackError::Format("bzip2")),
        [0x5d, 0, 0, ..] => Err(UnpackError::Format("lzma")),
        [0x89, b'L', b'Z', b'O', ..] => Err(UnpackError::Format("LZO")),
        _ => Err(UnpackError::Format("something")),
    }
}

fn damaged(format: &'static str, reason: impl ToString) -> UnpackError {
    UnpackError::Damaged { format, reason: reason.to_string() }
}

fn read(format: &'static str, reader: impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut out = Vec::new();
    reader.take(MAX_UNPACKED + 1).read_to_end(&mut out).map_err(|error| damaged(format, error))?;
    if out.len() as u64 > MAX_UNPACKED { Err(UnpackError::TooLarge) } else { Ok(out) }
}

/// Blocks of `size u32 | data`, each of 8 MiB unpacked but the last, until the data ends.
fn legacy_lz4(mut rest: &[u8]) -> Result<Vec<u8>, UnpackError> {
    const FORMAT: &str = "LZ4";
    let (mut out, mut block) = (Vec::new(), vec![0; LZ4_BLOCK]);
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        // Behind the last block the kernel's build puts the unpacked size.
        if after.is_empty() && size == out.len() {
            break;
        }
        let Some((packed, after)) = after.split_at_checked(size) else {
            return Err(damaged(FORMAT, format!("a block of {size} bytes, {} are left", after.len())));
        };
        let len = lz4_flex::block::decompress_into(packed, &mut block).map_err(|e| damaged(FORMAT, e))?;
        out.extend_from_slice(&block[..len]);
        if out.len() as u64 > MAX_UNPACKED {
            return Err(UnpackError::TooLarge);
        }
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
#[path = "compress_tests.rs"]
mod tests;
