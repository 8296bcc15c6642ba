//! Every format, whole and damaged.

use std::io::Write;

use super::*;

fn sample() -> Vec<u8> {
    (0..300_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("in memory");
    encoder.finish().expect("in memory")
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(data).expect("in memory");
    encoder.finish().expect("in memory")
}

/// As the kernel's build does it: blocks of 8 MiB, then the size.
fn lz4(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in data.chunks(LZ4_BLOCK) {
        let packed = lz4_flex::block::compress(block);
        out.extend((packed.len() as u32).to_le_bytes());
        out.extend(packed);
    }
    out
}

fn with_size(mut packed: Vec<u8>, data: &[u8]) -> Vec<u8> {
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

#[test]
fn every_format_is_unpacked_with_and_without_the_size_behind() {
    let data = sample();
    let zstd = zstd::encode_all(&data[..], 1).expect("in memory");
    for packed in [gzip(&data), xz(&data), zstd, lz4(&data)] {
        assert_eq!(unpack(&packed).expect("whole"), data);
        assert_eq!(unpack(&with_size(packed, &data)).expect("whole, with its size"), data);
    }
}

#[test]
fn lz4_of_several_blocks() {
    let data: Vec<u8> = sample().into_iter().cycle().take(2 * LZ4_BLOCK + 5).collect();
    assert_eq!(unpack(&with_size(lz4(&data), &data)).expect("whole"), data);
}

#[test]
fn damage_is_an_error_that_names_the_format() {
    let data = sample();
    let zstd = zstd::encode_all(&data[..], 1).expect("in memory");
    for packed in [gzip(&data), xz(&data), zstd, lz4(&data)] {
        for cut in [8, packed.len() / 2, packed.len() - 3] {
            let result = unpack(&packed[..cut]);
            assert!(result.as_ref().map_or(true, |out| *out != data), "{cut} of {} bytes", packed.len());
        }
        let mut damaged = packed.clone();
        damaged[packed.len() / 2] ^= 0x55;
        damaged.truncate(packed.len() - 9);
        let result = unpack(&damaged);
        assert!(result.map_or(true, |out| out != data));
    }
    let cut = gzip(&data)[..5000].to_vec();
    assert!(unpack(&cut).expect_err("cut").to_string().contains("gzip"));
}

#[test]
fn unknown_formats_are_named() {
    let text = unpack(b"BZh91AY").expect_err("not here").to_string();
    assert!(text.contains("bzip2") && text.contains("LZ4"), "{text}");
    assert!(matches!(unpack(b""), Err(UnpackError::Format(_))));
}
