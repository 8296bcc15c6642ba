//! The symbol table that a Linux kernel carries for its own messages (`kernel/kallsyms.c`,
//! `scripts/kallsyms.c`), found in an image or in memory by its shape.
//!
//! ```text
//! up to 6.3  offsets i32[n], relative_base u64, num_syms u32, names, markers u32[], tokens, index u16[256]
//! from 6.4   num_syms u32, names, markers u32[], tokens, index u16[256], offsets i32[n], relative_base u64
//! ```
//!
//! Each begins at a multiple of 8. A name is a length (7 bits, or 14 in two bytes) and that many tokens; the
//! first letter of what they spell is the symbol's type. Tokens are 256 strings one after the other, `index`
//! says where each begins. Letters and digits stand for themselves, which is how the tokens are found; the
//! names are found by their number, which must end them exactly where the markers begin.

use super::{Symbol, number};

/// How far before the tokens the names may begin.
const MAX_NAMES: usize = 32 << 20;
/// Symbols of a kernel worth the name.
const COUNT: std::ops::RangeInclusive<usize> = 500..=1 << 20;
const NAMES_PER_MARKER: usize = 256;
const MAX_TOKEN: usize = 128;
const MAX_NAME: usize = 512;
const ALIGN: usize = 8;
const INDEX_BYTES: usize = 512;
/// Kernel text of x86-64 is in the topmost 2 GiB.
const LOWEST_BASE: u64 = 0xffff_ffff_8000_0000;
/// Candidates for a table that are looked at in full: a hostile image must not cost more.
const MAX_CANDIDATES: usize = 64;

struct Tokens<'a> {
    strings: Vec<&'a [u8]>,
    /// Where the strings begin, and where the index ends.
    start: usize,
    end: usize,
}

struct Names {
    /// Where `num_syms` is.
    start: usize,
    /// Where each name begins.
    places: Vec<usize>,
}

/// All of them; `None` if there is no such table.
pub(super) fn symbols(image: &[u8]) -> Option<Vec<Symbol>> {
    let candidates = (0..image.len().saturating_sub(INDEX_BYTES)).step_by(ALIGN);
    let tokens = candidates.filter_map(|at| tokens(image, at)).take(MAX_CANDIDATES);
    tokens.into_iter().find_map(|tokens| {
        let names = names(image, &tokens)?;
        let addresses = addresses(image, &names, &tokens)?;
        let symbol = |(place, address): (&usize, u64)| {
            let name = name(image, *place, &tokens)?;
            Some(Symbol { address, bytes: 0, name })
        };
        Some(names.places.iter().zip(addresses).filter_map(symbol).collect())
    })
}

/// The tokens whose index is at `at`.
fn tokens(image: &[u8], at: usize) -> Option<Tokens<'_>> {
    let index = image.get(at..at + INDEX_BYTES)?;
    if index[..2] != [0, 0] || index[2..4] == [0, 0] {
        return None;
    }
    let offsets: Vec<usize> =
        index.chunks_exact(2).map(|entry| usize::from(u16::from_le_bytes([entry[0], entry[1]]))).collect();
    if offsets.windows(2).any(|pair| pair[1] <= pair[0] || pair[1] - pair[0] > MAX_TOKEN) {
        return None;
    }
    let last = *offsets.last()?;
    let latest = at.checked_sub(last + 2)? / ALIGN * ALIGN;
    (0..MAX_TOKEN / ALIGN + 1).filter_map(|back| latest.checked_sub(back * ALIGN)).find_map(|start| {
        let table = &image[start..at];
        let string = |from: usize| {
            let rest = &table[from..];
            Some(&rest[..rest.iter().position(|byte| *byte == 0)?])
        };
        let strings: Option<Vec<&[u8]>> = offsets.iter().map(|offset| string(*offset)).collect();
        let strings = strings?;
        let whole = strings.windows(2).zip(offsets.windows(2)).all(|(s, o)| o[0] + s[0].len() + 1 == o[1]);
        let end = last + strings[255].len() + 1;
        let itself = (b'0'..=b'9').all(|digit| strings[usize::from(digit)] == [digit]);
        let good = whole && itself && end.next_multiple_of(ALIGN) == table.len();
        good.then_some(Tokens { strings, start, end: at + INDEX_BYTES })
    })
}

/// The length of the name at `at`, and where its tokens begin.
fn length(image: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = usize::from(*image.get(at)?);
    match first & 0x80 {
        0 => Some((first, at + 1)),
        _ => Some((first & 0x7f | usize::from(*image.get(at + 1)?) << 7, at + 2)),
    }
}

/// Where the names are that end before these tokens.
fn names(image: &[u8], tokens: &Tokens<'_>) -> Option<Names> {
    let lowest = tokens.start.saturating_sub(MAX_NAMES).next_multiple_of(ALIGN);
    (lowest..tokens.start.saturating_sub(ALIGN)).step_by(ALIGN).rev().find_map(|start| {
        let count = number(image, start, 8)? as usize;
        if !COUNT.contains(&count) {
            return None;
        }
        let mut places = Vec::new();
        let mut at = start + ALIGN;
        for _ in 0..count {
            let (bytes, from) = length(image, at)?;
            if bytes == 0 || bytes > MAX_NAME || from + bytes > tokens.start {
                return None;
            }
            places.push(at);
            at = from + bytes;
        }
        let markers = at.next_multiple_of(ALIGN);
        let marked = (0..count.div_ceil(NAMES_PER_MARKER)).all(|marker| {
            let place = places[marker * NAMES_PER_MARKER] - (start + ALIGN);
            number(image, markers + marker * 4, 4) == Some(place as u64)
        });
        marked.then_some(Names { start, places })
    })
}

/// The addresses of the names, wherever this kernel has them.
fn addresses(image: &[u8], names: &Names, tokens: &Tokens<'_>) -> Option<Vec<u64>> {
    let count = names.places.len();
    let bytes = (count * 4).next_multiple_of(ALIGN);
    let before = names.start.checked_sub(8 + bytes).map(|offsets| (offsets, names.start - 8));
    let after = tokens.end.next_multiple_of(ALIGN);
    [before, Some((after, after + bytes))].into_iter().flatten().find_map(|(offsets, base)| {
        let base = number(image, base, 8).filter(|base| *base >= LOWEST_BASE)?;
        let offset = |i: usize| number(image, offsets + i * 4, 4).map(|offset| offset as u32 as i32);
        let offsets: Option<Vec<i32>> = (0..count).map(offset).collect();
        let offsets = offsets?;
        // With per-CPU symbols as absolute numbers, everything else is below zero.
        let negative = offsets.iter().filter(|offset| **offset < 0).count();
        let address = |offset: &i32| match *offset {
            offset if negative * 2 < count => base.wrapping_add(u64::from(offset as u32)),
            offset if offset >= 0 => offset as u64,
            offset => base.wrapping_sub(1).wrapping_sub(i64::from(offset) as u64),
        };
        Some(offsets.iter().map(address).collect())
    })
}

/// The name at `place`, without its type.
fn name(image: &[u8], place: usize, tokens: &Tokens<'_>) -> Option<String> {
    let (bytes, from) = length(image, place)?;
    let codes = image.get(from..from + bytes)?;
    let spelt: Vec<u8> = codes.iter().flat_map(|code| tokens.strings[usize::from(*code)]).copied().collect();
    let (kind, name) = spelt.split_first()?;
    let usual = kind.is_ascii_alphabetic() && name.iter().all(u8::is_ascii_graphic);
    (usual && name.len() <= MAX_NAME).then(|| String::from_utf8_lossy(name).into_owned())
}
