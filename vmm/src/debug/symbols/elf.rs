//! The symbol table of an ELF64 file (System V ABI, chapter 4).

use super::{MAX_SYMBOLS, Symbol, number};

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const SHT_SYMTAB: u64 = 2;
const SHN_UNDEF: u64 = 0;
const SHN_ABS: u64 = 0xfff1;
/// STT_NOTYPE, STT_OBJECT, STT_FUNC: what has an address in the program.
const KINDS: [u64; 3] = [0, 1, 2];

struct Section<'a> {
    kind: u64,
    link: u64,
    data: &'a [u8],
}

fn section(file: &[u8], index: u64) -> Option<Section<'_>> {
    let table = usize::try_from(number(file, 40, 8)?).ok()?;
    let header = table.checked_add(usize::try_from(index).ok()?.checked_mul(SECTION_BYTES)?)?;
    let field = |at: usize, size: usize| number(file, header.checked_add(at)?, size);
    let offset = usize::try_from(field(24, 8)?).ok()?;
    let end = offset.checked_add(usize::try_from(field(32, 8)?).ok()?)?;
    let data = file.get(offset..end).unwrap_or_default();
    Some(Section { kind: field(4, 4)?, link: field(40, 4)?, data })
}

/// All of them; `None` if this is no ELF64 file or has no symbol table.
pub(super) fn symbols(file: &[u8]) -> Option<Vec<Symbol>> {
    if !file.starts_with(MAGIC) {
        return None;
    }
    let sections = number(file, 60, 2)?;
    let table = (0..sections).filter_map(|i| section(file, i)).find(|s| s.kind == SHT_SYMTAB)?;
    let names = section(file, table.link)?.data;
    let entries = table.data.chunks_exact(SYMBOL_BYTES).take(MAX_SYMBOLS);
    Some(entries.filter_map(|entry| symbol(entry, names)).collect())
}

fn symbol(entry: &[u8], names: &[u8]) -> Option<Symbol> {
    let (kind, place) = (number(entry, 4, 1)? & 15, number(entry, 6, 2)?);
    if !KINDS.contains(&kind) || place == SHN_UNDEF || place == SHN_ABS {
        return None;
    }
    let name = names.get(usize::try_from(number(entry, 0, 4)?).ok()?..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let name = readable(&String::from_utf8_lossy(&name[..end]));
    Some(Symbol { address: number(entry, 8, 8)?, bytes: number(entry, 16, 8)?, name })
}

/// A name of Rust's legacy mangling as its path, without the hash; any other as it is.
fn readable(name: &str) -> String {
    path(name).unwrap_or_else(|| name.to_string())
}

fn path(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix("_ZN")?.split_once('E').map(|_| &name[3..])?;
    let mut parts = Vec::new();
    while !rest.starts_with('E') {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let len: usize = rest[..digits].parse().ok()?;
        let part = rest.get(digits..digits.checked_add(len)?)?;
        parts.push(part);
        rest = &rest[digits + len..];
    }
    let is_hash = |part: &&str| part.len() == 17 && part.starts_with('h');
    if parts.last().is_some_and(is_hash) {
        parts.pop();
    }
    let mut text = parts.join("::");
    for (code, sign) in [
        ("$LT$", "<"),
        ("$GT$", ">"),
        ("$RF$", "&"),
        ("$BP$", "*"),
        ("$u20$", " "),
        ("$u7b$", "{"),
        ("$u7d$", "}"),
        ("$C$", ","),
        ("$LP$", "("),
        ("$RP$", ")"),
        ("..", "::"),
    ] {
        text = text.replace(code, sign);
    }
    Some(text.replace("::_<", "::<").trim_start_matches('_').to_string())
}
