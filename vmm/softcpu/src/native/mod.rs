//! The translator: blocks that run often become code of the host, which does the same in the same order and
//! counts the same.
//!
//! ```text
//!  interpreter ── a block's 16th run ──▶ plan ──▶ translate ──▶ code memory
//!      ▲                                                           │ linked edges, jump cache
//!      └── limit · fault · device · everything that is not copied ◀┘
//! ```
//!
//! A block of the interpreter is the unit: same first byte, same count, same mode. Instructions are encoded
//! again with other registers and another address (`form` lists those for which that is right); their
//! accesses to memory are checked against the software TLB; everything else leaves translated code, and the
//! interpreter goes on in the middle of the block. So nothing can fault on the host, and every exception,
//! device and write to code is the interpreter's.

#[cfg(debug_assertions)]
mod audit;
mod code;
mod emit;
mod flags;
mod form;
mod frame;
mod mapping;
mod plan;
mod routines;
mod translate;

use std::ptr;
use std::time::Instant;

use iced_x86::InstructionInfoFactory;

use self::code::CodeMemory;
use self::frame::{Frame, JUMP_BITS, Jump, NONE, Stack, exit, jump_slot};
use self::routines::Routines;
use self::translate::{Numbers, Translator};
use crate::cpu::mode;
use crate::exception::is_canonical;
use crate::op::{Handler, Op};
use crate::ram::PAGE;
use crate::state::Seg;
use crate::{Cpu, Statistics, exec};

/// Steps between two looks at what comes from outside, in translated code: some 30 µs.
const SLICE: u64 = 65536;
/// Runs of a block after which it is translated.
pub const THRESHOLD: u32 = 16;
/// State of a block (`disp` of its header) that is not translated whatever happens. States below are the
/// number of its runs, those above addresses of its code.
const NEVER: u64 = u32::MAX as u64;
const RELINK: u32 = 64;

/// What is known of a translated block.
struct Block {
    first: *const Op,
    rip: u64,
    /// Of the code that checks the stack once, and of that which does not.
    code: u32,
    apart: Option<u32>,
    /// First byte of the stack that it checks, from RSP.
    low: i32,
    high: i32,
    vectors: bool,
}

impl Block {
    /// An op, counted from the first.
    fn op<'a>(&self, place: u16) -> &'a Op {
        // SAFETY: code that runs belongs to a block that is alive, whose op this is.
        unsafe { &*self.first.wrapping_add(usize::from(place)) }
    }
}

/// Where the interpreter goes on.
struct Site {
    block: u32,
    op: u16,
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

struct Call {
    after: u32,
    retry: u32,
    site: Site,
    /// Its block checked the stack.
    grouped: bool,
}

struct Edge {
    jump: u32,
    guard: Option<(u32, u32, u32)>,
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
    /// Number of the first call that returns to piece (`code::granule`) of the main part.
    first_calls: Vec<u32>,
    edges: Vec<Edge>,
    jumps: Box<[Jump]>,
    /// Identifiers given to jump keys, by their space.
    ids: [(u64, u32); 64],
    last_id: u32,
    pages: [Page; 4],
    factory: InstructionInfoFactory,
    threshold: u64,
    statistics: Statistics,
}

// SAFETY: the pointers lead to blocks of the processor that it belongs to.
unsafe impl Send for Native {}

const NO_JUMP: Jump = Jump { rip: 0, code: 0, id: 0 };

impl Native {
    /// `None` where the host has no executable memory for it.
    pub fn new(threshold: u32) -> Option<Box<Self>> {
        let mut memory = CodeMemory::new()?;
        let stack = Stack::new()?;
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
            pages: [Page { space: 0, revision: u64::MAX, page: 0, addend: 0 }; 4],
            factory: InstructionInfoFactory::new(),
            threshold: u64::from(threshold.max(1)),
            statistics: Statistics::default(),
        });
        let (jumps, code) = (native.jumps.as_ptr() as u64, native.memory.address(0));
        let frame = native.frame();
        (frame.jumps, frame.code) = (jumps, code);
        Some(native)
    }

    fn frame(&mut self) -> &mut Frame {
        self.stack.get_mut()
    }

    /// What was done so far.
    pub fn statistics(&self) -> Statistics {
        Statistics { blocks: self.blocks.len() as u64, bytes: self.memory.used(), ..self.statistics }
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
        }
    }

    /// The jump cache leads from `rip` to `code` from now on.
    fn note_jump(&mut self, rip: u64, code: u32) {
        let id = self.frame().id;
        self.jumps[jump_slot(rip)] = Jump { rip, code, id };
    }
}

/// For statistics alone.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// A block's header, before its first op.
fn header(first: &Op) -> &Op {
    // SAFETY: a block's first op follows its header.
    unsafe { &*ptr::from_ref(first).wrapping_sub(1) }
}

/// The first op of every block that can be translated: counts its runs, or runs its code.
pub fn tiered(cpu: &mut Cpu, op: &Op) {
    let header = header(op);
    let state = header.disp.get();
    if state > NEVER {
        if let Some((run, op)) = cpu.run_native(op, state) {
            run(cpu, op)
        }
    } else if state < NEVER && cpu.wants_translation(op, state) {
        // The run loop has it translated, and comes again.
    } else {
        (header.run)(cpu, op)
    }
}

/// Installs `tiered` in the ops of a block that is about to be kept.
pub fn install(ops: &mut [Op]) {
    ops[0].run = ops[1].run;
    ops[1].run = tiered;
}

/// What became of an exit from translated code.
enum Next<'a> {
    Enter(u32),
    Interpret(Handler, &'a Op),
    Return,
}

impl Cpu {
    /// Counts a run; whether it is time to translate.
    #[inline(always)]
    fn wants_translation(&mut self, first: &Op, runs: u64) -> bool {
        header(first).disp.set(runs + 1);
        let wanted = self.native.as_ref().is_some_and(|native| runs + 1 >= native.threshold);
        if wanted {
            self.wanted = first;
        }
        wanted
    }

    /// Translates the block at RIP, which asked for it.
    #[cold]
    pub(crate) fn translate_wanted(&mut self) {
        let first = std::mem::replace(&mut self.wanted, ptr::null());
        let Some(mut native) = self.native.take() else { return };
        if native.memory.is_full() {
            native.clear();
            self.native = Some(native);
            return self.drop_all_code();
        }
        // SAFETY: the block ran last, and nothing was dropped since.
        let first = unsafe { &*first };
        let state = match self.translate_block(&mut native, first, true) {
            Some(block) => native.memory.address(native.blocks[block as usize].code),
            None => NEVER,
        };
        header(first).disp.set(state);
        self.native = Some(native);
    }

    /// Translates a block; `grouped` with one check of its accesses to the stack.
    fn translate_block(&mut self, native: &mut Native, first: &Op, grouped: bool) -> Option<u32> {
        let start = now();
        let abort = self.abort;
        let Ok(gpa) = self.translate_code(self.rip) else {
            self.abort = abort;
            return None;
        };
        let count = header(first).imm as usize;
        let mut page = [0; PAGE as usize];
        let bytes = &mut page[..(PAGE - gpa % PAGE) as usize];
        self.read_code(gpa, bytes);
        let sse = self.mode & (mode::NO_SSE | mode::TASK_SWITCHED) == 0;
        let plan = plan::plan(bytes, self.rip, count, sse, grouped, &mut native.factory);
        if plan
            .steps
            .first()
            .is_none_or(|step| matches!(step.form, form::Form::Interpret | form::Form::Repeat))
        {
            return None;
        }
        let numbers = Numbers { sites: native.sites.len(), edges: native.edges.len() };
        let draft = Translator::new(&native.routines, numbers, bytes, self.rip, count).translate(&plan);
        let (hot, cold) = native.memory.next();
        native.memory.place(&draft.hot, &draft.cold);
        #[cfg(debug_assertions)]
        if let Err(what) = audit::audit(native.memory.bytes(hot, draft.hot.here()), hot, &native.routines) {
            panic!("translated code that reaches anywhere: {what}, of {:x?}", &bytes[..plan.end()]);
        }
        let block = native.blocks.len() as u32;
        let ops = first_ops(first, count);
        let site = |number: u8, popped| Site { block, op: ops[usize::from(number)], popped, resume: None };
        native.sites.extend(draft.sites.iter().map(|s| {
            let next = ops.get(usize::from(s.number) + 1);
            let resume = s.resume.zip(next).and_then(|(code, op)| {
                let step = &plan.steps[usize::from(s.number)];
                let ops =
                    self.decode_single(&step.insn, &bytes[step.start..step.end], s.number, step.start)?;
                Some(Resume { ops, code: hot + code as u32, op: *op })
            });
            Site { resume, ..site(s.number, s.popped) }
        }));
        for call in &draft.calls {
            let after = hot + call.after as u32;
            let first = &mut native.first_calls[code::granule(after)];
            let number = native.calls.len() as u32;
            // What was there before everything was dropped is behind the last, or not of this place.
            let known = native.calls.get(*first as usize);
            if known.is_none_or(|call| code::granule(call.after) != code::granule(after)) {
                *first = number;
            }
            native.calls.push(Call {
                after,
                retry: hot + call.retry as u32,
                site: site(call.number, 0),
                grouped: plan.stack.is_some(),
            });
        }
        native.edges.extend(draft.edges.iter().map(|edge| {
            let (in_cold, at) = edge.jump;
            let guard = edge.guard.map(|(a, b, c)| (cold + a as u32, cold + b as u32, cold + c as u32));
            Edge { jump: if in_cold { cold } else { hot } + at as u32, guard }
        }));
        let (low, high) = plan.stack.unwrap_or((0, 0));
        native.blocks.push(Block {
            first,
            rip: self.rip,
            code: hot,
            apart: None,
            low,
            high,
            vectors: plan.vectors,
        });
        native.statistics.translations += 1;
        native.statistics.translating_ns += start.elapsed().as_nanos() as u64;
        Some(block)
    }

    /// Runs translated code from a block's first op on. What is returned is to be run by the interpreter.
    #[inline(never)]
    fn run_native<'a>(&mut self, op: &'a Op, code: u64) -> Option<(Handler, &'a Op)> {
        if exec::sse_control::traps(self) {
            return Some((header(op).run, op));
        }
        let mut native = self.native.take()?;
        self.limit = self.until.min(self.retired.saturating_add(SLICE)).max(self.limit);
        self.prepare(&mut native);
        let mut next = Next::Enter(native.memory.offset(code));
        let result = loop {
            match next {
                Next::Enter(code) => {
                    let start = self.retired;
                    native.frame().left = self.limit - self.retired;
                    let exit = native.enter(code);
                    next = self.left_native(&mut native, exit);
                    let done = self.retired.wrapping_sub(start);
                    let total = &mut native.statistics.native_instructions;
                    *total = total.wrapping_add(done);
                }
                Next::Interpret(run, op) => break Some((run, op)),
                Next::Return => break None,
            }
        };
        self.flags = native.frame().flags();
        self.native = Some(native);
        if result.is_some() {
            self.limit = self.limit.min(self.retired.saturating_add(crate::cpu::SLICE));
        }
        result
    }

    /// Makes the frame complete.
    fn prepare(&mut self, native: &mut Native) {
        let id = native.id(self.jump_key);
        let known = native.pages[(self.space & 3) as usize];
        let frame = native.frame();
        frame.set_flags(self.flags);
        let valid = known.space == self.space && known.revision == self.tlb.revision;
        (frame.page, frame.addend) = (known.page, known.addend);
        frame.none = if valid { 0 } else { NONE };
        frame.space = self.space;
        frame.id = id;
        frame.vectors = 0;
        frame.relink = RELINK;
        (frame.reads, frame.writes) = self.tlb.tables();
        frame.bases = [self.base(Seg::Fs), self.base(Seg::Gs)];
        frame.regs = self.regs.as_mut_ptr() as u64;
        frame.xmm = self.xmm.as_mut_ptr() as u64;
    }

    /// What comes after translated code was left. RIP and the count are set.
    fn left_native<'a>(&mut self, native: &mut Native, why: u32) -> Next<'a> {
        let frame = native.frame();
        let (rip, argument, left) = (frame.rip, frame.argument as usize, frame.left);
        self.retired = self.limit.wrapping_sub(left);
        match why {
            exit::LIMIT => {
                self.rip = rip;
                Next::Return
            }
            exit::LOOKUP | exit::LINK => {
                let edge = (why == exit::LINK).then_some(argument);
                self.go_on(native, rip, edge)
            }
            exit::RETURN if is_canonical(rip) => self.go_on(native, rip, None),
            exit::RETURN => {
                let site = &native.sites[argument];
                self.regs[4] = self.regs[4].wrapping_sub(u64::from(site.popped));
                self.interpret(native, argument)
            }
            exit::INTERPRET => self.interpret(native, argument),
            exit::STACK => self.find_stack(native, argument),
            exit::FLAGS => {
                let call = find_call(native, argument as u64);
                let call = &native.calls[call];
                let (retry, vectors) = (call.retry, native.blocks[call.site.block as usize].vectors);
                let frame = native.frame();
                frame.vectors = u32::from(vectors);
                frame.set_raw_flags();
                Next::Enter(retry)
            }
            _ => self.access(native, why, argument as u64),
        }
    }

    /// A branch to `rip`: by way of the interpreter's jump cache.
    fn go_on<'a>(&mut self, native: &mut Native, rip: u64, edge: Option<usize>) -> Next<'a> {
        native.frame().relink = RELINK;
        self.rip = rip;
        let Some(first) = self.cached_block(rip) else { return Next::Return };
        let state = header(first).disp.get();
        if state <= NEVER {
            return Next::Interpret(first.run, first);
        }
        let code = native.memory.offset(state);
        if let Some(edge) = edge {
            native.link(edge, code);
        }
        native.note_jump(rip, code);
        Next::Enter(code)
    }

    /// Has the instruction of a site interpreted, and what follows it unless that is translated.
    fn interpret<'a>(&mut self, native: &mut Native, number: usize) -> Next<'a> {
        let site = &native.sites[number];
        let next = self.interpret_at(native, site);
        let Some(Resume { ops, code, op }) = &site.resume else {
            return match next {
                Next::Interpret(run, op) => self.end_block(native, run, op),
                next => next,
            };
        };
        let block = &native.blocks[site.block as usize];
        let (first, op) = (block.op(0), block.op(*op));
        let (code, vectors, revision, limit) = (*code, block.vectors, self.tlb.revision, self.limit);
        self.flags = native.stack.get().flags();
        // Nothing follows by itself.
        (self.limit, self.resumed) = (0, false);
        (ops[0].run)(self, &ops[0]);
        self.limit = limit;
        if !std::mem::take(&mut self.resumed) {
            native.frame().set_flags(self.flags);
            return Next::Return;
        }
        self.prepare(native);
        if revision != self.tlb.revision || exec::sse_control::traps(self) {
            return Next::Interpret(op.run, op);
        }
        self.retired = self.retired.wrapping_add(header(first).imm);
        native.frame().vectors = u32::from(vectors);
        Next::Enter(code)
    }

    /// Runs the last instruction of a block, and goes on with the next block if nothing is to be looked at.
    fn end_block<'a>(&mut self, native: &mut Native, run: Handler, op: &'a Op) -> Next<'a> {
        self.flags = native.stack.get().flags();
        let limit = std::mem::replace(&mut self.limit, 0);
        run(self, op);
        self.limit = limit;
        native.frame().set_flags(self.flags);
        let plain = self.abort == crate::cpu::Abort::None
            && self.interrupt.is_none()
            && !self.window
            && self.shadow == crate::state::Shadow::None
            && self.answers.is_empty()
            && !self.is_resumed_or_traced()
            && !self.is_watched_change()
            && !self.breakpoints.has(self.rip);
        if !plain || self.mode & mode::LONG == 0 {
            return Next::Return;
        }
        self.prepare(native);
        self.go_on(native, self.rip, None)
    }

    fn interpret_at<'a>(&mut self, native: &Native, site: &Site) -> Next<'a> {
        let block = &native.blocks[site.block as usize];
        let (first, op) = (block.op(0), block.op(site.op));
        self.rip = block.rip;
        // The whole block was counted.
        self.retired = self.retired.wrapping_sub(header(first).imm);
        let run = if site.op == 0 { header(first).run } else { op.run };
        Next::Interpret(run, op)
    }

    /// The block of a site needs its stack's page.
    fn find_stack<'a>(&mut self, native: &mut Native, site: usize) -> Next<'a> {
        let number = native.sites[site].block as usize;
        let block = &native.blocks[number];
        let (low, high, code, first) = (block.low, block.high, block.code, block.first);
        let address = self.regs[4].wrapping_add_signed(i64::from(low));
        self.rip = block.rip;
        if address % PAGE + (high - low) as u64 <= PAGE
            && let Some(addend) = self.tlb.write_addend(address, self.space)
        {
            let page = address & !(PAGE - 1);
            let (space, revision) = (self.space, self.tlb.revision);
            native.pages[(space & 3) as usize] = Page { space, revision, page, addend };
            let frame = native.frame();
            (frame.page, frame.addend, frame.none) = (page, addend, 0);
            return Next::Enter(code);
        }
        if let Some(apart) = block.apart {
            return Next::Enter(apart);
        }
        // SAFETY: the block is alive.
        let first = unsafe { &*first };
        if !native.memory.is_full()
            && let Some(twin) = self.translate_block(native, first, false)
        {
            let apart = native.blocks[twin as usize].code;
            native.blocks[number].apart = Some(apart);
            return Next::Enter(apart);
        }
        Next::Interpret(header(first).run, first)
    }

    /// An access found no entry in the TLB: one is made, or the instruction interpreted.
    fn access<'a>(&mut self, native: &mut Native, why: u32, after: u64) -> Next<'a> {
        let address = native.frame().address;
        let call = find_call(native, after);
        let revision = self.tlb.revision;
        let (bytes, aligned) = if why & 7 == 5 { (16, true) } else { (1 << (why & 7), false) };
        let right = !aligned || address.is_multiple_of(bytes);
        let found = right && self.find_page(address, bytes, why & exit::WRITE != 0);
        let call = &native.calls[call];
        // What the search revoked, the block may have looked at already.
        if !found || call.grouped && revision != self.tlb.revision {
            return self.interpret_at(native, &call.site);
        }
        let (retry, vectors) = (call.retry, native.blocks[call.site.block as usize].vectors);
        native.frame().vectors = u32::from(vectors);
        Next::Enter(retry)
    }

    /// Drops all decoded and translated code.
    pub(crate) fn drop_all_code(&mut self) {
        for page in 0..self.ram.pages() as u64 {
            if self.ram.flags(page * PAGE) & crate::ram::CODE != 0 {
                self.drop_code(page * PAGE);
            }
        }
    }
}

/// The call that returns to an address.
fn find_call(native: &Native, after: u64) -> usize {
    let after = native.memory.offset(after);
    let mut number = native.first_calls[code::granule(after)] as usize;
    while native.calls[number].after != after {
        number += 1;
    }
    number
}

/// The place, from the first op on, of each instruction's first op.
fn first_ops(first: &Op, count: usize) -> Vec<u16> {
    let mut places = Vec::with_capacity(count);
    let mut op = first;
    let mut place = 0;
    while usize::from(op.number) < count {
        if usize::from(op.number) == places.len() {
            places.push(place);
        }
        op = op.following();
        place += 1;
    }
    places
}
