//! The keys and their values.
//!
//! Keys are ordered by a 63-bit hash, then by their bytes. So a SCAN cursor is simply the hash to go on at:
//! stateless, and every key that stays is returned exactly once whatever else comes and goes (Redis' promise
//! is at least once). The hash has no secret: colliding keys are still told apart by their bytes, in
//! logarithmic time.
//!
//! Memory is counted as the guest's allocator would give it out (powers of two), so that `used_memory` bounds
//! what the heap really lost.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::ops::Bound;

/// Memory of a map node per key, at most: nodes are at least half full.
const NODE_COST: usize = 112;
/// The allocator's smallest block.
const MIN_BLOCK: usize = 32;

/// A key as the map orders it.
trait Ordered {
    fn parts(&self) -> (u64, &[u8]);
}

#[derive(Debug)]
struct Key {
    hash: u64,
    bytes: Box<[u8]>,
}

struct Probe<'a>(u64, &'a [u8]);

impl Ordered for Key {
    fn parts(&self) -> (u64, &[u8]) {
        (self.hash, &self.bytes)
    }
}

impl Ordered for Probe<'_> {
    fn parts(&self) -> (u64, &[u8]) {
        (self.0, self.1)
    }
}

impl PartialEq for dyn Ordered + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Ordered + '_ {}

impl PartialOrd for dyn Ordered + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Ordered + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl<'a> Borrow<dyn Ordered + 'a> for Key {
    fn borrow(&self) -> &(dyn Ordered + 'a) {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

/// 63 bits, never 0 (0 ends a SCAN): FNV-1a over words, then the finalizer of splitmix64.
fn hash(bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        state = (state ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        state ^= state >> 29;
    }
    for &byte in words.remainder() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((state ^ (state >> 31)) >> 1).max(1)
}

/// What the allocator gives out for `len` bytes.
fn block(len: usize) -> usize {
    if len == 0 { 0 } else { len.next_power_of_two().max(MIN_BLOCK) }
}

/// What a key with a value costs in memory, in bytes.
pub fn cost(key_len: usize, value_len: usize) -> usize {
    block(key_len) + block(value_len) + NODE_COST
}

/// There is no memory for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

/// A copy of `bytes`, if there is memory.
fn copy(bytes: &[u8]) -> Result<Vec<u8>, OutOfMemory> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| OutOfMemory)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// A key and value for which the memory is already there, so that putting them in cannot fail.
#[derive(Debug)]
pub struct Prepared {
    key: Key,
    value: Vec<u8>,
}

impl Prepared {
    /// Copies both.
    pub fn new(key: &[u8], value: &[u8]) -> Result<Self, OutOfMemory> {
        let key = Key { hash: hash(key), bytes: copy(key)?.into_boxed_slice() };
        Ok(Self { key, value: copy(value)? })
    }
}

/// The data set.
#[derive(Debug, Default)]
pub struct Store {
    map: BTreeMap<Key, Vec<u8>>,
    used_memory: usize,
    /// Bytes of all keys and values.
    content_len: usize,
}

impl Store {
    /// An empty one.
    pub const fn new() -> Self {
        Self { map: BTreeMap::new(), used_memory: 0, content_len: 0 }
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Bytes of memory that keys and values take, at most.
    pub fn used_memory(&self) -> usize {
        self.used_memory
    }

    /// Bytes of all keys and values.
    pub fn content_len(&self) -> usize {
        self.content_len
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.map.get(&Probe(hash(key), key) as &dyn Ordered).map(Vec::as_slice)
    }

    /// Puts a value in, over the old one if there is one.
    pub fn insert(&mut self, item: Prepared) {
        let Prepared { key, value } = item;
        let (key_len, new_len) = (key.bytes.len(), value.len());
        match self.map.entry(key) {
            Entry::Vacant(slot) => {
                self.content_len += key_len + new_len;
                self.used_memory += cost(key_len, value.capacity());
                slot.insert(value);
            }
            Entry::Occupied(mut slot) => {
                let old = slot.insert(value);
                self.content_len = self.content_len + new_len - old.len();
                self.used_memory -= cost(key_len, old.capacity());
                self.used_memory += cost(key_len, slot.get().capacity());
            }
        }
    }

    /// Puts a value in, over the old one if there is one.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), OutOfMemory> {
        self.insert(Prepared::new(key, value)?);
        Ok(())
    }

    /// Adds `tail` to the value of `key`, which is empty if there is none; returns the new length.
    pub fn append(&mut self, key: &[u8], tail: &[u8]) -> Result<usize, OutOfMemory> {
        let Some(value) = self.map.get_mut(&Probe(hash(key), key) as &dyn Ordered) else {
            self.set(key, tail)?;
            return Ok(tail.len());
        };
        let before = block(value.capacity());
        let len = value.len() + tail.len();
        if len > value.capacity() {
            // What the allocator would give out anyway: so appending takes linear time.
            value.try_reserve_exact(block(len) - value.len()).map_err(|_| OutOfMemory)?;
        }
        value.extend_from_slice(tail);
        self.used_memory = self.used_memory - before + block(value.capacity());
        self.content_len += tail.len();
        Ok(value.len())
    }

    /// Removes `key`; whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some(value) = self.map.remove(&Probe(hash(key), key) as &dyn Ordered) else { return false };
        self.content_len -= key.len() + value.len();
        self.used_memory -= cost(key.len(), value.capacity());
        true
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Every key and value, in the order of SCAN.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.map.iter().map(|(key, value)| (&*key.bytes, value.as_slice()))
    }

    /// Every key and value from `position` on; `Position::default()` is the beginning.
    pub fn iter_from<'a>(&'a self, position: &Position) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let probe = position.after.as_ref().map(|(hash, bytes)| Probe(*hash, bytes));
        let start = match &probe {
            Some(probe) => Bound::Excluded(probe as &dyn Ordered),
            None => Bound::Unbounded,
        };
        let range = self.map.range::<dyn Ordered, _>((start, Bound::Unbounded));
        range.map(|(key, value)| (&*key.bytes, value.as_slice()))
    }

    /// SCAN: from `cursor` on, at least `count` keys if there are so many (more, if hashes collide), each
    /// given to `visit`. Returns the cursor to go on with, 0 at the end.
    pub fn scan(&self, cursor: u64, count: usize, mut visit: impl FnMut(&[u8])) -> u64 {
        let first = Probe(cursor, &[]);
        let range =
            self.map.range::<dyn Ordered, _>((Bound::Included(&first as &dyn Ordered), Bound::Unbounded));
        let mut last = None;
        for (seen, (key, _)) in range.enumerate() {
            if seen >= count && last != Some(key.hash) {
                return key.hash;
            }
            visit(&key.bytes);
            last = Some(key.hash);
        }
        0
    }
}

/// A place in the order of SCAN, behind a key.
#[derive(Debug, Clone, Default)]
pub struct Position {
    after: Option<(u64, Vec<u8>)>,
}

impl Position {
    /// The place behind `key`.
    pub fn behind(key: &[u8]) -> Self {
        Self { after: Some((hash(key), key.to_owned())) }
    }
}
