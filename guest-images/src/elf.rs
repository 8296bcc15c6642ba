//! What is needed of ELF files (System V gABI, chapters 4 and 5): the sections of a kernel module, and the
//! libraries that a program asks for. Everything is bounds-checked: a file may be damaged.

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const SECTION_HEADER: usize = 64;
const SHT_STRTAB_LINK: usize = 40;
const DT_NEEDED: u64 = 1;
const DYNAMIC_ENTRY: usize = 16;

/// A 64-bit little-endian ELF file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

/// One section.
#[derive(Debug, Clone, Copy)]
struct Section<'a> {
    name: &'a [u8],
    data: &'a [u8],
    link: usize,
}

impl<'a> Elf<'a> {
    /// The file, if it is one.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= 64 && bytes.starts_with(MAGIC)).then_some(Self { bytes })
    }

    fn number(&self, at: usize, size: usize) -> Option<u64> {
        number(self.bytes, at, size)
    }

    fn section(&self, index: usize, names: &'a [u8]) -> Option<Section<'a>> {
        let table = usize::try_from(self.number(40, 8)?).ok()?;
        let header = table.checked_add(index.checked_mul(SECTION_HEADER)?)?;
        let name = usize::try_from(self.number(header, 4)?).ok()?;
        let offset = usize::try_from(self.number(header + 24, 8)?).ok()?;
        let size = usize::try_from(self.number(header + 32, 8)?).ok()?;
        let link = usize::try_from(self.number(header + SHT_STRTAB_LINK, 4)?).ok()?;
        let data = self.bytes.get(offset..offset.checked_add(size)?).unwrap_or_default();
        Some(Section { name: text(names, name).unwrap_or_default(), data, link })
    }

    fn find(&self, name: &str) -> Option<Section<'a>> {
        let count = usize::try_from(self.number(60, 2)?).ok()?;
        let names = self.section(usize::try_from(self.number(62, 2)?).ok()?, &[])?.data;
        (0..count).filter_map(|index| self.section(index, names)).find(|s| s.name == name.as_bytes())
    }

    /// The values of `key` in a kernel module's `.modinfo`.
    pub(crate) fn modinfo(&self, key: &str) -> Vec<String> {
        let Some(section) = self.find(".modinfo") else { return Vec::new() };
        let words = section.data.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        words.filter_map(|word| Some(word.strip_prefix(key)?.strip_prefix('=')?.to_string())).collect()
    }

    /// The libraries that a program or library asks for.
    pub(crate) fn needed(&self) -> Vec<String> {
        let entries = || -> Option<Vec<String>> {
            let dynamic = self.find(".dynamic")?;
            let strings = self.section(dynamic.link, &[])?.data;
            let entries = dynamic.data.chunks_exact(DYNAMIC_ENTRY);
            let wanted = entries.filter(|entry| number(entry, 0, 8) == Some(DT_NEEDED));
            let name = |entry: &[u8]| text(strings, usize::try_from(number(entry, 8, 8)?).ok()?);
            Some(wanted.filter_map(name).map(|name| String::from_utf8_lossy(name).into_owned()).collect())
        };
        entries().unwrap_or_default()
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let mut value = [0; 8];
    value[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    Some(u64::from_le_bytes(value))
}

/// The string that begins at `at`, up to its NUL.
fn text(bytes: &[u8], at: usize) -> Option<&[u8]> {
    bytes.get(at..)?.split(|&byte| byte == 0).next()
}
