//! Two halves that are not one machine: each side says what differs and both values, and neither the backup
//! nor a pair that runs is any worse for it.

use lockstep::cluster::Part;
use logchannel::PairConfig;
use logchannel::tcp::TcpError;

use crate::crafted::{connect, hello, pair_config, win};
use crate::harness::{Pair, VM};
use crate::load::Load;

const MACHINE: [&str; 2] = ["--disk-size", "16"];

/// One difference between a primary and the backup of `MACHINE`.
struct Case {
    name: &'static str,
    /// More options of the primary.
    options: Vec<String>,
    /// What the field is called.
    field: &'static str,
    /// The primary's value, and the backup's.
    values: [String; 2],
}

fn case(name: &'static str, options: &[&str], field: &'static str, values: [&str; 2]) -> Case {
    let options = options.iter().map(|option| option.to_string()).collect();
    Case { name, options, field, values: values.map(str::to_string) }
}

fn cases(pair: &Pair) -> Vec<Case> {
    // Of a kernel that it does not know, `auto` would take another one.
    let engine = pair_config(&MACHINE).engine.leak();
    let image = pair.directory().join("other.elf");
    let mut bytes = guest_images::MINIKV.to_vec();
    bytes.push(0);
    std::fs::write(&image, &bytes).unwrap();
    let cmdline = "ip=10.77.0.2/24 gw=10.77.0.1 port=6380";
    let ours = "\"ip=10.77.0.2/24 gw=10.77.0.1 port=6379\"";
    let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    vec![
        case("memory", &["--memory", "32"], "memory size", ["32 MiB", "64 MiB"]),
        case("command-line", &["--cmdline", cmdline], "guest command line", [&format!("{cmdline:?}"), ours]),
        case(
            "mac",
            &["--mac", "52:4c:4b:00:00:09"],
            "MAC address",
            ["52:4c:4b:00:00:09", "52:4c:4b:00:00:02"],
        ),
        case(
            "on-reset",
            &["--on-reset", "stop"],
            "what a reset does",
            ["stop", "restart, at most 5 times a minute"],
        ),
        case("disk", &["--disk", "other"], "disk", ["\"other\"", "\"disk0\""]),
        case("name", &["--vm", "other"], "virtual machine", ["\"other\"", "\"vm0\""]),
        case(
            "image",
            &["--engine", engine, "--kernel", image.to_str().unwrap()],
            "guest image",
            [&digest(&bytes), &digest(guest_images::MINIKV)],
        ),
    ]
}

/// Both sides name the field and both values, each its own first.
fn both_say(primary: &str, backup: &str, case: &Case) {
    let [theirs, ours] = &case.values;
    let of_primary = format!("{}: {theirs} here, {ours} there", case.field);
    let of_backup = format!("{}: {ours} here, {theirs} there", case.field);
    assert!(primary.contains(&of_primary), "{}: {of_primary:?} not in {primary}", case.name);
    assert!(backup.contains(&of_backup), "{}: {of_backup:?} not in {backup}", case.name);
}

#[test]
fn different_machines_are_told_apart_and_the_right_primary_is_welcome() {
    let Some(mut pair) = Pair::services("different_machines", |_| {}) else { return };
    pair.start_backup().unwrap();
    let network = pair.network();
    for case in cases(&pair) {
        let mut words = vec!["primary", "--backup", pair.backup_address()];
        words.extend(["--disk-server", pair.disk_address(), "--net", &network]);
        words.extend(MACHINE);
        words.extend(case.options.iter().map(String::as_str));
        let mut primary = pair.spawn(case.name, &words);
        assert_eq!(primary.exit_code(), 1, "{}: {}", case.name, primary.output());
        both_say(&primary.output(), &pair.log_text(Part::Backup), &case);
        assert!(!pair.has_ended(Part::Backup));
    }
    crafted_differences(&mut pair);
    let generation = pair.holding().holding.generation;
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
    let load = Load::start(pair.port(), 2);
    load.wait_for(50);
    pair.kill(Part::Primary).unwrap();
    load.wait_for(50);
    pair.assert_one_live(Part::Backup, generation + 2);
    load.stop().assert_unbroken().check(pair.port());
}

/// What this host cannot have two of: another CPU, engine, clock, machine model, an older CPU model.
fn crafted_differences(pair: &mut Pair) {
    type Change = fn(&mut PairConfig);
    let ours = pair_config(&MACHINE);
    let cases: [(&str, Change, &str, &str); 5] = [
        ("host CPU", |c| c.host_cpu = "AuthenticAMD 25/17/1".into(), "AuthenticAMD 25/17/1", &ours.host_cpu),
        ("engine", |c| c.engine = "other".into(), "other", &ours.engine),
        ("position clock", |c| c.clock = "branches".into(), "branches", &ours.clock),
        ("CPU model", |c| c.cpu_model = "x86-64-v2/2".into(), "x86-64-v2/2", &ours.cpu_model),
        ("machine model", |c| c.machine_model = "pc-9".into(), "pc-9", &ours.machine_model),
    ];
    for (field, change, theirs, ours) in cases {
        let (generation, _disk) = win(pair, VM);
        let mut config = pair_config(&MACHINE);
        change(&mut config);
        let refused = connect(pair.backup_address(), &hello(config), generation);
        let Err(TcpError::Refused { refusal, .. }) = refused.map(|_| ()) else {
            panic!("{field} was accepted")
        };
        let values = [format!("{theirs:?}"), format!("{ours:?}")];
        let case = Case { name: field, options: Vec::new(), field, values };
        both_say(&refusal.to_string(), &pair.log_text(Part::Backup), &case);
        assert!(!pair.has_ended(Part::Backup));
    }
    crate::harness::wait_until("the last of them to be gone", || !pair.holding().holder_connected);
}

/// With two disk servers both halves would win a failover.
#[test]
fn halves_with_different_disk_servers_are_no_pair() {
    let Some(mut pair) = Pair::services("different_disk_servers", |_| {}) else { return };
    let data = pair.directory().join("other-disks").display().to_string();
    let mut other =
        pair.spawn("other-disk-server", &["disk-server", "--listen", "127.0.0.1:0", "--data", &data]);
    let address = other.wait_for_line("disk-server listening on ");
    pair.start_backup().unwrap();
    let network = pair.network();
    let words = [
        "primary",
        "--backup",
        pair.backup_address(),
        "--disk-server",
        &address,
        "--net",
        &network,
        "--disk-size",
        "16",
    ];
    let mut primary = pair.spawn("stray", &words);
    assert_eq!(primary.exit_code(), 1, "{}", primary.output());
    let said = format!("the backup's disk server {} has generation 0 of vm0", pair.disk_address());
    let (output, log) = (primary.output(), pair.log_text(Part::Backup));
    assert!(output.contains(&said) && output.contains("give both the same disk server"), "{output}");
    assert!(log.contains(&said), "{log}");
    pair.start_primary().unwrap();
    pair.wait_for_guest().unwrap();
    pair.wait_for_state(Part::Primary, "Replicating");
}
