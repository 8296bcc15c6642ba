//! The pages that walks passed as page tables, for translations that are cached: which addresses they map, so
//! that a store to an entry drops what came of that entry alone.

use crate::Cpu;
use crate::ram::{PAGE, TABLE};

/// Bytes of an entry, as a power of two; entries of a table, likewise.
const ENTRY_BITS: u32 = 3;
const ENTRIES_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;
/// Bits of a linear address; those above are equal to the last.
const BITS: u32 = 48;

/// A page of RAM that is a page table.
struct Table {
    gpa: u64,
    /// The first address that its first entry maps, of 48 bits.
    base: u64,
    /// 3 for the PML4, 0 for a page table.
    level: u32,
    /// It was at several levels or places.
    many: bool,
    /// Nothing that is cached depends on it any more.
    unused: bool,
    /// Entries of a page table through which code was looked for, a bit each.
    executed: [u64; 8],
}

/// All of them.
pub struct Tables {
    all: Vec<Table>,
    /// By page of RAM: place in `all`, plus one; 0 for none.
    places: Vec<u32>,
}

/// What depends on an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A page of linear addresses, which was not looked at for code.
    Page(u64),
    /// Address spaces that begin with its table.
    Space,
    /// What is not known.
    More,
}

fn place_of_entry(at: u64) -> usize {
    (at % PAGE) as usize >> ENTRY_BITS
}

impl Tables {
    /// For RAM of so many pages.
    pub fn new(pages: usize) -> Self {
        Self { all: Vec::new(), places: vec![0; pages] }
    }

    /// A walk for `address` passes the entry at `at`, for code if `exec`. The page may be new here.
    pub fn note(&mut self, at: u64, level: u32, address: u64, exec: bool) {
        let shift = PAGE_BITS + ENTRIES_BITS * (level + 1);
        let base = (address & ((1 << BITS) - 1)) >> shift << shift;
        let place = &mut self.places[(at / PAGE) as usize];
        let new = Table { gpa: at, base, level, many: false, unused: false, executed: [0; 8] };
        if *place == 0 {
            self.all.push(new);
            *place = self.all.len() as u32;
        } else if self.all[*place as usize - 1].unused {
            self.all[*place as usize - 1] = new;
        }
        let table = &mut self.all[*place as usize - 1];
        table.many |= table.level != level || table.base != base;
        if exec && level == 0 {
            let entry = place_of_entry(at);
            table.executed[entry / 64] |= 1 << (entry % 64);
        }
    }

    /// What depends on the entry at `at`.
    pub fn mapped(&self, at: u64) -> Mapped {
        let place = self.places[(at / PAGE) as usize] as usize;
        let Some(table) = place.checked_sub(1).map(|place| &self.all[place]) else { return Mapped::More };
        let entry = place_of_entry(at);
        let executed = table.executed[entry / 64] >> (entry % 64) & 1 != 0;
        match table.level {
            0 if !table.many && !executed => {
                let address = table.base + entry as u64 * PAGE;
                Mapped::Page((address as i64).wrapping_shl(64 - BITS).wrapping_shr(64 - BITS) as u64)
            }
            3 if !table.many => Mapped::Space,
            _ => Mapped::More,
        }
    }

    /// Nothing that is cached depends on the table at `at` any more.
    fn set_unused(&mut self, at: u64) {
        if let Some(place) = (self.places[(at / PAGE) as usize] as usize).checked_sub(1) {
            self.all[place].unused = true;
        }
    }

    /// Forgets them all, and names the pages.
    pub fn take(&mut self) -> impl Iterator<Item = u64> {
        for table in &self.all {
            self.places[(table.gpa / PAGE) as usize] = 0;
        }
        std::mem::take(&mut self.all).into_iter().map(|table| table.gpa)
    }
}

impl Cpu {
    /// The entry at `at`, of a page table of some level, is used by a translation of `address` that is about
    /// to be cached, for code if `exec`.
    pub(crate) fn watch_table(&mut self, at: u64, level: u32, address: u64, exec: bool) {
        self.tlb.tables.note(at, level, address, exec);
        self.watch(at, TABLE);
    }

    /// A store is about to change the entry at `at` of a page table, which is present.
    pub(crate) fn drop_entry(&mut self, at: u64) {
        match self.tlb.tables.mapped(at) {
            Mapped::Page(address) => self.tlb.forget_page(address),
            Mapped::Space => {
                let space = self.space;
                self.tlb.forget_spaces(at & !(PAGE - 1));
                self.tlb.tables.set_unused(at);
                self.ram.clear_flags(at, TABLE);
                self.update_space();
                self.restore_privilege(space);
            }
            Mapped::More => self.flush_translations(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: u64 = 0xffff_ffff_8120_0000;

    #[test]
    fn an_entry_names_its_page() {
        let mut tables = Tables::new(16);
        assert_eq!(tables.mapped(0x3008), Mapped::More);
        tables.note(0x3018, 0, HIGH + 0x3abc, false);
        assert_eq!(tables.mapped(0x3008), Mapped::Page(HIGH + 0x1000));
        assert_eq!(tables.mapped(0x3ff8), Mapped::Page(HIGH + 0x1f_f000));
        tables.note(0x3008, 0, HIGH + 0x1000, true);
        assert_eq!(tables.mapped(0x3008), Mapped::More);
        assert_eq!(tables.mapped(0x3010), Mapped::Page(HIGH + 0x2000));
        assert_eq!(tables.take().collect::<Vec<_>>(), [0x3018]);
        assert_eq!(tables.mapped(0x3010), Mapped::More);
        tables.note(0x3010, 0, 0x2000, false);
        assert_eq!(tables.mapped(0x3008), Mapped::Page(0x1000));
    }

    #[test]
    fn tables_of_two_places_or_levels_name_none() {
        let mut tables = Tables::new(16);
        tables.note(0x1000, 0, 0, false);
        tables.note(0x1008, 0, 0x20_1000, false);
        assert_eq!(tables.mapped(0x1000), Mapped::More);
        tables.note(0x2000, 0, 0, false);
        tables.note(0x2000, 1, 0, false);
        assert_eq!(tables.mapped(0x2000), Mapped::More);
        tables.note(0x4000, 1, 0, false);
        assert_eq!(tables.mapped(0x4000), Mapped::More);
    }

    #[test]
    fn a_first_table_is_one_of_all_addresses() {
        let mut tables = Tables::new(16);
        tables.note(0x5ff8, 3, HIGH, false);
        tables.note(0x5000, 3, 0x1000, true);
        assert_eq!(tables.mapped(0x5ff8), Mapped::Space);
        tables.set_unused(0x5000);
        tables.note(0x5008, 0, 0x1000, false);
        assert_eq!(tables.mapped(0x5010), Mapped::Page(0x2000));
        tables.note(0x5010, 3, HIGH, false);
        assert_eq!(tables.mapped(0x5010), Mapped::More);
    }
}
