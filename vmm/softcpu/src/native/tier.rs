//! When blocks are translated, and what is kept of that.

use std::ptr;
use std::time::Instant;

use super::form::Form;
use super::plan::{self, Covers, Plan};
use super::run::header;
use super::translate::{Draft, Numbers, Translator};
use super::{Block, Call, Edge, HOT, NEVER, Native, Place, Rate, Resume, Site, code};
use crate::Cpu;
use crate::cpu::mode;
use crate::decode::BLOCK_BYTES;
use crate::op::Op;
use crate::ram::PAGE;

/// For statistics alone.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// How a block is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// With one check of its accesses to the stack, one for each group, and calls for other accesses.
    Usual,
    /// With checks of its own for other accesses.
    Hot,
    /// The same without groups.
    Scattered,
    /// As usual, but each access is checked by itself.
    Apart,
}

/// How often a block names a guest register that the host has none for, before it gets that of another.
const USES: usize = 8;

impl Native {
    /// Everything is translated at once, and half of the blocks in the way of hot ones.
    pub(super) fn is_eager(&self) -> bool {
        self.threshold == 1
    }

    fn note_call(&mut self, call: Call) {
        let first = &mut self.first_calls[code::granule(call.after)];
        // What was there before everything was dropped is behind the last, or not of this place.
        let known = self.calls.get(*first as usize);
        if known.is_none_or(|known| code::granule(known.after) != code::granule(call.after)) {
            *first = self.calls.len() as u32;
        }
        self.calls.push(call);
    }
}

impl Cpu {
    /// Counts a run; whether it is time to translate.
    #[inline(always)]
    pub(super) fn wants_translation(&mut self, first: &Op, runs: u64) -> bool {
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
        let way = if native.is_eager() && self.rip.count_ones() & 1 != 0 { Way::Hot } else { Way::Usual };
        let state = match self.translate_block(&mut native, first, way) {
            Some(block) => native.memory.address(native.blocks[block as usize].code),
            None => NEVER,
        };
        header(first).disp.set(state);
        self.native = Some(native);
    }

    /// A slice ended at the block of a site, at RIP: those at which many do take most of the time, and are
    /// translated again.
    #[cold]
    pub(super) fn heat(&mut self, native: &mut Native, site: usize) {
        let number = native.sites[site].place.block as usize;
        let block = &mut native.blocks[number];
        if block.heat == HOT {
            return;
        }
        block.heat += 1;
        let first = block.op(0);
        if block.heat < native.hot || native.memory.is_full() {
            return;
        }
        if let Some(again) = self.translate_block(native, first, Way::Hot) {
            let again = again as usize;
            native.blocks[again].heat = HOT;
            let code = native.blocks[again].code;
            let replaced = &mut native.blocks[number];
            replaced.heat = HOT;
            native.gone += 1 + u64::from(replaced.apart.is_some());
            native.replace(number, again);
            header(first).disp.set(native.memory.address(code));
        }
    }

    /// Translates a block.
    pub(super) fn translate_block(&mut self, native: &mut Native, first: &Op, way: Way) -> Option<u32> {
        let start = now();
        let abort = self.abort;
        let Ok(gpa) = self.translate_code(self.rip) else {
            self.abort = abort;
            return None;
        };
        let count = header(first).imm as usize;
        let mut bytes = [0; BLOCK_BYTES];
        let bytes = &mut bytes[..BLOCK_BYTES.min((PAGE - gpa % PAGE) as usize)];
        self.read_code(gpa, bytes);
        let sse = self.mode & (mode::NO_SSE | mode::TASK_SWITCHED) == 0;
        let covers = Covers { stack: way != Way::Apart, groups: matches!(way, Way::Usual | Way::Hot) };
        let mut plan = plan::plan(bytes, self.rip, count, sse, covers, &mut native.factory);
        let hot = matches!(way, Way::Hot | Way::Scattered);
        if hot {
            plan.find_guests(if native.is_eager() { 1 } else { USES });
        }
        #[cfg(feature = "planted-faults")]
        let plan = self.plant_in(plan);
        if plan.steps.iter().all(|step| matches!(step.form, Form::Interpret | Form::Repeat)) {
            return None;
        }
        let numbers = Numbers { sites: native.sites.len(), edges: native.edges.len() };
        let draft = Translator::new(&native.routines, numbers, bytes, self.rip, hot);
        #[cfg(feature = "planted-faults")]
        let draft = draft.planted(self.mistake.filter(|(mistake, _)| self.makes(*mistake)));
        let draft = draft.translate(&plan);
        let block = self.keep_block(native, first, &plan, draft, bytes);
        native.statistics.translations += 1;
        native.statistics.translating_ns += start.elapsed().as_nanos() as u64;
        Some(block)
    }

    /// What planted mistakes make of a plan.
    #[cfg(feature = "planted-faults")]
    fn plant_in(&self, mut plan: Plan) -> Plan {
        if let Some(odd) = self.odd_form {
            // The first access of a group is made: it checks others.
            let is_odd = |step: &&mut plan::Step| {
                let first = step.group.is_some_and(|(_, first)| first);
                step.insn.code() == odd && super::samples::is_copied(step.form) && !first
            };
            plan.steps.iter_mut().filter(is_odd).for_each(|step| step.form = Form::Nothing);
        }
        if self.makes(crate::planted::Mistake::LostEdgeFlag) {
            plan.lose_last_flags();
        }
        if self.makes(crate::planted::Mistake::LostClflush) {
            let flushes = |step: &&mut plan::Step| step.insn.mnemonic() == iced_x86::Mnemonic::Clflush;
            plan.steps.iter_mut().filter(flushes).for_each(|step| step.form = Form::Nothing);
        }
        plan
    }

    /// Places a block, and notes what belongs to it.
    fn keep_block(&self, native: &mut Native, first: &Op, plan: &Plan, draft: Draft, bytes: &[u8]) -> u32 {
        let (hot, cold) = native.memory.next();
        native.memory.place(&draft.hot, &draft.cold);
        #[cfg(any(debug_assertions, feature = "planted-faults"))]
        if cfg!(debug_assertions) || native.audits {
            audit_block(native, (hot, cold), &draft, &bytes[..plan.end()]);
        }
        let block = native.blocks.len() as u32;
        let ops = first_ops(first, header(first).imm as usize);
        let place = |number: u8, flags| Place { block, op: ops[usize::from(number)], flags };
        native.sites.extend(draft.sites.iter().map(|s| {
            let next = ops.get(usize::from(s.number) + 1);
            let resume = s.resume.zip(next).and_then(|(code, op)| {
                let step = &plan.steps[usize::from(s.number)];
                let ops =
                    self.decode_single(&step.insn, &bytes[step.start..step.end], s.number, step.start)?;
                Some(Resume { ops, code: hot + code as u32, op: *op })
            });
            Site { place: place(s.number, s.flags), popped: s.popped, resume }
        }));
        for call in &draft.calls {
            native.note_call(Call {
                after: if call.after.0 { cold } else { hot } + call.after.1 as u32,
                retry: hot + call.retry as u32,
                place: place(call.number, call.flags),
                grouped: plan.stack.is_some() || !plan.groups.is_empty(),
                group: call.group,
            });
        }
        native.edges.extend(draft.edges.iter().map(|edge| {
            let guard = edge.guard.map(|(a, b, c)| (hot + a as u32, hot + b as u32, cold + c as u32));
            Edge { jump: hot + edge.jump as u32, guard, target: None }
        }));
        let (low, high) = plan.stack.unwrap_or((0, 0));
        let (rip, vectors, count) = (self.rip, plan.vectors, plan.count as u64);
        if let Some(map) = &native.perf_map {
            map.note(native.memory.address(hot), draft.hot.here(), rip, "");
            map.note(native.memory.address(cold), draft.cold.here(), rip, " slow");
        }
        native.blocks.push(Block {
            first,
            rip,
            count,
            guests: plan.guests.clone(),
            code: hot,
            apart: None,
            low,
            high,
            vectors,
            heat: 0,
            misses: Rate::default(),
            groups: plan.groups.clone(),
            scattered: None,
            strays: Rate::default(),
            incoming: Vec::new(),
        });
        block
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

/// Where a call ends, in code memory.
#[cfg(any(debug_assertions, feature = "planted-faults"))]
fn call_end((in_cold, at): (bool, usize), hot: u32, cold: u32) -> u32 {
    at as u32 + if in_cold { cold } else { hot }
}

/// Refuses a block that could reach beyond guest memory.
#[cfg(any(debug_assertions, feature = "planted-faults"))]
fn audit_block(native: &Native, (hot, cold): (u32, u32), draft: &Draft, guest: &[u8]) {
    let resumed = draft.sites.iter().filter_map(|site| site.resume);
    let entries = resumed.map(|at| hot + at as u32);
    let found = draft.edges.iter().filter_map(|edge| edge.guard).map(|(_, _, find)| cold + find as u32);
    let parts = super::audit::Parts {
        hot: (native.memory.bytes(hot, draft.hot.here()), hot),
        cold: (native.memory.bytes(cold, draft.cold.here()), cold),
        entries: entries.chain(found).collect(),
        retries: draft
            .calls
            .iter()
            .map(|call| (call_end(call.after, hot, cold), hot + call.retry as u32))
            .collect(),
    };
    if let Err(what) = super::audit::audit(&parts, &native.routines) {
        panic!("translated code reaches anywhere: {what}, of {guest:x?}");
    }
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
