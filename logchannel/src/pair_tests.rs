//! What two halves must agree on.

use super::*;

fn change(config: &PairConfig, change: impl FnOnce(&mut PairConfig)) -> Option<Mismatch> {
    let mut other = config.clone();
    change(&mut other);
    config.mismatch(&other)
}

#[test]
fn every_field_that_matters_is_compared() {
    let config = PairConfig { memory_bytes: 64 << 20, ..PairConfig::default() };
    type Change = fn(&mut PairConfig);
    let changes: [(Option<Field>, Change); 14] = [
        (Some(Field::Vm), |c| c.vm.push('x')),
        (Some(Field::Engine), |c| c.engine.push('x')),
        (Some(Field::Clock), |c| c.clock.push('x')),
        (Some(Field::CpuModel), |c| c.cpu_model.push('x')),
        (Some(Field::HostCpu), |c| c.host_cpu.push('x')),
        (Some(Field::MachineModel), |c| c.machine_model.push('x')),
        (Some(Field::Memory), |c| c.memory_bytes += 1),
        (Some(Field::Image), |c| c.image_digest[31] = 1),
        (Some(Field::CommandLine), |c| c.command_line.push('x')),
        (Some(Field::Disk), |c| c.disk.push('x')),
        (Some(Field::DiskSize), |c| c.disk_bytes += 1),
        (Some(Field::Mac), |c| c.mac[5] = 1),
        (Some(Field::OnReset), |c| c.on_reset = OnReset::Restart { limit: 5 }),
        (None, |c| c.wall_base_ns = 1),
    ];
    for (field, to) in changes {
        assert_eq!(change(&config, to).map(|mismatch| mismatch.field), field);
    }
}

#[test]
fn a_mismatch_names_both_values_and_says_what_to_do() {
    let config = PairConfig { memory_bytes: 64 << 20, vm: "shop".into(), ..PairConfig::default() };
    let memory = change(&config, |c| c.memory_bytes = 128 << 20).unwrap();
    let text = "memory size: 64 MiB here, 128 MiB there: start both with the same memory size";
    assert_eq!(memory.to_string(), text);
    let text = "memory size: 128 MiB here, 64 MiB there: start both with the same memory size";
    assert_eq!(memory.flipped().to_string(), text);
    let vm = change(&config, |c| c.vm = "\x1b[2J".into()).unwrap();
    let text = "virtual machine: \"shop\" here, \"\\u{1b}[2J\" there: check which backup this primary was \
                pointed at";
    assert_eq!(vm.to_string(), text);
    let mac = change(&config, |c| c.mac = [0x52, 0x4c, 0x4b, 0, 0, 2]).unwrap();
    assert_eq!(mac.theirs, "52:4c:4b:00:00:02");
}

#[test]
fn sizes_are_exact() {
    let shown = [0, 1, 1023, 1024, 1 << 20, (1 << 20) + 512, 3 << 30, u64::MAX].map(size);
    let expected = [
        "0 bytes",
        "1 bytes",
        "1023 bytes",
        "1 KiB",
        "1 MiB",
        "1049088 bytes",
        "3 GiB",
        "18446744073709551615 bytes",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn long_values_are_told_by_where_they_differ() {
    let with = |command_line: String| PairConfig { command_line, ..PairConfig::default() };
    let long = "é".repeat(30_000);
    let mismatch = with(long.clone() + "here").mismatch(&with(long + "there")).unwrap();
    assert!(mismatch.ours.starts_with('…') && mismatch.ours.ends_with("éhere\""), "{}", mismatch.ours);
    assert!(mismatch.theirs.starts_with('…') && mismatch.theirs.ends_with("éthere\""), "{}", mismatch.theirs);
    let mismatch = with("a".repeat(500)).mismatch(&with("b".into())).unwrap();
    assert_eq!((mismatch.ours.chars().count(), mismatch.theirs.as_str()), (401, "\"b\""));
    assert!(mismatch.ours.starts_with("\"aaa") && mismatch.ours.ends_with("aaa…"));
}

#[test]
fn a_policy_is_within_bounds_or_says_which_option_is_not() {
    let usual = Policy::default();
    usual.check().unwrap();
    let refused = |policy: Policy| policy.check().unwrap_err().to_string();
    for huge in [Policy::MAX_MS + 1, u64::MAX] {
        assert!(refused(Policy { timeout_ms: huge, ..usual }).starts_with("--timeout-ms"));
        assert!(
            refused(Policy { heartbeat_ms: huge, timeout_ms: huge, ..usual }).starts_with("--heartbeat-ms")
        );
        assert!(refused(Policy { lag_target_ms: huge, ..usual }).starts_with("--lag-target-ms"));
    }
    assert!(refused(Policy { digest_ms: u64::MAX, ..usual }).starts_with("--digest-ms"));
    assert!(refused(Policy { heartbeat_ms: 0, ..usual }).starts_with("--heartbeat-ms 0"));
    assert!(refused(Policy { timeout_ms: 0, ..usual }).starts_with("--timeout-ms 0"));
    assert!(refused(Policy { timeout_ms: 99, ..usual }).contains("at least twice --heartbeat-ms 50"));
    let longest = Policy::MAX_MS;
    Policy { heartbeat_ms: 1, timeout_ms: longest, lag_target_ms: longest, ..usual }.check().unwrap();
}

#[test]
fn policies_that_differ_say_in_what() {
    let usual = Policy::default();
    assert_eq!(usual.differences(&usual), Vec::<String>::new());
    let other = Policy { timeout_ms: 5000, virtual_clock: true, ..usual };
    assert_eq!(other.differences(&usual), ["--timeout-ms 5000 (not 500)", "--clock virtual (not host)"]);
}
