//! `monitor` commands: what GDB has no packet for.

use std::fmt::Write as _;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::debug::symbols::Symbols;
use crate::debug::target::Target;
use crate::engine::{Engine, EngineError};

const HELP: &str = "\
position            where the guest is, as its engine counts
where               RIP as symbol and offset
symbol ADDRESS      an address as symbol and offset
address NAME        the address of a symbol
symbols             take the symbols that a running Linux kernel has in its memory
registers           general and control registers
translate ADDRESS   linear to guest physical
physical ADDRESS [BYTES]   guest physical memory
";
const DEFAULT_BYTES: u64 = 64;
const MAX_BYTES: u64 = 4096;

/// Answers one command; a misspelt one with what there is.
pub fn answer(target: &mut Target, command: &str) -> Result<String, EngineError> {
    let words: Vec<&str> = command.split_whitespace().collect();
    Ok(match words[..] {
        ["position"] => {
            let (at, engine) = (target.engine.position(), target.engine.name());
            format!("position {} ({}, engine {engine})\n", at.count, target.engine.clock().name())
        }
        ["where"] => {
            let rip = target.cpu()?.rip;
            format!("{rip:#x} {}\n", target.setup.symbols.describe(rip))
        }
        ["symbol", address] => match number(address) {
            Some(address) => format!("{address:#x} {}\n", target.setup.symbols.describe(address)),
            None => format!("{address:?} is no address\n"),
        },
        ["address", name] => match target.setup.symbols.address(name) {
            Some(address) => format!("{address:#x}\n"),
            None => format!("no symbol {name}\n"),
        },
        ["symbols"] => of_memory(target),
        ["registers"] => target.cpu()?.describe().join("\n") + "\n",
        ["translate", address] => match number(address) {
            Some(address) => match target.translate(address)? {
                Some(physical) => format!("{physical:#x}\n"),
                None => format!("{address:#x} is not mapped\n"),
            },
            None => format!("{address:?} is no address\n"),
        },
        ["physical", address] => physical(target, number(address), Some(DEFAULT_BYTES)),
        ["physical", address, bytes] => physical(target, number(address), number(bytes)),
        _ => HELP.to_string(),
    })
}

fn of_memory(target: &mut Target) -> String {
    let bytes = target.memory.iter().map(|region| region.len()).sum::<u64>();
    let mut content = vec![0; bytes as usize];
    if target.memory.read_slice(&mut content, GuestAddress(0)).is_err() {
        return "guest memory cannot be read\n".into();
    }
    match Symbols::of_memory(&content) {
        Ok(symbols) => {
            let text = format!("{} symbols\n", symbols.len());
            target.setup.symbols = Arc::new(symbols);
            text
        }
        Err(_) => "no Linux kernel's symbols are in guest memory\n".into(),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn physical(target: &Target, address: Option<u64>, bytes: Option<u64>) -> String {
    let (Some(address), Some(bytes @ 1..=MAX_BYTES)) = (address, bytes) else {
        return format!("physical ADDRESS [BYTES], up to {MAX_BYTES}\n");
    };
    let mut content = vec![0; bytes as usize];
    if target.memory.read_slice(&mut content, GuestAddress(address)).is_err() {
        return format!("{address:#x} to {:#x} is not all RAM\n", address.saturating_add(bytes));
    }
    let mut text = String::new();
    for (index, line) in content.chunks(16).enumerate() {
        let _ = write!(text, "{:012x} ", address + 16 * index as u64);
        for byte in line {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}
