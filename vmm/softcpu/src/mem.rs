//! The memory path: linear addresses to bytes of RAM, through a software TLB.
//!
//! An entry maps one page for one address space and privilege (the low bits of its tag); a hit is one compare
//! and an addition. The tag that is looked for is made of the page of the *last* byte, so that an access that
//! crosses a page never hits.
//!
//! The TLB is invisible: every page walked for a cached translation is watched, and a write to an entry
//! there drops the page that it maps, or all translations. So it never matters to the guest what is cached,
//! nor when the host drops it, and a change of CR3 drops nothing. Writes to pages with decoded code, page
//! tables or watched bytes are never cached.

use crate::exception::{Exception, vector};
use crate::paging::{ADDRESS, Access, Walk};
use crate::ram::{AT_HAND, CODE, DIRTY, PAGE, TABLE, WATCHED};
use crate::tables::Tables;
use crate::{Cpu, Exit, Fault};

/// Pages that reads find at once: 64 MiB, so that a guest that reads all over a large table mostly hits.
pub const READ_ENTRIES: usize = 16_384;
/// Fewer, since all of them are looked at whenever a page becomes code or a page table.
pub const WRITE_ENTRIES: usize = 1024;
const EXEC_ENTRIES: usize = 4096;
pub const OFFSET: u64 = PAGE - 1;
const NONE: u64 = u64::MAX;
/// Address spaces whose translations are kept.
const SPACES: usize = 64;
/// Numbers that an address space can have. A flush gives new ones, and only when they are used up the entries
/// are cleared: a flush costs nothing in the size of the TLB.
const NUMBERS: usize = 512;

/// Privilege of an access, in the low two bits of `Cpu::space`.
pub mod privilege {
    /// CPL 3.
    pub const USER: u64 = 0;
    /// CPL 0–2 under SMAP with RFLAGS.AC clear.
    pub const SUPERVISOR: u64 = 1;
    /// CPL 0–2 that may access user pages.
    pub const SUPERVISOR_AC: u64 = 2;
    /// Access to descriptor tables and the like, whatever the CPL.
    pub const IMPLICIT: u64 = 3;
}

/// Bit of `Cpu::space`: accesses of user code must be aligned (CR0.AM, RFLAGS.AC). No translation with it is
/// cached, so that every access comes to where this is looked at.
pub const ALIGNED: u64 = 1 << 11;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Page of the linear address, and the address space.
    pub tag: u64,
    /// Host address (guest physical address in `exec`) minus linear address.
    pub addend: u64,
}

/// The last level of the page tables for a region of 2 MiB, and what the levels above allow.
#[derive(Clone, Copy)]
pub struct Region {
    /// 2 MiB page of the linear address, and the address space.
    tag: u64,
    /// Where a walk goes on.
    pub from: Walk,
}

const REGIONS: usize = 256;
const REGION: u64 = 1 << 21;
const NO_REGION: Region = Region { tag: NONE, from: Walk::START };

const EMPTY: Entry = Entry { tag: NONE, addend: 0 };

/// Cached translations.
pub struct Tlb {
    pub(crate) read: [Entry; READ_ENTRIES],
    pub(crate) write: [Entry; WRITE_ENTRIES],
    exec: [Entry; EXEC_ENTRIES],
    regions: [Region; REGIONS],
    /// CR3 of each address space, the first of which has the number `first`.
    spaces: Vec<u64>,
    first: usize,
    /// Pages flagged `TABLE`.
    pub(crate) tables: Tables,
    /// Pages with data breakpoints are not cached: every access to them is looked at.
    pub(crate) guarded: bool,
    /// Goes up whenever something that was cached may not be used any more.
    pub(crate) revision: u64,
}

impl Tlb {
    /// For RAM of so many pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            read: [EMPTY; READ_ENTRIES],
            write: [EMPTY; WRITE_ENTRIES],
            exec: [EMPTY; EXEC_ENTRIES],
            regions: [NO_REGION; REGIONS],
            spaces: Vec::new(),
            first: 0,
            tables: Tables::new(pages),
            guarded: false,
            revision: 0,
        }
    }

    /// Nothing that was cached is found any more: no address space has the number that it had.
    fn forget(&mut self) {
        self.revision += 1;
        self.first += self.spaces.len();
        self.spaces.clear();
        if self.first + SPACES > NUMBERS {
            self.first = 0;
            self.read.fill(EMPTY);
            self.write.fill(EMPTY);
            self.exec.fill(EMPTY);
            self.regions.fill(NO_REGION);
        }
    }

    /// Nothing is found any more of the address spaces whose first table is at `root`.
    pub(crate) fn forget_spaces(&mut self, root: u64) {
        self.revision += 1;
        for space in self.spaces.iter_mut().filter(|cr3| **cr3 & ADDRESS == root) {
            // As no CR3 is.
            *space = NONE;
        }
    }

    /// The number of the address space of `cr3`, if it has one.
    fn number(&self, cr3: u64) -> Option<usize> {
        self.spaces.iter().position(|known| *known == cr3).map(|place| self.first + place)
    }

    /// Addresses of the tables of reads and of writes, for translated code.
    pub(crate) fn tables(&self) -> (u64, u64) {
        (self.read.as_ptr() as u64, self.write.as_ptr() as u64)
    }

    /// What makes an address in a page that may be written one of the host.
    pub(crate) fn write_addend(&self, address: u64, space: u64) -> Option<u64> {
        let entry = &self.write[write_slot(address)];
        (entry.tag == address & !OFFSET | space).then_some(entry.addend)
    }

    /// Whether the entry for `address` is there.
    pub(crate) fn has(&self, address: u64, space: u64, write: bool) -> bool {
        let entry = if write { &self.write[write_slot(address)] } else { &self.read[read_slot(address)] };
        entry.tag == address & !OFFSET | space
    }

    /// Forgets what is cached of a linear page, in all spaces.
    pub(crate) fn forget_page(&mut self, address: u64) {
        self.revision += 1;
        let entries = [
            &mut self.read[read_slot(address)],
            &mut self.write[write_slot(address)],
            &mut self.exec[exec_slot(address)],
        ];
        for entry in entries {
            if entry.tag & !OFFSET == address & !OFFSET {
                *entry = EMPTY;
            }
        }
    }

    fn forget_writes(&mut self, host_page: u64) {
        self.revision += 1;
        for entry in &mut self.write {
            if entry.tag != NONE && (entry.tag & !OFFSET).wrapping_add(entry.addend) == host_page {
                *entry = EMPTY;
            }
        }
    }
}

/// A value that memory holds.
pub trait Value: Copy {
    /// Size in bytes.
    const BYTES: u64;
    /// From little-endian bytes, the upper ones zero.
    fn from_bits(bits: u128) -> Self;
    /// Zero-extended.
    fn bits(self) -> u128;
}

macro_rules! value {
    ($($t:ty),*) => {$(
        impl Value for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn from_bits(bits: u128) -> Self {
                bits as $t
            }
            #[inline(always)]
            fn bits(self) -> u128 {
                self as u128
            }
        }
    )*};
}

value!(u8, u16, u32, u64, u128);

/// Where the entry of an address is, for reads.
#[inline(always)]
pub fn read_slot(address: u64) -> usize {
    (address / PAGE) as usize % READ_ENTRIES
}

/// Where the entry of an address is, for writes.
#[inline(always)]
pub fn write_slot(address: u64) -> usize {
    (address / PAGE) as usize % WRITE_ENTRIES
}

fn exec_slot(address: u64) -> usize {
    (address / PAGE) as usize % EXEC_ENTRIES
}

impl Cpu {
    #[inline(always)]
    pub(crate) fn tag(&self, address: u64, size: u64) -> u64 {
        address.wrapping_add(size - 1) & !OFFSET | self.space
    }

    /// Reads memory if a cached page of RAM has it.
    #[inline(always)]
    pub(crate) fn read_hit<T: Value>(&self, address: u64) -> Option<T> {
        let entry = &self.tlb.read[read_slot(address)];
        if entry.tag != self.tag(address, T::BYTES) {
            return None;
        }
        let host = address.wrapping_add(entry.addend) as *const T;
        // SAFETY: the entry maps the whole page to RAM, and the value lies in that page.
        Some(unsafe { host.read_unaligned() })
    }

    /// Writes memory if that is in a cached page of RAM that may be written.
    #[inline(always)]
    pub(crate) fn write_hit<T: Value>(&mut self, address: u64, value: T) -> bool {
        let entry = &self.tlb.write[write_slot(address)];
        if entry.tag != self.tag(address, T::BYTES) {
            return false;
        }
        let host = address.wrapping_add(entry.addend) as *mut T;
        // SAFETY: the entry maps the whole page to RAM that may be written, and the value lies in it.
        unsafe { host.write_unaligned(value) };
        true
    }

    /// Changes memory if it is in a cached page of RAM that may be written.
    #[inline(always)]
    pub(crate) fn modify_hit<T: Value>(
        &mut self,
        address: u64,
        change: impl FnOnce(&mut Self, T) -> T,
    ) -> bool {
        let entry = &self.tlb.write[write_slot(address)];
        if entry.tag != self.tag(address, T::BYTES) {
            return false;
        }
        let host = address.wrapping_add(entry.addend) as *mut T;
        // SAFETY: the entry maps the whole page to RAM that may be written, and the value lies in it.
        let old = unsafe { host.read_unaligned() };
        let new = change(self, old);
        // SAFETY: as above; `change` touches no translations.
        unsafe { host.write_unaligned(new) };
        true
    }

    /// Reads memory at a linear address.
    #[inline(always)]
    pub(crate) fn read<T: Value>(&mut self, address: u64) -> Result<T, Fault> {
        if let Some(value) = self.read_hit(address) {
            return Ok(value);
        }
        self.read_slow(address, T::BYTES)?;
        Ok(T::from_bits(self.loaded))
    }

    /// Writes memory at a linear address.
    #[inline(always)]
    pub(crate) fn write<T: Value>(&mut self, address: u64, value: T) -> Result<(), Fault> {
        if self.write_hit(address, value) {
            return Ok(());
        }
        self.write_slow(address, T::BYTES, value.bits())
    }

    /// Reads memory, computes, writes back: faults as a write does, before anything is read. The change is
    /// given the old value and returns the new one with a result.
    #[inline(always)]
    pub(crate) fn modify<T: Value, R>(
        &mut self,
        address: u64,
        change: impl FnOnce(&mut Self, T) -> (T, R),
    ) -> Result<R, Fault> {
        let entry = &self.tlb.write[write_slot(address)];
        if entry.tag == self.tag(address, T::BYTES) {
            let host = address.wrapping_add(entry.addend) as *mut T;
            // SAFETY: the entry maps the whole page to RAM that may be written, and the value lies in it.
            let old = unsafe { host.read_unaligned() };
            let (new, result) = change(self, old);
            // SAFETY: as above; `change` touches no translations.
            unsafe { host.write_unaligned(new) };
            return Ok(result);
        }
        self.check_write(address, T::BYTES)?;
        self.read_slow(address, T::BYTES)?;
        let old = T::from_bits(self.loaded);
        let (flags, system_flags) = (self.flags, self.system_flags);
        let (new, result) = change(self, old);
        let written = self.write_slow(address, T::BYTES, new.bits());
        if written.is_err() {
            // Only a device's register comes here: the instruction is executed again with its answers.
            (self.flags, self.system_flags) = (flags, system_flags);
        }
        written.map(|()| result)
    }

    /// Reads as the processor itself does from descriptor tables and the TSS.
    pub(crate) fn read_system<T: Value>(&mut self, address: u64) -> Result<T, Fault> {
        let space = self.space;
        self.space = space & !ALIGNED | privilege::IMPLICIT;
        let result = self.read(address);
        self.restore_privilege(space);
        result
    }

    /// Writes as the processor itself does to descriptor tables and new stacks.
    pub(crate) fn write_system<T: Value>(&mut self, address: u64, value: T) -> Result<(), Fault> {
        let space = self.space;
        self.space = space & !ALIGNED | privilege::IMPLICIT;
        let result = self.write(address, value);
        self.restore_privilege(space);
        result
    }

    /// Ends accesses of another privilege than `space` has. What they flushed may have renumbered the spaces.
    pub(crate) fn restore_privilege(&mut self, space: u64) {
        const KEPT: u64 = privilege::IMPLICIT | ALIGNED;
        self.space = self.space & !KEPT | space & KEPT;
    }

    /// Reads any number of bytes.
    pub(crate) fn read_bytes(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.check_canonical(address, into.len() as u64)?;
        for (number, byte) in into.iter_mut().enumerate() {
            *byte = self.read(address.wrapping_add(number as u64))?;
        }
        Ok(())
    }

    /// Writes any number of bytes, all or (but for devices) none.
    pub(crate) fn write_bytes(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        self.check_write(address, from.len() as u64)?;
        for (number, byte) in from.iter().enumerate() {
            self.write(address.wrapping_add(number as u64), *byte)?;
        }
        Ok(())
    }

    /// Raises what a write of `size` bytes would raise, without writing.
    #[cold]
    pub(crate) fn check_write(&mut self, address: u64, size: u64) -> Result<(), Fault> {
        self.check_operand(address, size)?;
        if self.tlb.guarded {
            self.watch_coming_store(address, size)?;
        }
        let mut at = address;
        let mut left = size;
        while left > 0 {
            let part = left.min(PAGE - (at & OFFSET));
            let gpa = self.translate_data(at, true)?;
            self.before_store(gpa, part)?;
            at = at.wrapping_add(part);
            left -= part;
        }
        Ok(())
    }

    /// What is checked of a whole operand before any of its pages is looked at: both ends, and its alignment.
    fn check_operand(&mut self, address: u64, size: u64) -> Result<(), Fault> {
        self.check_canonical(address, size)?;
        self.check_aligned(address, size)
    }

    /// #AC(0) where user code asked for it (SDM vol. 3, "Alignment Check Exception").
    #[inline(always)]
    pub(crate) fn check_aligned(&mut self, address: u64, size: u64) -> Result<(), Fault> {
        if self.space & ALIGNED != 0 && size.is_power_of_two() && address & (size.min(16) - 1) != 0 {
            return self.raise(Exception::coded(vector::AC, 0));
        }
        Ok(())
    }

    /// #GP or #SS unless both ends of an operand are canonical.
    pub(crate) fn check_canonical(&mut self, address: u64, size: u64) -> Result<(), Fault> {
        for end in [address, address.wrapping_add(size - 1)] {
            if (end as i64) << 16 >> 16 != end as i64 {
                return self.raise(Exception::non_canonical(end));
            }
        }
        Ok(())
    }

    /// Leaves what it read in `loaded`: as a result it would go through the caller's stack, and a handler
    /// with a stack frame does not leave by a jump.
    #[inline(never)]
    #[cold]
    fn read_slow(&mut self, address: u64, size: u64) -> Result<(), Fault> {
        self.check_operand(address, size)?;
        if self.tlb.guarded {
            self.watch_access(address, size, false)?;
        }
        let first = size.min(PAGE - (address & OFFSET));
        let gpa = self.translate_data(address, false)?;
        if first == size {
            self.loaded = self.load(gpa, size)?;
            return Ok(());
        }
        let rest = self.translate_data(address.wrapping_add(first), false)?;
        let low = self.load(gpa, first)?;
        self.loaded = self.load(rest, size - first)? << (8 * first) | low;
        Ok(())
    }

    #[inline(never)]
    #[cold]
    fn write_slow(&mut self, address: u64, size: u64, bits: u128) -> Result<(), Fault> {
        self.check_operand(address, size)?;
        if self.tlb.guarded {
            self.watch_access(address, size, true)?;
        }
        let first = size.min(PAGE - (address & OFFSET));
        let gpa = self.translate_data(address, true)?;
        if first == size {
            self.before_store(gpa, size)?;
            return self.store(gpa, size, bits);
        }
        let rest = self.translate_data(address.wrapping_add(first), true)?;
        self.before_store(gpa, first)?;
        self.before_store(rest, size - first)?;
        // The part that may have to wait for a device comes first: until then the instruction has no effect,
        // and can be executed again.
        if self.ram.holds(gpa, first) {
            self.store(rest, size - first, bits >> (8 * first))?;
            return self.store(gpa, first, bits);
        }
        self.store(gpa, first, bits)?;
        self.store(rest, size - first, bits >> (8 * first))
    }

    /// Reads inside one page of the guest's physical address space.
    fn load(&mut self, gpa: u64, size: u64) -> Result<u128, Fault> {
        if self.ram.holds(gpa, size) {
            return Ok(self.ram.value(gpa, size));
        }
        let mut value = 0;
        let mut done = 0;
        while done < size {
            let part = device_part(gpa + done, size - done);
            let answer = self.ask(Exit::MmioRead { address: gpa + done, size: part as u8 })?;
            let mask = u128::MAX >> (128 - 8 * part);
            value |= (u128::from(answer) & mask) << (8 * done);
            done += part;
        }
        Ok(value)
    }

    /// Writes inside one page of the guest's physical address space.
    fn store(&mut self, gpa: u64, size: u64, bits: u128) -> Result<(), Fault> {
        if self.ram.write(gpa, &bits.to_le_bytes()[..size as usize]) {
            return Ok(());
        }
        let mut done = 0;
        while done < size {
            let part = device_part(gpa + done, size - done);
            let value = (bits >> (8 * done)) as u64 & (u64::MAX >> (64 - 8 * part));
            self.ask(Exit::MmioWrite { address: gpa + done, size: part as u8, value })?;
            done += part;
        }
        Ok(())
    }

    /// Looks after what is cached of the bytes that a store will change. A store that drops something is
    /// executed alone.
    fn before_store(&mut self, gpa: u64, size: u64) -> Result<(), Fault> {
        if !self.ram.holds(gpa, size) {
            return Ok(());
        }
        let flags = self.ram.flags(gpa);
        if flags & WATCHED != 0 && self.stops_at_store(gpa, size) {
            self.must_be_alone()?;
            self.note_watched_store();
        }
        if flags & TABLE != 0 {
            for entry in (gpa & !7..gpa + size).step_by(8) {
                if self.ram.word(entry) & 1 != 0 {
                    self.must_be_alone()?;
                    self.drop_entry(entry);
                }
            }
        }
        if flags & CODE != 0 && self.cache.covers(gpa, size) {
            self.must_be_alone()?;
            #[cfg(feature = "planted-faults")]
            if self.loses_invalidation(gpa) {
                self.ram.set_flags(gpa, DIRTY);
                return Ok(());
            }
            self.drop_code(gpa);
        }
        self.ram.set_flags(gpa, DIRTY);
        Ok(())
    }

    /// A walk is about to set bits of the page table entry at `gpa`, which may be decoded code as well.
    pub(crate) fn before_mark(&mut self, gpa: u64) -> Result<(), Fault> {
        if self.ram.holds(gpa, 8) && self.ram.flags(gpa) & WATCHED != 0 && self.stops_at_store(gpa, 8) {
            self.must_be_alone()?;
            self.note_watched_store();
        }
        if self.ram.holds(gpa, 8) && self.ram.flags(gpa) & CODE != 0 && self.cache.covers(gpa, 8) {
            self.must_be_alone()?;
            self.drop_code(gpa);
        }
        Ok(())
    }

    pub(crate) fn must_be_alone(&mut self) -> Result<(), Fault> {
        if self.alone {
            return Ok(());
        }
        self.abort = crate::cpu::Abort::Alone;
        Err(Fault)
    }

    /// What follows the last of 4 GiB in compatibility mode: an operand in a flat segment wraps.
    fn wrapped(&self, address: u64) -> u64 {
        let beyond = address & !OFFSET == 1 << 32 && self.space & 3 != privilege::IMPLICIT;
        if beyond && self.mode & crate::cpu::mode::LONG == 0 { address & OFFSET } else { address }
    }

    /// The guest physical address for a data access; it is cached.
    fn translate_data(&mut self, address: u64, write: bool) -> Result<u64, Fault> {
        let canonical = (address as i64) << 16 >> 16 == address as i64;
        if !canonical {
            return self.raise(Exception::non_canonical(address));
        }
        let address = self.wrapped(address);
        let access = Access { write, exec: false, privilege: self.space & 3 };
        let page = self.walk(address, access)?;
        if self.space & ALIGNED != 0 || self.tlb.guarded && self.guards_page(address) {
            return Ok(page.gpa);
        }
        if self.ram.holds(page.gpa & !OFFSET, PAGE) {
            let tag = address & !OFFSET | self.space;
            let entry = Entry { tag, addend: self.ram.host_page(page.gpa).wrapping_sub(address & !OFFSET) };
            self.tlb.read[read_slot(address)] = entry;
            if write && page.writable && self.ram.flags(page.gpa) & (CODE | TABLE | WATCHED) == 0 {
                // Stores that hit say nothing, and this one may fault on its other page.
                self.ram.set_flags(page.gpa, DIRTY | AT_HAND);
                self.tlb.write[write_slot(address)] = entry;
            }
        }
        Ok(page.gpa)
    }

    /// Looks for a page that translated code found no entry for. False if there is none still, or if there
    /// was one: then the access is of a kind that only the interpreter does.
    pub(crate) fn find_page(&mut self, address: u64, size: u64, write: bool) -> bool {
        if (address & OFFSET) + size > PAGE || self.space & ALIGNED != 0 {
            return false;
        }
        let tag = self.tag(address, 1);
        let found = |cpu: &Self| {
            let entry =
                if write { cpu.tlb.write[write_slot(address)] } else { cpu.tlb.read[read_slot(address)] };
            entry.tag == tag
        };
        if found(self) {
            return false;
        }
        if self.translate_data(address, write).is_err() {
            self.abort = crate::cpu::Abort::None;
            return false;
        }
        found(self)
    }

    /// The guest physical address of the code at `address`.
    pub(crate) fn translate_code(&mut self, address: u64) -> Result<u64, Fault> {
        if let Some(gpa) = self.known_code(address) {
            return Ok(gpa);
        }
        if (address as i64) << 16 >> 16 != address as i64 {
            return self.raise(Exception::gp(0));
        }
        let page = self.walk(address, Access { write: false, exec: true, privilege: self.space & 3 })?;
        let tag = address & !OFFSET | self.space;
        self.tlb.exec[exec_slot(address)] = Entry { tag, addend: page.gpa.wrapping_sub(address) };
        Ok(page.gpa)
    }

    /// The same, if it is cached.
    pub(crate) fn known_code(&self, address: u64) -> Option<u64> {
        let entry = &self.tlb.exec[exec_slot(address)];
        (entry.tag == address & !OFFSET | self.space).then(|| address.wrapping_add(entry.addend))
    }

    fn region_tag(&self, address: u64) -> u64 {
        address & !(REGION - 1) | self.space & !(ALIGNED | 3)
    }

    /// Where the walk for `address` can begin, when its region was walked before.
    #[inline(always)]
    pub(crate) fn known_region(&self, address: u64) -> Option<Walk> {
        let region = &self.tlb.regions[(address / REGION) as usize % REGIONS];
        (region.tag == self.region_tag(address)).then_some(region.from)
    }

    /// Remembers where walks in this region can begin: the tables above are watched.
    pub(crate) fn note_region(&mut self, address: u64, from: Walk) {
        let tag = self.region_tag(address);
        self.tlb.regions[(address / REGION) as usize % REGIONS] = Region { tag, from };
    }

    /// The page at `gpa` has decoded code from now on.
    pub(crate) fn watch_code(&mut self, gpa: u64) {
        self.watch(gpa, CODE);
    }

    /// Stores to the page at `gpa` are looked at from now on.
    pub(crate) fn watch_stores(&mut self, gpa: u64) {
        self.watch(gpa, WATCHED);
    }

    /// No store to the page at `gpa` finds it in the TLB from now on.
    #[inline(always)]
    pub(crate) fn watch(&mut self, gpa: u64, flag: u8) {
        self.ram.set_flags(gpa, flag);
        if self.ram.flags(gpa) & AT_HAND != 0 {
            self.ram.clear_flags(gpa, AT_HAND);
            self.tlb.forget_writes(self.ram.host_page(gpa));
        }
    }

    /// Drops all translations. The privilege of the access under way stays.
    pub(crate) fn flush_translations(&mut self) {
        let space = self.space;
        self.tlb.forget();
        for gpa in self.tlb.tables.take() {
            self.ram.clear_flags(gpa, TABLE);
        }
        self.cache.forget_jumps();
        self.update_space();
        self.restore_privilege(space);
    }

    /// Derives `space` and `jump_key` from CR3, CPL, CR4.SMAP and RFLAGS.AC.
    pub(crate) fn update_space(&mut self) {
        const SMAP: u64 = 1 << 21;
        const AM: u64 = 1 << 18;
        let privilege = if self.cpl == 3 {
            privilege::USER
        } else if self.cr4 & SMAP != 0 && self.system_flags & crate::flags::AC == 0 {
            privilege::SUPERVISOR
        } else {
            privilege::SUPERVISOR_AC
        };
        let number = self.tlb.number(self.cr3).unwrap_or_else(|| {
            if self.tlb.spaces.len() == SPACES {
                self.tlb.forget();
                self.cache.forget_jumps();
            }
            self.tlb.spaces.push(self.cr3);
            self.tlb.first + self.tlb.spaces.len() - 1
        });
        let aligned = self.cpl == 3 && self.cr0 & AM != 0 && self.system_flags & crate::flags::AC != 0;
        self.space = (number as u64) << 2 | privilege | if aligned { ALIGNED } else { 0 };
        self.jump_key = self.cache.epoch() << 32 | self.space << 20 | u64::from(self.mode);
    }

    /// Pages that the guest wrote since the last call, a bit each.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        self.tlb.revision += 1;
        self.tlb.write.fill(EMPTY);
        self.ram.take_dirty()
    }
}

/// How much of a device access goes into one exit: naturally aligned, at most eight bytes.
fn device_part(gpa: u64, left: u64) -> u64 {
    [8, 4, 2].into_iter().find(|size| *size <= left && gpa.is_multiple_of(*size)).unwrap_or(1)
}
