//! What the log is spared when the backup reads the shared disk itself; and one backup after the other in one
//! boot of Linux, which is mostly reads.

use std::path::Path;

use anyhow::{bail, ensure};
use lockstep::cluster::{Cluster, Part, ping};

use crate::machine::{LINUX, LINUX_READS, Machine};
use crate::redundancy::replace_primary;
use crate::support::{
    case, in_directory, number, on, one_live_copy, shut_down, wait_alone, wait_for_status, wait_replicating,
};

/// By how much the log of a boot must be smaller, at least.
const SMALLER: u64 = 10;

/// A boot has some two hundred reads; with so many made, most are still to come.
const FEW: u64 = 5;
/// Boots tried until one is not over when the second backup has joined.
const ATTEMPTS: u32 = 4;

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

#[test]
fn backups_read_on_where_others_died_in_the_middle_of_a_boot() {
    const NAME: &str = "backups_read_on_where_others_died_in_the_middle_of_a_boot";
    on(&LINUX_READS, NAME, || {
        for _ in 0..ATTEMPTS {
            if in_directory(twice_in_a_boot)? {
                return Ok(());
            }
            println!("the boot was over too soon");
        }
        bail!("{ATTEMPTS} boots were over before the second backup had anything to read")
    });
}

/// The primary dies while the guest boots; the backup boots on, gets a backup by state transfer, and dies in
/// its turn. Whether the second backup had to read.
fn twice_in_a_boot(directory: &Path) -> anyhow::Result<bool> {
    let mut cluster = Cluster::start_services(LINUX_READS.options(directory), |_| {})?;
    cluster.start_backup()?;
    cluster.start_primary()?;
    let has_read = |least| move |status: &_| number(status, "/backup/disk_reads/reads") >= least;
    wait_for_status(&mut cluster, Part::Backup, "the first backup to read", has_read(FEW))?;
    replace_primary(&mut cluster)?;
    let (port, mut reads) = (cluster.port(), 0);
    cluster.wait("the second backup to read, or the guest to answer", |cluster| {
        reads = number(&cluster.status(Part::Backup)?, "/backup/disk_reads/reads");
        Ok(reads >= FEW || ping(port).unwrap_or(false))
    })?;
    cluster.kill(Part::Primary)?;
    wait_alone(&mut cluster, Part::Backup)?;
    one_live_copy(&mut cluster, Part::Backup, 3)?;
    cluster.wait_for_guest()?;
    println!("the second backup had made {reads} reads when it went live");
    shut_down(&mut cluster, Part::Backup, false)?;
    Ok(reads >= FEW)
}
