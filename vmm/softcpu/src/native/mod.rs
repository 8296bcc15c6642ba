//! The translator: blocks that run often become code of the host, which does the same in the same order and
//! counts the same.
//!
//! ```text
//!  interpreter ── a block's 64th run ──▶ plan ──▶ translate ──▶ code memory
//!      ▲                                                           │ linked edges, jump cache
//!      └── limit · fault · device · everything that is not copied ◀┘
//! ```
//!
//! A block of the interpreter is the unit: same first byte, same count, same mode. Instructions are encoded
//! again with other registers and another address (`form` lists those for which that is right); their
//! accesses to memory are checked against the software TLB; everything else leaves translated code, and the
//! interpreter goes on in the middle of the block. So nothing can fault on the host, and every exception,
//! device and write to code is the interpreter's.

#[cfg(any(debug_assertions, feature = "planted-faults"))]
mod audit;
mod code;
mod emit;
mod flags;
mod form;
mod frame;
mod groups;
mod mapping;
mod perf_map;
mod plan;
mod routines;
mod run;
mod samples;
pub mod self_test;
mod tier;
mod translate;

use std::cell::Cell;
use std::io;

use iced_x86::InstructionInfoFactory;

use self::code::CodeMemory;
use self::flags::Recipe;
use self::frame::{Frame, JUMP_BITS, Jump, Stack, jump_slot};
use self::groups::Group;
use self::perf_map::PerfMap;
use self::routines::Routines;
pub use self::run::install;
use crate::Statistics;
use crate::op::Op;

/// Steps between two looks at what comes from outside, in translated code: some 30 µs.
const SLICE: u64 = 65536;
/// Runs of a block after which it is translated: what a boot of Linux does less often is not worth it.
pub const THRESHOLD: u32 = 64;
/// State of a block (`disp` of its header) that is not translated whatever happens. States below are the
/// number of its runs, those above addresses of its code.
const NEVER: u64 = u32::MAX as u64;
const RELINK: u32 = 64;

/// What is known of a translated block.
struct Block {
    first: *const Op,
    rip: u64,
    /// Instructions, of the block's first ones.
    count: u64,
    /// As `Plan::guests`.
    guests: Vec<(u8, u8)>,
    /// Of the code that checks the stack once, and of that which does not.
    code: u32,
    apart: Option<u32>,
    /// First byte of the stack that it checks, from RSP.
    low: i32,
    high: i32,
    vectors: bool,
    /// How often a slice ended at it, or `HOT` once it was translated again for that.
    heat: u32,
    /// That its stack's page could not be had.
    misses: Rate,
    groups: Vec<Group>,
    /// The code that does without groups, and that no page covered one.
    scattered: Option<u32>,
    strays: Rate,
    /// Edges of other pages that lead to it.
    incoming: Vec<u32>,
}

/// How often something happens that a block was not made for.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    count: u32,
    /// Position of the first that counts.
    since: u64,
}

impl Rate {
    /// So many are looked at together.
    const WINDOW: u32 = 32;
    /// It is rare if so many steps lie between two: what runs slowly then takes less than what would run
    /// slower always.
    const APART: u64 = 512;

    /// Counts one at a position; whether it is time to make another block. Of one that only reads its stack
    /// the page may never be one that may be written; a frame or an array's element may lie across two pages.
    fn is_high(&mut self, position: u64, eager: bool) -> bool {
        self.count += 1;
        if eager {
            return self.count == 2;
        }
        if self.count < Self::WINDOW {
            return false;
        }
        let steps = position.wrapping_sub(self.since);
        (self.count, self.since) = (0, position);
        steps < u64::from(Self::WINDOW) * Self::APART
    }
}

const HOT: u32 = u32::MAX;

impl Block {
    /// An op, counted from the first.
    fn op<'a>(&self, place: u16) -> &'a Op {
        // SAFETY: code that runs belongs to a block that is alive, whose op this is.
        unsafe { &*self.first.wrapping_add(usize::from(place)) }
    }
}

/// Where the interpreter goes on.
#[derive(Clone, Copy)]
struct Place {
    block: u32,
    op: u16,
    /// Flags that the frame does not have yet.
    flags: Option<Recipe>,
}

struct Site {
    place: Place,
    popped: u32,
    /// How to go on behind the instruction.
    resume: Option<Resume>,
}

struct Resume {
    /// The instruction's ops, and one behind them that says that they are done.
    ops: Box<[Op]>,
    /// The code that goes on.
    code: u32,
    /// The op that goes on, from the first.
    op: u16,
}

#[derive(Clone, Copy)]
struct Call {
    after: u32,
    retry: u32,
    place: Place,
    /// Its block may have checked what is accessed afterwards.
    grouped: bool,
    /// Whose first access it checks.
    group: Option<usize>,
}

struct Edge {
    jump: u32,
    guard: Option<(u32, u32, u32)>,
    /// The block whose `incoming` has it.
    target: Option<u32>,
}

/// The page of the stack of a privilege.
#[derive(Clone, Copy)]
struct Page {
    space: u64,
    revision: u64,
    page: u64,
    addend: u64,
}

/// Translated code and what belongs to it.
pub struct Native {
    memory: CodeMemory,
    stack: Stack,
    routines: Routines,
    blocks: Vec<Block>,
    sites: Vec<Site>,
    calls: Vec<Call>,
    /// Number of the first call that returns to piece (`code::granule`) of code memory.
    first_calls: Vec<u32>,
    edges: Vec<Edge>,
    jumps: Box<[Jump]>,
    /// Identifiers given to jump keys, by their space.
    ids: [(u64, u32); 64],
    last_id: u32,
    pages: [Page; 4],
    /// The TLB's, for which the frame's page of the stack is valid.
    revision: u64,
    factory: InstructionInfoFactory,
    threshold: u64,
    /// Slices that end at a block before it is translated as one that takes the guest's time.
    hot: u32,
    statistics: Statistics,
    /// Instructions executed here.
    executed: Cell<u64>,
    /// Blocks since everything was dropped last that were dropped.
    gone: u64,
    perf_map: Option<PerfMap>,
    /// Every block is audited, whatever the build.
    #[cfg(any(debug_assertions, feature = "planted-faults"))]
    pub audits: bool,
}

// SAFETY: the pointers lead to blocks of the processor that it belongs to.
unsafe impl Send for Native {}

const NO_JUMP: Jump = Jump { rip: 0, code: 0, id: 0 };

impl Native {
    /// Fails, and says why, where the host has no executable memory for it.
    pub fn new(threshold: u32) -> Result<Box<Self>, String> {
        let refused = || format!("the host gives no executable memory: {}", io::Error::last_os_error());
        let mut memory = CodeMemory::new().ok_or_else(refused)?;
        let stack = Stack::new().ok_or_else(refused)?;
        let routines = Routines::new(&mut memory);
        let mut native = Box::new(Self {
            memory,
            stack,
            routines,
            blocks: Vec::new(),
            sites: Vec::new(),
            calls: Vec::new(),
            first_calls: vec![0; code::GRANULES],
            edges: Vec::new(),
            jumps: vec![NO_JUMP; 1 << JUMP_BITS].into_boxed_slice(),
            ids: [(0, 0); 64],
            last_id: 0,
            revision: u64::MAX,
            pages: [Page { space: 0, revision: u64::MAX, page: 0, addend: 0 }; 4],
            factory: InstructionInfoFactory::new(),
            threshold: u64::from(threshold.max(1)),
            hot: threshold.clamp(1, 3),
            statistics: Statistics::default(),
            executed: Cell::new(0),
            gone: 0,
            perf_map: None,
            #[cfg(any(debug_assertions, feature = "planted-faults"))]
            audits: false,
        });
        let (jumps, code) = (native.jumps.as_ptr() as u64, native.memory.address(0));
        let frame = native.frame();
        (frame.jumps, frame.code) = (jumps, code);
        Ok(native)
    }

    fn frame(&mut self) -> &mut Frame {
        self.stack.get_mut()
    }

    /// What was done so far.
    pub fn statistics(&self) -> Statistics {
        let blocks = self.blocks.len() as u64 - self.gone;
        let invalidations = self.statistics.invalidations + self.gone;
        let native_instructions = self.executed.get();
        Statistics {
            blocks,
            bytes: self.memory.used(),
            invalidations,
            native_instructions,
            ..self.statistics
        }
    }

    /// Counts instructions that were executed, or (modulo 2^64) those of a block that were not after all.
    fn count(&self, instructions: u64) {
        self.executed.set(self.executed.get().wrapping_add(instructions));
    }

    /// Code at these addresses, as blocks' headers have them, is reached no more from outside its page.
    pub fn note_dropped(&mut self, codes: impl Iterator<Item = u64>) {
        let start = self.memory.address(0);
        for code in codes.filter(|code| *code > NEVER) {
            if let Some(number) = self.block_of(code.wrapping_sub(start)) {
                self.gone += 1 + u64::from(self.blocks[number].apart.is_some());
                self.unlink(number);
            }
        }
    }

    /// The block whose code begins at an offset.
    fn block_of(&self, code: u64) -> Option<usize> {
        // Blocks are placed one behind the other.
        self.blocks.binary_search_by_key(&code, |block| u64::from(block.code)).ok()
    }

    /// Nothing in another page leads to a block any more.
    fn unlink(&mut self, number: usize) {
        let block = &mut self.blocks[number];
        let (rip, incoming) = (block.rip, std::mem::take(&mut block.incoming));
        for edge in incoming {
            let edge = &mut self.edges[edge as usize];
            edge.target = None;
            if let Some((id, _, _)) = edge.guard {
                // As no identifier is.
                self.memory.set(id, 0);
            }
        }
        let jump = &mut self.jumps[jump_slot(rip)];
        if jump.rip == rip {
            *jump = NO_JUMP;
        }
    }

    /// The block `number` is replaced by another one.
    fn replace(&mut self, number: usize, by: usize) {
        let incoming = std::mem::take(&mut self.blocks[number].incoming);
        for edge in &incoming {
            self.edges[*edge as usize].target = Some(by as u32);
        }
        self.blocks[by].incoming = incoming;
        self.memory.replace(self.blocks[number].code, self.blocks[by].code);
    }

    /// Notes that an edge leads to the block whose code begins at an offset.
    fn note_edge(&mut self, number: usize, code: u32) {
        let target = self.block_of(u64::from(code));
        let before = std::mem::replace(&mut self.edges[number].target, target.map(|target| target as u32));
        if before.map(|before| before as usize) == target {
            return;
        }
        if let Some(before) = before {
            self.blocks[before as usize].incoming.retain(|edge| *edge as usize != number);
        }
        if let Some(target) = target {
            self.blocks[target].incoming.push(number as u32);
        }
    }

    /// Sets whether blocks translated from now on are listed for `perf`.
    pub fn set_perf_map(&mut self, on: bool) {
        self.perf_map = on.then(PerfMap::open).flatten();
    }

    /// What links made now are valid for.
    fn id(&mut self, key: u64) -> u32 {
        let slot = (key >> 20) as usize % self.ids.len();
        if self.ids[slot].0 != key || self.ids[slot].1 == 0 {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id == 0 {
                // Those of long ago would be valid again.
                self.last_id = 1;
                self.ids = [(0, 0); 64];
                self.jumps.fill(NO_JUMP);
                for edge in &self.edges {
                    if let Some((id, _, _)) = edge.guard {
                        self.memory.set(id, 0);
                    }
                }
            }
            self.ids[slot] = (key, self.last_id);
        }
        self.ids[slot].1
    }

    /// Forgets everything that was translated.
    fn clear(&mut self) {
        self.statistics.invalidations += self.blocks.len() as u64;
        self.gone = 0;
        if let Some(map) = &self.perf_map {
            map.clear();
        }
        self.memory.clear();
        self.blocks.clear();
        self.sites.clear();
        self.calls.clear();
        self.edges.clear();
        self.jumps.fill(NO_JUMP);
    }

    /// Runs code until it is left; the result is why.
    fn enter(&mut self, code: u32) -> u32 {
        self.memory.synchronize();
        let enter = self.memory.address(self.routines.enter);
        let at = self.memory.address(code);
        let frame = self.stack.frame();
        // SAFETY: the routine follows the calling convention; the frame is complete, and the code was made
        // for this processor and is valid in its present mode and address space.
        let enter: extern "sysv64" fn(*mut Frame, u64) = unsafe { std::mem::transmute(enter) };
        enter(frame, at);
        self.frame().exit
    }

    /// The edge `number` leads to `code` from now on.
    fn link(&mut self, number: usize, code: u32) {
        let id = self.frame().id;
        let edge = &self.edges[number];
        self.memory.point(edge.jump, code);
        if let Some((constant, differs, find)) = edge.guard {
            self.memory.set(constant, id);
            self.memory.point(differs, find);
            self.note_edge(number, code);
        }
    }

    /// The jump cache leads from `rip` to `code` from now on.
    fn note_jump(&mut self, rip: u64, code: u32) {
        let id = self.frame().id;
        self.jumps[jump_slot(rip)] = Jump { rip, code, id };
    }
}
