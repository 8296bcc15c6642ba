//! What the software CPU shall reach, as ratios: this host's speed is in both sides of each.

use super::report::{Boot, Means, Row};
use crate::cli::bench::aims::{Aim, Bound};

/// QEMU that records to `soft`, on each kernel.
const RECORD: f64 = 2.0;
/// The same where the kernel's work is system calls: QEMU translates those as well as we do.
const RECORD_OF_CALLS: f64 = 1.5;
const SYSTEM_CALLS: &str = "lseek";
/// The same, geometric mean of the nine; and of QEMU that does not record.
const RECORD_MEAN: f64 = 4.0;
const TCG_MEAN: f64 = 3.3;
/// Speed of `soft` in the host's own.
const NATIVE: [(&str, f64); 6] = [
    ("integer", 0.5),
    ("random-reads", 0.5),
    ("scalar-double", 0.5),
    ("sse2-double", 0.5),
    ("sha256", 0.4),
    ("calls", 0.3),
];
/// The boot of busybox to user space by the clock, in QEMU's time.
const BOOT: f64 = 0.5;
const BOOTED: &str = "busybox";

/// The aims of what was asked for: those about QEMU if `qemu`, those about everything if it was the `whole`.
pub fn aims(kernels: &[Row], means: &Means, boots: &[Boot], whole: bool, qemu: bool) -> Vec<Aim> {
    let mut aims = Vec::new();
    if qemu {
        for row in kernels {
            let least = if row.name == SYSTEM_CALLS { RECORD_OF_CALLS } else { RECORD };
            let measure = format!("{}: QEMU record / soft", row.name);
            aims.push(Aim::new(measure, row.record_over_soft, Bound::AtLeast(least)));
        }
    }
    if qemu && whole {
        let mean = [("record", means.record_over_soft, RECORD_MEAN), ("TCG", means.tcg_over_soft, TCG_MEAN)];
        for (name, ratio, least) in mean {
            let measure = format!("geometric mean: QEMU {name} / soft");
            aims.push(Aim::new(measure, ratio, Bound::AtLeast(least)));
        }
    }
    for (name, least) in NATIVE {
        if let Some(row) = kernels.iter().find(|row| row.name == name) {
            let measure = format!("{name}: native / soft");
            aims.push(Aim::new(measure, row.native_over_soft, Bound::AtLeast(least)));
        }
    }
    if qemu && whole {
        let boot = boots.iter().find(|boot| boot.guest == BOOTED);
        let measure = format!("boot of {BOOTED}, by the clock: soft / QEMU TCG");
        aims.push(Aim::new(measure, boot.and_then(|boot| boot.soft_over_tcg), Bound::AtMost(BOOT)));
    }
    aims
}
