//! The ACPI tables (ACPI 6.5, chapters 5 and 19): what an operating system learns the machine's devices from.
//!
//! ```text
//!  RSDP ─▶ XSDT ─▶ FADT ─▶ FACS
//!                    └───▶ DSDT: \_S5, virtio-mmio devices, COM1, RTC, PIT, PICs
//! ```
//!
//! Full ACPI, not the hardware-reduced kind, in which Linux switches PIC and PIT off. No MADT: there is no
//! APIC, and Linux then says "Using PIC for interrupt routing". The tables are the same for every guest of
//! this machine model.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use devices::layout::{
    CMOS_PORT, ELCR_PORT, PIC1_PORT, PIC2_PORT, PIT_IRQ, PIT_PORT, PM_TIMER_PORT, PM1A_CONTROL_PORT,
    PM1A_EVENT_PORT, RESET_CPU, RESET_PORT, RTC_IRQ, SCI_IRQ, UART_IRQ, UART_PORT, VIRTIO_BLK_BASE,
    VIRTIO_BLK_IRQ, VIRTIO_CONSOLE_BASE, VIRTIO_CONSOLE_IRQ, VIRTIO_MMIO_SIZE, VIRTIO_NET_BASE,
    VIRTIO_NET_IRQ, VIRTIO_RNG_BASE, VIRTIO_RNG_IRQ,
};

/// Where the RSDP is, and behind it all other tables: in the BIOS area, where it is looked for too.
pub(super) const RSDP: u64 = 0xe_0000;

const OEM: [u8; 6] = *b"LOCKST";
const OEM_TABLE: [u8; 8] = *b"LOCKSTEP";
const OEM_REVISION: u32 = 1;
/// Revision 2 of a DSDT: its integers have 64 bits.
const DSDT_REVISION: u8 = 2;
const SDT_HEADER_LEN: u32 = 36;
/// IAPC_BOOT_ARCH: there are devices on an ISA bus. No 8042.
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: do not look for a VGA adapter.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
/// IAPC_BOOT_ARCH: no message signalled interrupts.
const BOOT_ARCH_NO_MSI: u16 = 1 << 3;
/// Where the CMOS has the century.
const CMOS_CENTURY: u8 = 0x32;
/// A C-state that takes longer than this does not exist.
const NO_C2: u16 = 0xfff;
const NO_C3: u16 = 0xffff;

/// All tables, as they lie in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Guest physical address of the first byte, which is the RSDP's.
    pub start: u64,
    /// The tables.
    pub bytes: Vec<u8>,
    /// Where the DSDT is in `bytes`: it is the last of them.
    pub dsdt: usize,
}

/// The tables of this machine model.
pub fn tables() -> AcpiTables {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(64)];
    let place = |table: &dyn Aml, bytes: &mut Vec<u8>| {
        // The FACS must be at a multiple of 64, the others may be.
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let at = bytes.len();
        table.to_aml_bytes(bytes);
        at
    };
    let address = |at: usize| RSDP + at as u64;
    let facs = place(&FACS::new(), &mut bytes);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    // XSDT with its one entry, then the FADT, then the DSDT.
    let xsdt_at = bytes.len();
    let fadt_at = (xsdt_at + SDT_HEADER_LEN as usize + 8).next_multiple_of(64);
    let dsdt_at = (fadt_at + acpi_tables::fadt::FADT::len()).next_multiple_of(64);
    xsdt.add_entry(address(fadt_at));
    assert_eq!(place(&xsdt, &mut bytes), xsdt_at, "as computed");
    assert_eq!(place(&fadt(address(facs), address(dsdt_at)), &mut bytes), fadt_at, "as computed");
    assert_eq!(place(&dsdt(), &mut bytes), dsdt_at, "as computed");
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, address(xsdt_at)).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    AcpiTables { start: RSDP, bytes, dsdt: dsdt_at }
}

#[allow(clippy::cast_possible_truncation, reason = "tables lie below 1 MiB")]
fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let io = |port: u16, bits: u8, size: AccessSize| {
        GAS::new(AddressSpace::SystemIo, bits, 0, size, u64::from(port))
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is in fixed hardware (its flag says that it is not); no sleep button, no wake by
        // RTC.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // Both the old and the new fields, as firmware does.
    (fadt.firmware_ctrl, fadt.dsdt) = ((facs as u32).into(), (dsdt as u32).into());
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = io(PM1A_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(PM1A_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CMOS_CENTURY;
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_MSI).into();
    fadt.reset_reg = io(RESET_PORT, 8, AccessSize::ByteAccess);
    // Hard reset: full reset bit and the bit that does it.
    fadt.reset_value = RESET_CPU | 1 << 1;
    fadt.finalize()
}

/// One device of an ISA bus: hardware id, ports and interrupt.
fn legacy(name: &str, id: &str, ports: &[(u16, u8)], irq: Option<u8>) -> Vec<u8> {
    let ports: Vec<IO> = ports.iter().map(|&(port, len)| IO::new(port, port, 1, len)).collect();
    let irq = irq.map(|irq| Interrupt::new(true, true, false, false, u32::from(irq)));
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    resources.extend(irq.iter().map(|irq| irq as &dyn Aml));
    let mut bytes = Vec::new();
    Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

/// A virtio device on the MMIO transport. Its line is a level.
#[allow(clippy::cast_possible_truncation, reason = "the windows lie below 4 GiB")]
fn virtio(name: &str, number: u8, base: u64, irq: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            // DMA is coherent, as on every PC.
            &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base as u32, VIRTIO_MMIO_SIZE as u32),
                    &Interrupt::new(true, false, false, false, u32::from(irq)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}

fn dsdt() -> Sdt {
    let mut system_bus = vec![
        virtio("VNET", 0, VIRTIO_NET_BASE, VIRTIO_NET_IRQ),
        virtio("VBLK", 1, VIRTIO_BLK_BASE, VIRTIO_BLK_IRQ),
        virtio("VRNG", 2, VIRTIO_RNG_BASE, VIRTIO_RNG_IRQ),
        virtio("VCON", 3, VIRTIO_CONSOLE_BASE, VIRTIO_CONSOLE_IRQ),
    ];
    system_bus.extend([
        legacy("COM1", "PNP0501", &[(UART_PORT, 8)], Some(UART_IRQ)),
        legacy("RTC_", "PNP0B00", &[(CMOS_PORT, 2)], Some(RTC_IRQ)),
        legacy("PIT_", "PNP0100", &[(PIT_PORT, 4)], Some(PIT_IRQ)),
        legacy("PIC_", "PNP0000", &[(PIC1_PORT, 2), (PIC2_PORT, 2), (ELCR_PORT, 2)], None),
    ]);
    let mut table = Sdt::new(*b"DSDT", SDT_HEADER_LEN, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut soft_off = Vec::new();
    // The values of SLP_TYP do not matter here: there is no other state to go to.
    Name::new("\\_S5_".into(), &Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut soft_off);
    table.append_slice(&soft_off);
    table.append_slice(&acpi_tables::aml::Scope::raw(Path::new("\\_SB_"), system_bus.concat()));
    table
}
