//! Names of addresses: from an ELF symbol table, or from the one that a Linux kernel carries for itself.
//!
//! Both are input from outside: every offset is checked, every size bounded, and a table that does not add up
//! is no table.

mod elf;
mod kallsyms;

/// Most symbols that are kept.
const MAX_SYMBOLS: usize = 4 << 20;
/// An address this far behind a symbol of unknown size is not its any more.
const MAX_OFFSET: u64 = 1 << 20;

/// Why a file has no symbols for us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SymbolError {
    /// Neither kind of table is in it.
    #[error(
        "no symbols in it: neither an ELF symbol table nor a Linux kernel's own (give an ELF vmlinux, not a \
         compressed bzImage)"
    )]
    None,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Symbol {
    address: u64,
    /// 0: up to the next.
    bytes: u64,
    name: String,
}

/// Names of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbols {
    /// By address.
    symbols: Vec<Symbol>,
}

impl Symbols {
    /// Those of a file: of its ELF symbol table, else of the kernel in it.
    pub fn of_file(bytes: &[u8]) -> Result<Self, SymbolError> {
        let symbols = elf::symbols(bytes).filter(|symbols| !symbols.is_empty());
        let symbols = symbols.or_else(|| kallsyms::symbols(bytes));
        symbols.map(Self::sorted).ok_or(SymbolError::None)
    }

    /// Those of the Linux kernel that runs in this memory, at the addresses where it runs.
    pub fn of_memory(bytes: &[u8]) -> Result<Self, SymbolError> {
        kallsyms::symbols(bytes).map(Self::sorted).ok_or(SymbolError::None)
    }

    fn sorted(mut symbols: Vec<Symbol>) -> Self {
        symbols.retain(|symbol| !symbol.name.is_empty());
        // Where several names are at one address, the one with a size is the function or object itself.
        symbols.sort_by(|a, b| (a.address, b.bytes, &a.name).cmp(&(b.address, a.bytes, &b.name)));
        symbols.truncate(MAX_SYMBOLS);
        Self { symbols }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// The symbol that an address belongs to, and how far into it.
    pub fn lookup(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.symbols.partition_point(|symbol| symbol.address <= address);
        let last = self.symbols[..after].last()?;
        // The first of all at that address.
        let first = self.symbols.partition_point(|symbol| symbol.address < last.address);
        let symbol = &self.symbols[first];
        let offset = address - symbol.address;
        let inside = offset < if symbol.bytes == 0 { MAX_OFFSET } else { symbol.bytes };
        inside.then_some((symbol.name.as_str(), offset))
    }

    /// The same for people: `name+0x1c`, or `?`.
    pub fn describe(&self, address: u64) -> String {
        match self.lookup(address) {
            Some((name, 0)) => name.to_string(),
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => "?".into(),
        }
    }

    /// The address of a name.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.address)
    }
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

#[cfg(test)]
#[path = "symbols_tests.rs"]
mod tests;
