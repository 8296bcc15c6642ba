//! Debian's kernels of every flavour, with their own modules: from power-on to a shell, and off again.

use crate::PROMPT;
use crate::guest::{Guest, World};

/// Boots an image, types commands that keep the disk and the console busy, and switches off.
fn boots(image: &str, flavour: &str, preemption: &str) {
    let Some(world) = World::new(image) else { return };
    let mut guest = Guest::start(&world, image, &[]);
    guest.expect(PROMPT);
    guest.run("uname -r | sed 's/[0-9.-]*/flavour=/'; uname -v; echo end-$((1 + 1))", "end-2");
    for text in [flavour, preemption] {
        assert!(guest.said(text), "{text:?} is missing:\n{}", guest.transcript());
    }
    // Interrupts of the disk and the console at the same time, and threads that take turns.
    guest.run("dd if=/dev/zero of=/dev/vda bs=64k count=64 & dmesg; wait; echo end-$((1 + 2))", "end-3");
    guest.run("cat /proc/interrupts; echo end-$((2 + 2))", "end-4");
    for text in ["64+0 records out", "XT-PIC      ttyS0", "XT-PIC      virtio", "XT-PIC      acpi"] {
        assert!(guest.said(text), "{text:?} is missing:\n{}", guest.transcript());
    }
    guest.type_in("exit\n");
    guest.ends("the guest switched itself off, status 0");
}

#[test]
fn the_cloud_kernel_boots() {
    boots("busybox", "flavour=cloud-amd64\r\n", " SMP PREEMPT_DYNAMIC ");
}

#[test]
fn the_generic_kernel_boots() {
    boots("busybox-generic", "flavour=amd64\r\n", " SMP PREEMPT_DYNAMIC ");
}

/// Interrupt handlers are threads there, and what RCU and others ask to be run in an interrupt waits for the
/// next tick, as there is no local APIC.
#[test]
fn the_preempt_rt_kernel_boots() {
    boots("busybox-rt", "flavour=rt-amd64\r\n", " SMP PREEMPT_RT ");
}
