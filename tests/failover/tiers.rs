//! A translating half and an interpreting one of loaded Linux, and the reverse: every digest is equal, also
//! after a state transfer from one to the other.

use lockstep::cluster::{Cluster, Part};

use anyhow::ensure;
use serde_json::Value;

use crate::load_run::{self, Running};
use crate::machine::LINUX;
use crate::redundancy::replicate;
use crate::support::{case, number, one_live_copy, shut_down, wait_alone, wait_for_status, wait_replicating};

/// Digests that each backup compares.
const DIGESTS: u64 = 10;
const ANSWERS: u64 = 500;

fn native_share(cluster: &Cluster, part: Part) -> anyhow::Result<f64> {
    let status = cluster.status(part)?;
    Ok(status.pointer("/guest/translator/native_share").and_then(Value::as_f64).unwrap_or(0.0))
}

/// Under load, the backup compares digests; only the half of `translates` is translated.
fn agree(cluster: &mut Cluster, load: &Running, translates: Part) -> anyhow::Result<()> {
    let before = number(&wait_replicating(cluster, 1)?, "/backup/digests");
    load.wait_answered(cluster, ANSWERS)?;
    let backup = wait_for_status(cluster, Part::Backup, "the backup to compare digests", |status| {
        number(status, "/backup/digests") >= before + DIGESTS
    })?;
    for part in [Part::Primary, Part::Backup] {
        let share = native_share(cluster, part)?;
        ensure!((share > 0.0) == (part == translates), "{}: {share} translated", part.name());
    }
    println!(
        "{} translates: {} digests and {} outputs equal",
        translates.name(),
        number(&backup, "/backup/digests"),
        number(&backup, "/backup/outputs")
    );
    Ok(())
}

#[test]
fn halves_of_linux_agree_if_only_one_translates() {
    case("halves_of_linux_agree_if_only_one_translates", &LINUX, |directory| {
        let mut options = LINUX.options(directory);
        options.primary_options = vec!["--jit".into(), "on".into()];
        options.backup_environment = vec![("LOCKSTEP_JIT".into(), "off".into())];
        let mut cluster = Cluster::start(options, |_| {})?;
        let load = Running::start(&cluster, |workload| workload, 1)?;
        agree(&mut cluster, &load, Part::Primary)?;
        cluster.kill(Part::Primary)?;
        wait_alone(&mut cluster, Part::Backup)?;
        cluster.promote_backup()?;
        cluster.options_mut().backup_environment = vec![("LOCKSTEP_JIT".into(), "on".into())];
        cluster.start_backup()?;
        replicate(&cluster, cluster.backup_address())?;
        agree(&mut cluster, &load, Part::Backup)?;
        cluster.kill(Part::Primary)?;
        wait_alone(&mut cluster, Part::Backup)?;
        one_live_copy(&mut cluster, Part::Backup, 3)?;
        cluster.promote_backup()?;
        load.wait_answered(&mut cluster, ANSWERS)?;
        load_run::judge(&load.finish()?, None)?;
        shut_down(&mut cluster, Part::Primary, false)
    });
}
