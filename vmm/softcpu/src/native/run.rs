//! Running translated code, and what is done when it was left.

use std::ptr;

use super::frame::{Frame, NONE, exit};
use super::tier::Way;
use super::{Block, Call, HOT, NEVER, Native, Page, Place, RELINK, Resume, SLICE, code};
use crate::cpu::{Abort, mode};
use crate::exception::is_canonical;
use crate::op::{Handler, Op};
#[cfg(feature = "planted-faults")]
use crate::planted::Mistake;
use crate::ram::PAGE;
use crate::state::{Seg, Shadow};
use crate::{Cpu, exec};

/// A block's header, before its first op.
pub fn header(first: &Op) -> &Op {
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
    /// Runs translated code from a block's first op on. What is returned is to be run by the interpreter.
    #[inline(never)]
    fn run_native<'a>(&mut self, op: &'a Op, code: u64) -> Option<(Handler, &'a Op)> {
        if exec::sse_control::traps(self) {
            return Some((header(op).run, op));
        }
        let mut native = self.native.take()?;
        // Handlers that are not left by a jump take of the host's stack until the run loop is back: what is
        // interpreted in between stays within one slice, however often translated code is entered.
        let rest = self.limit.saturating_sub(self.retired);
        self.limit = self.until.min(self.retired.saturating_add(SLICE)).max(self.limit);
        self.prepare(&mut native);
        let mut next = Next::Enter(native.memory.offset(code));
        let result = loop {
            match next {
                Next::Enter(code) => {
                    if native.revision != self.tlb.revision {
                        // A walk, also for code, may have made a page table of the stack's page.
                        native.revision = self.tlb.revision;
                        native.frame().none = NONE;
                    }
                    native.frame().left = self.limit - self.retired;
                    let exit = native.enter(code);
                    next = self.left_native(&mut native, exit);
                }
                Next::Interpret(run, op) => break Some((run, op)),
                Next::Return => break None,
            }
        };
        self.flags = native.frame().flags();
        self.native = Some(native);
        if result.is_some() {
            self.limit = self.limit.min(self.retired.saturating_add(rest));
        }
        result
    }

    /// Makes the frame complete.
    fn prepare(&mut self, native: &mut Native) {
        let id = native.id(self.jump_key);
        native.revision = self.tlb.revision;
        let known = native.pages[(self.space & 3) as usize];
        let frame = native.frame();
        frame.set_flags(self.flags);
        let valid = known.space == self.space && known.revision == self.tlb.revision;
        #[cfg(feature = "planted-faults")]
        let valid = valid
            || self.makes(Mistake::StaleStackPage) && known.space == self.space && known.addend != 0
            || self.makes(Mistake::StackKeptOverAc) && known.space == self.space & !crate::mem::ALIGNED;
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
        if frame.none == 0 {
            let (space, revision) = (self.space, self.tlb.revision);
            let (page, addend) = (frame.page, frame.addend);
            native.pages[(space & 3) as usize] = Page { space, revision, page, addend };
        }
        let before = std::mem::replace(&mut self.retired, self.limit.wrapping_sub(left));
        native.count(self.retired.wrapping_sub(before));
        match why {
            exit::LIMIT => {
                self.rip = rip;
                self.heat(native, argument);
                Next::Return
            }
            exit::LOOKUP | exit::LINK => {
                let edge = (why == exit::LINK).then_some(argument);
                let next = self.go_on(native, rip, edge);
                self.cross(native, next)
            }
            exit::RETURN if is_canonical(rip) => {
                let next = self.go_on(native, rip, None);
                self.cross(native, next)
            }
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
                self.unpark(&native.blocks[call.place.block as usize], native.stack.get());
                let (retry, block) = (call.retry, &native.blocks[call.place.block as usize]);
                self.park(block);
                let vectors = block.vectors;
                let frame = native.frame();
                frame.vectors = u32::from(vectors);
                frame.set_raw_flags();
                Next::Enter(retry)
            }
            exit::GROUP => self.find_group(native, argument as u64),
            _ => self.access(native, why, argument as u64),
        }
    }

    /// Gives the guest registers of a block that was left in its middle their own values.
    fn unpark(&mut self, block: &Block, frame: &Frame) {
        for ((guest, other), parked) in block.guests.iter().zip(frame.parked) {
            self.regs[usize::from(*guest)] = self.regs[usize::from(*other)];
            self.regs[usize::from(*other)] = parked;
        }
    }

    /// The reverse, before it is entered there again.
    fn park(&mut self, block: &Block) {
        for (guest, other) in &block.guests {
            self.regs[usize::from(*other)] = self.regs[usize::from(*guest)];
        }
    }

    /// A branch to `rip`: by way of the interpreter's jump cache.
    fn go_on<'a>(&mut self, native: &mut Native, rip: u64, edge: Option<usize>) -> Next<'a> {
        native.frame().relink = RELINK;
        self.rip = rip;
        let Some(first) = self.cached_block(rip).or_else(|| self.decoded_block(rip)) else {
            return Next::Return;
        };
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

    /// Where no block was found: runs the instruction at RIP if it is one that crosses into the next page,
    /// and goes on behind it.
    fn cross<'a>(&mut self, native: &mut Native, next: Next<'a>) -> Next<'a> {
        if !matches!(next, Next::Return) || self.retired >= self.limit || self.breakpoints.has(self.rip) {
            return next;
        }
        let Some(crossing) = self.take_crossing() else { return Next::Return };
        let first = crossing.first();
        let next = self.end_block(native, first.run, first);
        self.keep_crossing(crossing);
        next
    }

    /// Has the instruction of a site interpreted, and what follows it unless that is translated.
    fn interpret<'a>(&mut self, native: &mut Native, number: usize) -> Next<'a> {
        let place = native.sites[number].place;
        let next = self.interpret_at(native, place);
        let site = &native.sites[number];
        let Some(Resume { ops, code, op }) = &site.resume else {
            return match next {
                Next::Interpret(run, op) => self.end_block(native, run, op),
                next => next,
            };
        };
        let block = &native.blocks[place.block as usize];
        let op = block.op(*op);
        let (code, vectors, revision, limit) = (*code, block.vectors, self.tlb.revision, self.limit);
        let count = block.count;
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
        self.retired = self.retired.wrapping_add(count);
        native.count(count - u64::from(op.number));
        native.frame().vectors = u32::from(vectors);
        Next::Enter(code)
    }

    /// Runs the last instruction of a block, and goes on with the next block if nothing is to be looked at.
    fn end_block<'a>(&mut self, native: &mut Native, run: Handler, op: &Op) -> Next<'a> {
        self.flags = native.stack.get().flags();
        let limit = std::mem::replace(&mut self.limit, 0);
        run(self, op);
        self.limit = limit;
        native.frame().set_flags(self.flags);
        let plain = self.abort == Abort::None
            && self.interrupt.is_none()
            && !self.window
            && self.shadow == Shadow::None
            && self.answers.is_empty()
            && !self.is_resumed_or_traced()
            && !self.is_watched_change()
            && !exec::sse_control::traps(self)
            && !self.breakpoints.has(self.rip);
        if !plain || self.mode & mode::LONG == 0 {
            return Next::Return;
        }
        self.prepare(native);
        self.go_on(native, self.rip, None)
    }

    fn interpret_at<'a>(&mut self, native: &mut Native, place: Place) -> Next<'a> {
        if let Some(recipe) = place.flags {
            recipe.apply(native.frame(), &self.regs);
        }
        let block = &native.blocks[place.block as usize];
        let (first, op) = (block.op(0), block.op(place.op));
        self.rip = block.rip;
        // All of it was counted.
        self.retired = self.retired.wrapping_sub(block.count);
        native.count(u64::from(op.number).wrapping_sub(block.count));
        let run = if place.op == 0 { header(first).run } else { op.run };
        Next::Interpret(run, op)
    }

    /// The block of a site needs its stack's page.
    fn find_stack<'a>(&mut self, native: &mut Native, site: usize) -> Next<'a> {
        let number = native.sites[site].place.block as usize;
        let block = &native.blocks[number];
        let (low, high, code, first) = (block.low, block.high, block.code, block.first);
        let address = self.regs[4].wrapping_add_signed(i64::from(low));
        self.rip = block.rip;
        #[cfg(feature = "planted-faults")]
        if self.makes(Mistake::WalkingCheck) {
            self.find_page(address, 1, true);
        }
        if address % PAGE + (high - low) as u64 <= PAGE
            && let Some(addend) = self.tlb.write_addend(address, self.space)
        {
            let page = address & !(PAGE - 1);
            let (space, revision) = (self.space, self.tlb.revision);
            native.pages[(space & 3) as usize] = Page { space, revision, page, addend };
            native.revision = revision;
            let frame = native.frame();
            (frame.page, frame.addend, frame.none) = (page, addend, 0);
            return Next::Enter(code);
        }
        let Some(apart) = self.apart(native, number) else {
            // SAFETY: the block is alive.
            let first = unsafe { &*first };
            return Next::Interpret(header(first).run, first);
        };
        let eager = native.is_eager();
        if native.blocks[number].misses.is_high(self.retired, eager) {
            native.memory.replace(code, apart);
        }
        Next::Enter(apart)
    }

    /// The code of a block, at RIP, that checks each of its accesses by itself.
    fn apart(&mut self, native: &mut Native, number: usize) -> Option<u32> {
        let block = &native.blocks[number];
        if block.apart.is_some() {
            return block.apart;
        }
        if native.memory.is_full() {
            return None;
        }
        // SAFETY: the block is alive.
        let first = unsafe { &*block.first };
        let twin = self.translate_block(native, first, Way::Apart)? as usize;
        let apart = native.blocks[twin].code;
        native.blocks[number].apart = Some(apart);
        // With one check again it would not find the page either.
        native.blocks[twin].heat = HOT;
        Some(apart)
    }

    /// The code of a block, at RIP, that does without groups.
    fn scattered(&mut self, native: &mut Native, number: usize) -> Option<u32> {
        let block = &native.blocks[number];
        if block.scattered.is_some() || native.memory.is_full() {
            return block.scattered;
        }
        // SAFETY: the block is alive.
        let first = unsafe { &*block.first };
        let twin = self.translate_block(native, first, Way::Scattered)? as usize;
        native.blocks[twin].heat = HOT;
        let scattered = native.blocks[twin].code;
        native.blocks[number].scattered = Some(scattered);
        Some(scattered)
    }

    /// The first access of a group is made possible, and the others looked for; or all is interpreted.
    fn find_group<'a>(&mut self, native: &mut Native, after: u64) -> Next<'a> {
        let address = native.frame().address;
        let call = find_call(native, after);
        let Call { retry, place, group, .. } = native.calls[call];
        let number = place.block as usize;
        self.unpark(&native.blocks[number], native.stack.get());
        let block = &native.blocks[number];
        let (vectors, revision) = (block.vectors, self.tlb.revision);
        let Some(group) = group.map(|group| block.groups[group]) else {
            return self.interpret_at(native, place);
        };
        self.find_page(address, u64::from(group.first.bytes), group.first.write);
        if revision != self.tlb.revision {
            return self.interpret_at(native, place);
        }
        let low = address.wrapping_add_signed(i64::from(group.low));
        let fits = low % PAGE + u64::from(group.bytes) <= PAGE;
        if fits && self.tlb.has(low, self.space, group.write) {
            self.park(&native.blocks[number]);
            native.frame().vectors = u32::from(vectors);
            return Next::Enter(retry);
        }
        let eager = native.is_eager();
        let high = native.blocks[number].strays.is_high(self.retired, eager);
        let begins = place.op == 0;
        let next = self.interpret_at(native, place);
        if !high && !begins {
            return next;
        }
        let Some(scattered) = self.scattered(native, number) else { return next };
        if high {
            native.memory.replace(native.blocks[number].code, scattered);
        }
        // Nothing of the block was executed yet.
        if begins { Next::Enter(scattered) } else { next }
    }

    /// An access found no entry in the TLB: one is made, or the instruction interpreted.
    fn access<'a>(&mut self, native: &mut Native, why: u32, after: u64) -> Next<'a> {
        let address = native.frame().address;
        let call = find_call(native, after);
        let block = native.calls[call].place.block as usize;
        self.unpark(&native.blocks[block], native.stack.get());
        let revision = self.tlb.revision;
        let (bytes, aligned) = if why & 7 == 5 { (16, true) } else { (1 << (why & 7), false) };
        let right = !aligned || address.is_multiple_of(bytes);
        let found = right && self.find_page(address, bytes, why & exit::WRITE != 0);
        let call = &native.calls[call];
        // What the search revoked, the block may have looked at already.
        if !found || call.grouped && revision != self.tlb.revision {
            let place = call.place;
            return self.interpret_at(native, place);
        }
        let (retry, block) = (call.retry, &native.blocks[call.place.block as usize]);
        self.park(block);
        let vectors = block.vectors;
        native.frame().vectors = u32::from(vectors);
        Next::Enter(retry)
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
