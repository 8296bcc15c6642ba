//! What the log is spared when the backup reads the shared disk itself.

use std::path::Path;

use anyhow::ensure;
use lockstep::cluster::{Cluster, Part};

use crate::machine::{LINUX, LINUX_READS, Machine};
use crate::support::{case, number, shut_down, wait_replicating};

/// By how much the log of a boot must be smaller, at least.
const SMALLER: u64 = 4;

/// What a boot cost.
struct Boot {
    log_bytes: u64,
    reads: u64,
    read_bytes: u64,
}

fn boot(machine: &Machine, directory: &Path) -> anyhow::Result<Boot> {
    std::fs::create_dir(directory)?;
    let mut cluster = Cluster::start(machine.options(directory), |_| {})?;
    let backup = wait_replicating(&mut cluster, 1)?;
    let primary = cluster.status(Part::Primary)?;
    let found = Boot {
        log_bytes: number(&primary, "/live/log_bytes"),
        reads: number(&backup, "/backup/disk_reads/reads"),
        read_bytes: number(&backup, "/backup/disk_reads/bytes"),
    };
    println!(
        "{}: {} bytes of log for a boot; the backup made {} reads of {} bytes",
        machine.name, found.log_bytes, found.reads, found.read_bytes
    );
    for kind in primary["live"]["log_kinds"].as_array().into_iter().flatten() {
        println!("  {kind}");
    }
    shut_down(&mut cluster, Part::Primary, false)?;
    Ok(found)
}

#[test]
fn linux_boots_with_a_fraction_of_the_log() {
    case("linux_boots_with_a_fraction_of_the_log", &LINUX, |directory| {
        let whole = boot(&LINUX, &directory.join("whole"))?;
        let spared = boot(&LINUX_READS, &directory.join("spared"))?;
        println!("{:.1} times smaller", whole.log_bytes as f64 / spared.log_bytes as f64);
        ensure!(whole.reads == 0 && spared.reads > 0, "the backups read otherwise than they were told");
        ensure!(
            spared.log_bytes * SMALLER < whole.log_bytes,
            "{} bytes of log with the backup's reads, {} without",
            spared.log_bytes,
            whole.log_bytes
        );
        Ok(())
    });
}
