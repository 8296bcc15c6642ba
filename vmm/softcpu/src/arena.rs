//! Memory for the ops of blocks: in pieces that are given back together, and taken again.

use std::mem::MaybeUninit;

use crate::op::Op;

/// Two ops, in one line of the host's cache: a block's header is with its first op.
#[repr(align(64))]
struct Line {
    _ops: [MaybeUninit<Op>; 2],
}

/// Lines of a piece: the blocks of a page that has few fit into one.
const PIECE: usize = 32;
/// Pieces that are allocated at once.
const PIECES: usize = 64;

/// Lines that were allocated together.
type Lines = Box<[MaybeUninit<Line>]>;

fn lines(count: usize) -> Lines {
    Box::new_uninit_slice(count)
}

/// All pieces.
#[derive(Default)]
pub struct Arena {
    slabs: Vec<Lines>,
    free: Vec<*mut Line>,
}

/// The ops of some blocks.
pub struct Ops {
    pieces: Vec<*mut Line>,
    /// Lines used of the last piece.
    used: usize,
    /// Blocks that do not fit into a piece.
    large: Vec<Lines>,
}

impl Default for Ops {
    fn default() -> Self {
        Self { pieces: Vec::new(), used: PIECE, large: Vec::new() }
    }
}

impl Arena {
    fn piece(&mut self) -> *mut Line {
        if self.free.is_empty() {
            let mut slab = lines(PIECES * PIECE);
            let start = slab.as_mut_ptr().cast::<Line>();
            // The first is taken first.
            self.free.extend((0..PIECES).rev().map(|number| start.wrapping_add(number * PIECE)));
            self.slabs.push(slab);
        }
        self.free.pop().expect("just filled")
    }

    /// Keeps the ops of a block with others, where they stay: the result is where the first is.
    pub fn keep(&mut self, with: &mut Ops, ops: &[Op]) -> *const Op {
        let count = ops.len().div_ceil(2);
        let to = if count > PIECE {
            with.large.push(lines(count));
            with.large.last_mut().map(|lines| lines.as_mut_ptr().cast()).expect("just pushed")
        } else {
            if with.used + count > PIECE {
                with.pieces.push(self.piece());
                with.used = 0;
            }
            let start = with.used;
            with.used += count;
            with.pieces.last().map(|piece| piece.wrapping_add(start)).expect("just pushed")
        };
        let to: *mut Op = to.cast();
        for (place, op) in ops.iter().enumerate() {
            // SAFETY: so many ops fit from there on, which nothing else uses: `count` lines have twice as
            // many. An op needs no drop.
            unsafe { to.wrapping_add(place).write(op.clone()) };
        }
        to
    }

    /// Takes back the memory of ops that are not used any more.
    pub fn give_back(&mut self, ops: Ops) {
        self.free.extend(ops.pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cpu;

    fn nothing(_: &mut Cpu, _: &Op) {}

    fn ops(count: usize) -> Vec<Op> {
        (0..count).map(|number| Op { imm: number as u64, ..Op::new(nothing) }).collect()
    }

    fn check(first: *const Op, count: usize) {
        assert!(first.addr().is_multiple_of(64));
        for number in 0..count {
            // SAFETY: so many ops are kept there.
            assert_eq!(unsafe { &*first.wrapping_add(number) }.imm, number as u64);
        }
    }

    #[test]
    fn blocks_do_not_overlap() {
        let (mut arena, mut page) = (Arena::default(), Ops::default());
        let counts = [3, 64, 1, 2, 61, 65, 200, 5].repeat(50);
        let firsts: Vec<_> = counts.iter().map(|count| arena.keep(&mut page, &ops(*count))).collect();
        firsts.iter().zip(counts).for_each(|(first, count)| check(*first, count));
    }

    #[test]
    fn memory_is_taken_again() {
        let mut arena = Arena::default();
        for _ in 0..10 * PIECES {
            let mut page = Ops::default();
            for _ in 0..4 {
                let first = arena.keep(&mut page, &ops(60));
                check(first, 60);
            }
            arena.give_back(page);
        }
        assert_eq!(arena.slabs.len(), 1);
    }
}
