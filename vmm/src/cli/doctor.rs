//! `lockstep doctor`: what this host's KVM can do, what it costs, and which engines and clocks that leads to.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::boot;
use crate::engine::kvm::{CPU_MODEL, KvmEngine, host_cpu};
use crate::engine::{Engine, EngineKind, VmEntry, VmExit};
use crate::io::clock::HostClock;
use crate::memory::Ram;

/// Options of `lockstep doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lockstep doctor\n  lockstep doctor --json | jq .verdict\n\n\
    The software engine runs on any x86-64 host, so a replicated pair always can.")]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The host's CPU, as the handshake compares it.
    pub cpu: String,
    /// Kind of KVM: kvm_intel, kvm_amd, kvm_pvm, …; what sysfs shows.
    pub kvm_module: Option<String>,
    /// Why /dev/kvm cannot be used, if so.
    pub kvm_error: Option<String>,
    /// KVM API version.
    pub kvm_api: Option<i32>,
    /// What the KVM engine needs or profits from, and whether it is there.
    pub capabilities: Vec<(String, bool)>,
    /// Whether a retired-conditional-branches counter can be had for the guest.
    pub branch_counter: bool,
    /// Microseconds of a PIO exit from CPL0, entry included, median.
    pub pio_exit_us: Option<f64>,
    /// Microseconds of a HLT exit, median.
    pub hlt_exit_us: Option<f64>,
    /// Nanoseconds of an ordinary instruction at CPL0; far above 1 where KVM emulates CPL0.
    pub cpl0_instruction_ns: Option<f64>,
    /// Why the software engine interprets here and does not translate, if so.
    pub untranslatable: Option<String>,
    /// Instruction forms that it does not translate here, since their results would differ.
    pub refused_forms: Vec<String>,
    /// Whether what it translates leaves here what it leaves on other hosts.
    pub forms_as_elsewhere: Option<bool>,
    /// Whether TAP devices can be made (else `lockstep lan`).
    pub tap: bool,
    /// Whether the KVM engine works here.
    pub kvm_usable: bool,
    /// Engine and clock that `--engine auto` chooses for minikv.
    pub verdict: String,
    /// The same for every other guest.
    pub verdict_others: String,
    /// Why.
    pub reasons: Vec<String>,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let report = examine();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(0)
}

/// Looks at everything. Takes well under a second.
pub fn examine() -> Report {
    let mut report = examine_kvm();
    report.verdict = if report.kvm_usable { EngineKind::Kvm } else { EngineKind::Soft }.to_string();
    report
        .reasons
        .push("the software engine counts every instruction, so any guest is exact on it, Linux too".into());
    if let Some(why) = &report.untranslatable {
        report.reasons.push(format!(
            "the software engine cannot translate here, and interprets: {why}; servers take about forty \
             times the host's time, programs 12 to 76 times"
        ));
    }
    if !report.refused_forms.is_empty() {
        let forms = report.refused_forms.join(", ");
        report.reasons.push(format!("the software engine interprets, since translated they differ: {forms}"));
    }
    if report.forms_as_elsewhere == Some(false) {
        report.reasons.push(
            "instructions leave here what they leave on no other host: pair this one with its like only"
                .into(),
        );
    }
    if !report.tap {
        report.reasons.push("no TAP devices for this user: use `lockstep lan` as the network".into());
    }
    report
}

fn examine_kvm() -> Report {
    let test = softcpu::self_test();
    let mut report = Report {
        cpu: host_cpu(),
        kvm_module: module(),
        kvm_error: None,
        kvm_api: None,
        capabilities: Vec::new(),
        branch_counter: branch_counter(),
        pio_exit_us: None,
        hlt_exit_us: None,
        cpl0_instruction_ns: None,
        untranslatable: softcpu::untranslatable(),
        forms_as_elsewhere: test.as_ref().map(|test| test.digest == test.pinned),
        refused_forms: test.map_or_else(Vec::new, |test| test.refused),
        tap: std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok(),
        kvm_usable: false,
        verdict: String::new(),
        verdict_others: EngineKind::Soft.to_string(),
        reasons: Vec::new(),
    };
    match kvm_ioctls::Kvm::new() {
        Err(error) => {
            report.kvm_error = Some(error.to_string());
            report.reasons.push(advice(error.errno()));
            return report;
        }
        Ok(kvm) => {
            report.kvm_api = Some(kvm.get_api_version());
            use kvm_ioctls::Cap;
            report.capabilities = [
                ("register access by SYNC_REGS (needed)", Cap::SyncRegs),
                ("immediate exit (needed)", Cap::ImmediateExit),
                ("vCPU events (needed)", Cap::VcpuEvents),
                ("XSAVE state (needed)", Cap::Xsave),
                ("MSR exits to user space", Cap::X86UserSpaceMsr),
                ("MSR filter", Cap::X86MsrFilter),
                ("debug registers", Cap::Debugregs),
            ]
            .map(|(name, cap)| (name.to_string(), kvm.check_extension(cap)))
            .to_vec();
        }
    }
    if let Err(error) = measure(&mut report) {
        report.kvm_error = Some(error.to_string());
        report.reasons.push("KVM opens, but a small guest does not run on it".into());
        return report;
    }
    conclude(&mut report);
    report
}

/// Nanoseconds of an instruction at CPL0 above which KVM does not run it, but emulates it.
const EMULATED_NS: f64 = 50.0;

/// Whether this host's KVM works and emulates guest code at CPL0, which stock Linux does not survive.
pub fn emulates_cpl0() -> bool {
    let report = examine_kvm();
    report.kvm_usable && report.cpl0_instruction_ns.is_some_and(|ns| ns > EMULATED_NS)
}

fn module() -> Option<String> {
    ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .find(|name| Path::new("/sys/module").join(name).exists())
        .map(str::to_string)
}

fn advice(errno: i32) -> String {
    match errno {
        libc::ENOENT => "there is no /dev/kvm: enable virtualisation in the firmware, or nested \
                         virtualisation in the cloud machine's settings, and load kvm_intel or kvm_amd"
            .into(),
        libc::EACCES | libc::EPERM => {
            "this user may not open /dev/kvm: add it to the group kvm (`sudo usermod -aG kvm $USER`) and log \
             in again"
                .into()
        }
        _ => "see the kernel's log for why /dev/kvm cannot be opened".into(),
    }
}

/// Tries to open a counter of retired conditional branches that counts the guest only.
#[allow(clippy::cast_possible_truncation, reason = "the size of a structure; a descriptor")]
fn branch_counter() -> bool {
    #[repr(C)]
    #[derive(Default)]
    struct PerfEventAttr {
        kind: u32,
        size: u32,
        config: u64,
        period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        rest: [u64; 9],
    }
    const RAW: u32 = 4;
    const PINNED: u64 = 1 << 2;
    const EXCLUDE_HOST: u64 = 1 << 19;
    [0x51_00d1u64, 0x51_01c4, 0x51_11c4].into_iter().any(|config| {
        let size = size_of::<PerfEventAttr>() as u32;
        let attr =
            PerfEventAttr { kind: RAW, size, config, flags: PINNED | EXCLUDE_HOST, ..Default::default() };
        // SAFETY: `attr` is a perf_event_attr of the size it names; the call reads nothing else.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &attr, 0, -1, -1, 0) };
        if fd >= 0 {
            // SAFETY: the descriptor was just opened and is used nowhere else.
            unsafe { libc::close(fd as i32) };
        }
        fd >= 0
    })
}

/// Guest code at 1 MiB: `loops` times nothing, then OUT, then HLT, for ever.
fn measure(report: &mut Report) -> anyhow::Result<()> {
    const ENTRY: u64 = 0x10_0000;
    const ROUNDS: usize = 400;
    const SPIN: u32 = 2_000;
    // again: mov ecx, ebx; 1: dec ecx; jnz 1b; out 0x80, al; hlt; jmp again
    let code = [0x89, 0xd9, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x80, 0xf4, 0xeb, 0xf5];
    let ram = Ram::new(4 << 20)?;
    let mut first = boot::load_flat64(ram.map(), ram.bytes(), &code, ENTRY, "")?;
    let clock = HostClock;
    let mut medians = [0u64; 3];
    for (round, spin) in [(0, 1u32), (1, SPIN)] {
        first.gpr[3] = u64::from(spin);
        let mut engine = KvmEngine::new(&ram)?;
        engine.restore(&first, logchannel::Position::at(0))?;
        let (mut pio, mut hlt) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = clock.now_ns();
            anyhow::ensure!(
                matches!(engine.run(VmEntry::Resume, None)?, VmExit::PioWrite { .. }),
                "no PIO exit"
            );
            let middle = clock.now_ns();
            anyhow::ensure!(engine.run(VmEntry::Resume, None)? == VmExit::Hlt, "no HLT exit");
            pio.push(middle - start);
            hlt.push(clock.now_ns() - middle);
        }
        pio.sort_unstable();
        hlt.sort_unstable();
        medians[round] = pio[ROUNDS / 2];
        medians[2] = hlt[ROUNDS / 2];
    }
    report.pio_exit_us = Some(medians[0] as f64 / 1e3);
    report.hlt_exit_us = Some(medians[2] as f64 / 1e3);
    report.cpl0_instruction_ns =
        Some(medians[1].saturating_sub(medians[0]) as f64 / f64::from(2 * (SPIN - 1)));
    Ok(())
}

fn conclude(report: &mut Report) {
    let missing: Vec<_> =
        report.capabilities.iter().filter(|(name, there)| name.ends_with("(needed)") && !there).collect();
    if !missing.is_empty() {
        report.reasons.push(format!("this KVM lacks {}", missing[0].0));
        return;
    }
    report.kvm_usable = true;
    report.reasons.push(match report.branch_counter {
        true => "a branch counter exists here, but this version has the exits clock only".into(),
        false => {
            "no performance counter reaches this host, so positions are counted in deterministic exits: \
                  exact for guests that exit often, as minikv does"
                .into()
        }
    });
    if report.cpl0_instruction_ns.is_some_and(|ns| ns > EMULATED_NS) {
        report.reasons.push(
            "KVM emulates guest code at CPL0 here (about 1000 times slower than at CPL3): stock Linux does \
             not run on it; guests made for it, as minikv, do"
                .into(),
        );
    }
}

fn forms(report: &Report) -> String {
    match (report.forms_as_elsewhere, report.refused_forms.len()) {
        (None, _) => "not tested".into(),
        (Some(false), _) => "results differ from other hosts'".into(),
        (Some(true), 0) => "results as on other hosts".into(),
        (Some(true), refused) => format!("{refused} interpreted, the rest as on other hosts"),
    }
}

fn print(report: &Report) {
    let yes = |there: bool| if there { "yes" } else { "no" };
    let microseconds = |value: Option<f64>| value.map_or("-".into(), |us| format!("{us:.1} µs"));
    println!("host CPU            {}", report.cpu);
    println!("CPU model           {CPU_MODEL}");
    println!("KVM                 {}", report.kvm_module.as_deref().unwrap_or("built in, or not there"));
    match (&report.kvm_api, &report.kvm_error) {
        (Some(version), None) => println!("/dev/kvm            usable, API version {version}"),
        (_, error) => println!("/dev/kvm            not usable: {}", error.as_deref().unwrap_or("unknown")),
    }
    for (name, there) in &report.capabilities {
        println!("  {:<42}{}", name, yes(*there));
    }
    println!("PIO exit            {}", microseconds(report.pio_exit_us));
    println!("HLT exit            {}", microseconds(report.hlt_exit_us));
    if let Some(ns) = report.cpl0_instruction_ns {
        println!("CPL0 instruction    {ns:.1} ns");
    }
    println!("branch counter      {}", yes(report.branch_counter));
    println!("soft translates     {}", yes(report.untranslatable.is_none()));
    println!("soft forms          {}", forms(report));
    println!("TAP networking      {}", yes(report.tap));
    println!(
        "--engine auto       {} for minikv; {} for every other guest",
        report.verdict, report.verdict_others
    );
    for reason in &report.reasons {
        println!("  - {reason}");
    }
}
