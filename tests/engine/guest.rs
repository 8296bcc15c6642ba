//! Guests of a few instructions with everything around them made from outside: page tables that CPL3 may use,
//! GDT, IDT, TSS with an open I/O bitmap. So the code under test is all the code there is.

use iced_x86::code_asm::CodeAssembler;
use lockstep::boot;
use lockstep::engine::state::{CpuState, Segment, TableRegister};
use lockstep::engine::{AnyEngine, Engine, EngineKind, VmEntry, VmExit};
use lockstep::memory::Ram;
use logchannel::Position;

pub const RAM_BYTES: u64 = 8 << 20;
/// Where the guest's code is.
pub const CODE: u64 = 0x10_0000;
/// Where the interrupt handler is.
pub const HANDLER: u64 = 0x11_0000;
/// Data of the guest.
pub const DATA: u64 = 0x20_0000;
/// Where RSP starts.
pub const STACK: u64 = 0x30_0000;
/// Vector of the external interrupt that `HANDLER` serves.
pub const VECTOR: u8 = 0x31;
/// MMIO without a device.
pub const MMIO: u64 = 0xd000_0000;
const TABLES: u64 = 0x40_0000;
const GDT: u64 = 0x41_0000;
const IDT: u64 = 0x41_1000;
const TSS: u64 = 0x42_0000;
const KERNEL_STACK: u64 = 0x45_0000;

pub const CPL0: u8 = 0;
pub const CPL3: u8 = 3;

/// Assembles `program` for `address`.
pub fn assemble(
    address: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).expect("64-bit assembler");
    program(&mut asm).expect("valid program");
    asm.assemble(address).expect("assembles")
}

/// The engines that this machine has; says loudly which it has not.
pub fn engines(test: &str) -> Vec<EngineKind> {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !kvm {
        eprintln!("SKIPPED {test} on kvm: no usable /dev/kvm on this machine");
    }
    let all = [EngineKind::Soft, EngineKind::Kvm];
    all.into_iter().filter(|kind| kvm || *kind != EngineKind::Kvm).collect()
}

/// An engine and its memory, stopped before the first instruction of `code` at privilege level `cpl`.
pub struct Guest {
    pub engine: AnyEngine,
    pub ram: Ram,
    pub first: CpuState,
}

impl Guest {
    pub fn new(kind: EngineKind, cpl: u8, code: &[u8], handler: &[u8]) -> Self {
        let mut ram = Ram::new(RAM_BYTES).expect("guest memory");
        let mut first = boot::load_flat64(ram.map(), RAM_BYTES, code, CODE, "").expect("boot tables");
        ram.write(HANDLER as usize, handler);
        tables(&mut ram);
        first.cr[2] = TABLES;
        first.cr[3] |= 0x600;
        first.gdtr = TableRegister { base: GDT, limit: 0x6f };
        first.idtr = TableRegister { base: IDT, limit: 0xfff };
        first.segments[7] = Segment { selector: 0x40, base: TSS, limit: 0x2068 + 0x2000, access: 0x8b };
        first.rflags = 0x202;
        first.gpr[4] = STACK;
        if cpl == CPL3 {
            let code = Segment { selector: 0x33, base: 0, limit: u32::MAX, access: 0xa0fb };
            let data = Segment { selector: 0x2b, base: 0, limit: u32::MAX, access: 0xc0f3 };
            first.segments[..6].copy_from_slice(&[data, code, data, data, data, data]);
        }
        let mut engine = kind.create(&ram).expect("an engine");
        engine.restore(&first, Position::at(0)).expect("first state");
        Self { engine, ram, first }
    }

    pub fn run(&mut self, entry: VmEntry) -> VmExit {
        self.engine.run(entry, None).expect("runs")
    }

    pub fn resume(&mut self) -> VmExit {
        self.run(VmEntry::Resume)
    }

    /// State after the last exit is complete.
    pub fn state(&mut self) -> CpuState {
        self.engine.complete(VmEntry::Resume).expect("completes");
        self.engine.save().expect("saves")
    }
}

fn tables(ram: &mut Ram) {
    let mut put = |at: u64, value: u64| ram.write(at as usize, &value.to_le_bytes());
    // Identity map of the first 4 GiB with user access; 2 MiB pages. Accessed and dirty are set, so that the
    // CPU writes none of it.
    put(TABLES, (TABLES + 0x1000) | 0x67);
    for gib in 0..4u64 {
        let directory = TABLES + 0x2000 + gib * 0x1000;
        put(TABLES + 0x1000 + gib * 8, directory | 0x67);
        for slot in 0..512 {
            put(directory + slot * 8, gib << 30 | slot << 21 | 0xe7);
        }
    }
    // 0x10 kernel code, 0x18 kernel data, 0x28 user data, 0x30 user code, 0x40 TSS.
    for (selector, descriptor) in [
        (0x10, 0x00af_9b00_0000_ffff),
        (0x18, 0x00cf_9300_0000_ffff),
        (0x28, 0x00cf_f300_0000_ffff),
        (0x30, 0x00af_fb00_0000_ffff),
        (0x40, 0x0000_8b00_0000_0000 | (TSS & 0xff_ffff) << 16 | 0x4068),
    ] {
        put(GDT + selector, descriptor);
    }
    for vector in 0..256u64 {
        let gate = (HANDLER & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
        if vector == u64::from(VECTOR) {
            put(IDT + vector * 16, gate);
        }
    }
    // TSS: RSP0 at 4, I/O map base at 102; the map itself is zero: every port is open.
    ram.write(TSS as usize + 4, &KERNEL_STACK.to_le_bytes());
    ram.write(TSS as usize + 102, &0x68u16.to_le_bytes());
    ram.write(TSS as usize + 0x68 + 0x2000, &[0xff]);
}
