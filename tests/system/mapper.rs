//! Page tables of a test's own.

use std::collections::BTreeMap;

use crate::scaffold::{MORE_TABLES, PML4, PS};

/// Tables for addresses that the scaffold leaves free: those from 512 GiB on.
pub struct Mapper {
    /// To be in memory.
    pub writes: Vec<(u64, Vec<u8>)>,
    next: u64,
    tables: BTreeMap<(u32, u64), u64>,
}

impl Mapper {
    pub fn new() -> Self {
        Self { writes: Vec::new(), next: MORE_TABLES, tables: BTreeMap::new() }
    }

    /// Maps the page of `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) at `linear` to `physical`. `flags[0]` goes to
    /// the PML4 entry and so on; tables that exist keep theirs.
    pub fn map(&mut self, linear: u64, physical: u64, level: u32, flags: [u64; 4]) {
        assert!(linear >> 39 != 0, "the first 512 GiB are the scaffold's");
        let mut table = PML4;
        for above in (level + 1..=4).rev() {
            let key = (above, linear >> (12 + 9 * (above - 1)));
            let at = self.entry(linear, above, table);
            table = *self.tables.entry(key).or_insert_with(|| {
                let new = self.next;
                self.next += 0x1000;
                self.writes.push((at, (new | flags[4 - above as usize]).to_le_bytes().to_vec()));
                new
            });
        }
        let size = if level > 1 { PS } else { 0 };
        let at = self.entry(linear, level, table);
        self.writes.push((at, (physical | flags[4 - level as usize] | size).to_le_bytes().to_vec()));
    }

    fn entry(&self, linear: u64, level: u32, table: u64) -> u64 {
        table + (linear >> (12 + 9 * (level - 1)) & 511) * 8
    }

    /// Where the entry of `level` for `linear` is.
    pub fn at(&self, linear: u64, level: u32) -> u64 {
        let table = match level {
            4 => PML4,
            _ => self.tables[&(level + 1, linear >> (12 + 9 * level))],
        };
        self.entry(linear, level, table)
    }
}
