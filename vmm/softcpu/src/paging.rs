//! Four-level paging (SDM vol. 3, 4.5): permissions, accessed and dirty bits, error codes.

use crate::exception::Exception;
use crate::mem::privilege;
use crate::{Cpu, Fault};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Physical address bits of the CPU model.
pub const PHYSICAL_BITS: u32 = 40;
/// Of an entry or CR3: where the next table is.
pub const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !0xfff;
const RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
/// What of CR4 walks depend on.
pub const CR4_WALKED: u64 = CR4_SMEP | CR4_SMAP;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_NXE: u64 = 1 << 11;

const ERROR_PRESENT: u32 = 1;
const ERROR_WRITE: u32 = 2;
const ERROR_USER: u32 = 4;
const ERROR_RESERVED: u32 = 8;
const ERROR_FETCH: u32 = 16;

/// What is about to be done to memory.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// A store, or a read-modify-write.
    pub write: bool,
    /// An instruction fetch.
    pub exec: bool,
    /// One of `mem::privilege`.
    pub privilege: u64,
}

/// A translation.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Guest physical address of the byte asked for.
    pub gpa: u64,
    /// This privilege may write it.
    pub writable: bool,
}

/// How far a walk through the tables came: what the levels passed allow together.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// Table of the next entry.
    table: u64,
    /// Level of that table: 3 for the PML4, 0 for a page table.
    level: u32,
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Walk {
    /// Before the first entry; the table is CR3's.
    pub const START: Self = Self { table: 0, level: 3, writable: true, user: true, no_execute: false };
}

/// A walk that found its page.
struct Found {
    /// The entries passed, and where they are.
    entries: [(u64, u64); 4],
    levels: usize,
    gpa: u64,
    /// Before the last entry.
    last: Walk,
    /// With the last entry.
    rights: Walk,
}

impl Cpu {
    /// Translates; raises #PF. Sets accessed and dirty bits, and watches the tables.
    pub(crate) fn walk(&mut self, address: u64, access: Access) -> Result<Page, Fault> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(Page { gpa: address & 0xffff_ffff, writable: true });
        }
        let known = self.known_region(address);
        let found = match self.walk_tables(address, known) {
            Ok(found) => found,
            Err(error) => return self.page_fault(address, access, error),
        };
        let writable = self.may_write(&found.rights, access.privilege);
        let allowed = if access.exec {
            self.may_execute(&found.rights, access.privilege)
        } else {
            self.may_read(&found.rights, access.privilege) && (writable || !access.write)
        };
        if !allowed {
            return self.page_fault(address, access, ERROR_PRESENT);
        }
        for level in 0..found.levels {
            let (at, entry) = found.entries[level];
            let below = found.levels - 1 - level;
            let last = below == 0;
            self.watch_table(at, found.last.level + below as u32, address, access.exec);
            let set = if last && access.write { ACCESSED | DIRTY } else { ACCESSED };
            if entry & set != set {
                self.before_mark(at)?;
                self.ram.write(at, &(entry | set).to_le_bytes());
                self.ram.set_flags(at, crate::ram::DIRTY);
            }
        }
        if known.is_none() {
            self.note_region(address, found.last);
        }
        Ok(Page { gpa: found.gpa, writable })
    }

    /// Translates for a debugger: no permissions, no side effects.
    pub fn translate(&mut self, linear: u64) -> Option<u64> {
        if self.cr0 & CR0_PG == 0 {
            return Some(linear & 0xffff_ffff);
        }
        self.walk_tables(linear, None).ok().map(|found| found.gpa)
    }

    /// The entries for `address`, from `known` on, or the error code's P and RSVD bits.
    fn walk_tables(&self, address: u64, known: Option<Walk>) -> Result<Found, u32> {
        let reserved = if self.efer & EFER_NXE != 0 { RESERVED } else { RESERVED | NO_EXECUTE };
        let mut walk = known.unwrap_or(Walk { table: self.cr3 & ADDRESS, ..Walk::START });
        let mut found = Found { entries: [(0, 0); 4], levels: 0, gpa: 0, last: walk, rights: walk };
        loop {
            let shift = 12 + 9 * walk.level;
            let at = walk.table + (address >> shift & 0x1ff) * 8;
            let entry = self.ram.word(at);
            if entry & PRESENT == 0 {
                return Err(0);
            }
            let large = walk.level == 0 || entry & LARGE != 0 && walk.level < 3;
            let misaligned = if large && walk.level > 0 { (1u64 << shift) - (1 << 13) } else { 0 };
            let no_large = if walk.level == 3 { LARGE } else { 0 };
            if entry & (reserved | misaligned | no_large) != 0 {
                return Err(ERROR_PRESENT | ERROR_RESERVED);
            }
            found.entries[found.levels] = (at, entry);
            found.levels += 1;
            found.last = walk;
            walk.writable &= entry & WRITABLE != 0;
            walk.user &= entry & USER != 0;
            walk.no_execute |= entry & NO_EXECUTE != 0;
            if large {
                let offset = (1u64 << shift) - 1;
                found.gpa = entry & ADDRESS & !offset | address & offset;
                found.rights = walk;
                return Ok(found);
            }
            walk.table = entry & ADDRESS;
            walk.level -= 1;
        }
    }

    fn may_read(&self, walk: &Walk, privilege: u64) -> bool {
        match privilege {
            privilege::USER => walk.user,
            privilege::SUPERVISOR_AC => true,
            _ => !walk.user || self.cr4 & CR4_SMAP == 0,
        }
    }

    fn may_write(&self, walk: &Walk, privilege: u64) -> bool {
        let read_only_is_writable = privilege != privilege::USER && self.cr0 & CR0_WP == 0;
        self.may_read(walk, privilege) && (walk.writable || read_only_is_writable)
    }

    fn may_execute(&self, walk: &Walk, privilege: u64) -> bool {
        let privileged = privilege != privilege::USER;
        let kept_out = if privileged { walk.user && self.cr4 & CR4_SMEP != 0 } else { !walk.user };
        !kept_out && !walk.no_execute
    }

    fn page_fault<T>(&mut self, address: u64, access: Access, error: u32) -> Result<T, Fault> {
        let mut code = error;
        if access.write {
            code |= ERROR_WRITE;
        }
        if access.privilege == privilege::USER {
            code |= ERROR_USER;
        }
        if access.exec && (self.efer & EFER_NXE != 0 || self.cr4 & CR4_SMEP != 0) {
            code |= ERROR_FETCH;
        }
        self.raise(Exception::page_fault(address, code))
    }
}
