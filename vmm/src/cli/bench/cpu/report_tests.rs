//! The report's arithmetic and its aims, from runs made up here.

use super::*;
use crate::cli::bench::aims::Bound;

fn kernel(name: &str, seconds: f64) -> Kernel {
    Kernel { name: name.into(), seconds, wall_s: seconds, guest_ns: 1_000_000_000, checksum: "1".into() }
}

/// Each system's seconds per round, the same for every kernel but those in `other`.
fn run(seconds: &[(System, [f64; 2])], names: &[&str], whole: bool) -> Run {
    let mut measured: BTreeMap<System, Measured> = BTreeMap::new();
    for (system, seconds) in seconds {
        let measured = measured.entry(*system).or_default();
        for name in names {
            let runs = seconds.iter().map(|seconds| kernel(name, *seconds)).collect();
            measured.kernels.insert((*name).to_string(), runs);
        }
        if *system != System::Native {
            let boots: Vec<(f64, f64)> = seconds.iter().map(|seconds| (*seconds, seconds / 2.0)).collect();
            measured.boots = [boots.clone(), boots];
        }
    }
    let qemu = measured.contains_key(&System::Tcg).then(|| "QEMU".to_string());
    Run { host: Host::new(), qemu, rounds: 2, whole, instructions: None, measured }
}

const ALL: [&str; 9] = [
    "integer",
    "calls",
    "random-reads",
    "dependent-reads",
    "sequential-sum",
    "sse2-double",
    "scalar-double",
    "sha256",
    "lseek",
];

#[test]
fn ratios_are_taken_round_by_round() {
    // The host halves its speed in the second round; what the systems are to each other stays.
    let seconds = [
        (System::Native, [1.0, 2.0]),
        (System::Soft, [2.0, 4.0]),
        (System::Tcg, [8.0, 16.0]),
        (System::Record, [10.0, 20.0]),
    ];
    let report = CpuReport::new(&run(&seconds, &ALL, true), true);
    assert_eq!(report.kernels.len(), 9);
    assert_eq!(report.kernels[0].name, "integer");
    for row in &report.kernels {
        let native = row.native_over_soft.expect("measured");
        assert_eq!((native.median, native.low, native.high), (0.5, 0.5, 0.5));
        assert_eq!(row.record_over_soft.expect("measured").median, 5.0);
    }
    let mean = report.means.tcg_over_soft.expect("measured");
    assert!((mean.median - 4.0).abs() < 1e-9 && mean.pairs == 2, "{mean:?}");
    assert_eq!(report.boots[1].soft_over_tcg_cpu.expect("measured").median, 0.25);
    // All is met; the boot takes a quarter of the time of QEMU, and may take half.
    assert!(report.aims().iter().all(|aim| aim.met), "{}", table(report.aims()));
    // Nine kernels and two means against QEMU, six kernels against the host, a boot.
    assert_eq!(report.aims().len(), 18);
}

#[test]
fn each_aim_can_be_missed() {
    let seconds = [
        (System::Native, [0.1, 0.1]),
        (System::Soft, [1.0, 1.0]),
        (System::Tcg, [1.4, 1.4]),
        (System::Record, [1.4, 1.4]),
    ];
    let report = CpuReport::new(&run(&seconds, &ALL, true), true);
    assert!(report.aims().iter().all(|aim| !aim.met), "{}", table(report.aims()));
    let lseek = report.aims().iter().find(|aim| aim.measure.starts_with("lseek")).expect("an aim");
    assert_eq!(lseek.aim, Bound::AtLeast(1.5));
}

#[test]
fn aims_are_those_of_what_was_asked_for() {
    let seconds = [(System::Native, [1.0, 1.0]), (System::Soft, [1.0, 1.0])];
    // QEMU was not asked for.
    let report = CpuReport::new(&run(&seconds, &ALL, true), false);
    assert_eq!(report.aims().len(), 6);
    // It was, and is not here: its aims are not met.
    let report = CpuReport::new(&run(&seconds, &ALL, true), true);
    assert_eq!(report.aims().iter().filter(|aim| !aim.met).count(), 12);
    // One kernel alone has no means and no boots.
    let report = CpuReport::new(&run(&seconds, &["sha256"], false), true);
    let measures: Vec<&str> = report.aims().iter().map(|aim| aim.measure.as_str()).collect();
    assert_eq!(measures, ["sha256: QEMU record / soft", "sha256: native / soft"]);
}
