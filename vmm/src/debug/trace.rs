//! The instruction trace: one line for each instruction between two positions.
//!
//! ```text
//!  position  rip               symbol+offset      instruction            registers that it changed
//! ```

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, SymbolResolver, SymbolResult};
use logchannel::Position;

use crate::debug::symbols::Symbols;
use crate::debug::target::Target;
use crate::engine::state::{CpuState, GPR_NAMES, SEGMENT_NAMES};
use crate::engine::{Engine, EngineError};

/// Longest instruction (SDM vol. 2, 2.3.11).
const MAX_INSTRUCTION: usize = 15;
/// Width of the columns before the registers.
const SYMBOL_COLUMNS: usize = 32;
const INSTRUCTION_COLUMNS: usize = 44;

/// Numbers below this are no addresses to name.
const FIRST_NAMED: u64 = 1 << 20;

/// Names for the formatter.
struct Resolver(Arc<Symbols>);

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        _instruction: &iced_x86::Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        // Below are displacements and small constants, and a kernel's names of places per CPU.
        let (name, offset) = (address >= FIRST_NAMED).then(|| self.0.lookup(address))??;
        Some(SymbolResult::with_str(address - offset, name))
    }
}

/// The instruction that begins `bytes`, which are at `rip`, for people. `bits` is 16, 32 or 64.
pub fn disassemble(symbols: &Arc<Symbols>, bits: u32, rip: u64, bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(not mapped)".into();
    }
    let mut formatter = IntelFormatter::with_options(Some(Box::new(Resolver(symbols.clone()))), None);
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_space_after_operand_separator(true);
    let instruction = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    text
}

/// Bits of the code that a CPU executes.
pub fn code_bits(cpu: &CpuState) -> u32 {
    match (cpu.efer & 1 << 10 != 0, cpu.segments[1].access >> 13 & 1, cpu.segments[1].access >> 14 & 1) {
        (true, 1, _) => 64,
        (_, _, 1) => 32,
        _ => 16,
    }
}

/// A trace under way.
pub struct Trace {
    from: u64,
    to: u64,
    out: Box<dyn Write + Send>,
    symbols: Arc<Symbols>,
    before: Option<(CpuState, String)>,
}

impl Trace {
    /// A trace of the positions from `from` to `to`, both of them, into a file or to standard output.
    pub fn new(
        from: u64,
        to: Option<u64>,
        file: Option<&Path>,
        symbols: Arc<Symbols>,
    ) -> anyhow::Result<Self> {
        let to = to.unwrap_or(u64::MAX);
        anyhow::ensure!(from <= to, "--trace-from {from} is after --trace-to {to}");
        let out: Box<dyn Write + Send> = match file {
            None => Box::new(std::io::stdout()),
            Some(path) => {
                let file = host::files::create_new(path);
                Box::new(BufWriter::new(file.with_context(|| format!("cannot write {}", path.display()))?))
            }
        };
        Ok(Self { from, to, out, symbols, before: None })
    }

    /// Whether the instruction at `at` is traced, and how far the guest may run before the next one that is.
    pub fn stretch(&self, at: Position, until: Option<Position>) -> (bool, Option<Position>) {
        if at.count < self.from {
            let start = until.map_or(self.from, |until| until.count.min(self.from));
            return (false, Some(Position::at(start)));
        }
        (at.count <= self.to, until)
    }

    /// The next instruction is going to be executed.
    pub fn before(&mut self, target: &mut Target) -> Result<(), EngineError> {
        let at = target.engine.position().count;
        let mut bytes = [0; MAX_INSTRUCTION];
        let rip = target.cpu()?.rip;
        let base = target.cpu()?.segments[1].base;
        let read = target.read(rip.wrapping_add(base), &mut bytes)?;
        let cpu = target.cpu()?.clone();
        target.release()?;
        let text = disassemble(&self.symbols, code_bits(&cpu), rip, &bytes[..read]);
        let name = self.symbols.describe(rip);
        let head = format!("{at:>12}  {rip:016x}  {name:<SYMBOL_COLUMNS$}  {text:<INSTRUCTION_COLUMNS$}");
        self.before = Some((cpu, head));
        Ok(())
    }

    /// It was executed: writes its line.
    pub fn after(&mut self, target: &mut Target) -> Result<(), EngineError> {
        let Some((before, head)) = self.before.take() else { return Ok(()) };
        let after = target.engine.save()?;
        let line = format!("{head}  {}", changes(&before, &after).join(" "));
        let last = target.engine.position().count > self.to;
        let written = writeln!(self.out, "{}", line.trim_end());
        let written = if last { written.and_then(|()| self.out.flush()) } else { written };
        written.map_err(|error| EngineError::Failed(format!("cannot write the trace: {error}")))
    }
}

/// What an instruction changed, RIP left out: `rax=1 zmm…`.
fn changes(before: &CpuState, after: &CpuState) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = |name: &str, a: u64, b: u64| {
        if a != b {
            out.push(format!("{name}={b:x}"));
        }
    };
    for (index, name) in GPR_NAMES.iter().enumerate() {
        word(name, before.gpr[index], after.gpr[index]);
    }
    word("rflags", before.rflags, after.rflags);
    for (index, name) in ["cr0", "cr2", "cr3", "cr4", "cr8"].iter().enumerate() {
        word(name, before.cr[index], after.cr[index]);
    }
    word("efer", before.efer, after.efer);
    for (index, name) in SEGMENT_NAMES.iter().enumerate() {
        let (a, b) = (before.segments[index], after.segments[index]);
        word(name, u64::from(a.selector), u64::from(b.selector));
        word(&format!("{name}.base"), a.base, b.base);
    }
    let register = |area: &[u8], at: usize, len: usize| area.get(at..at + len).map(<[u8]>::to_vec);
    for index in 0..8 {
        let (a, b) =
            (register(&before.xsave, 32 + 16 * index, 10), register(&after.xsave, 32 + 16 * index, 10));
        if let (Some(b), true) = (&b, a != b) {
            out.push(format!("st{index}={}", hexadecimal(b)));
        }
    }
    for index in 0..16 {
        let (a, b) =
            (register(&before.xsave, 160 + 16 * index, 16), register(&after.xsave, 160 + 16 * index, 16));
        if let (Some(b), true) = (&b, a != b) {
            out.push(format!("xmm{index}={}", hexadecimal(b)));
        }
    }
    out
}

/// Bytes as one number, the most significant first.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
