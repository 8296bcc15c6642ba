//! One round: a healthy pair under a checked load, a fault, and what must hold after it.

use std::io::Write;

use anyhow::{Context, ensure};
use load::Violation;

use crate::clients::{self, Ledger, Load};
use crate::faults::Broken;
use crate::kinds::{Kind, OF_TWO, Plan};
use crate::looking::{Settled, ask};
use crate::site::{PATIENCE, Site, pause, until};
use crate::summary::Row;

/// Answers that each client has before a fault, and after it.
const SOME: u64 = 20;

/// What redis says on the console when it takes connections.
const SERVES: &str = "Ready to accept connections";

/// How the fault left the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It goes on, and so do its connections.
    GoesOn,
    /// The guest starts anew; connections are lost.
    Restarts,
}

/// Does what the plan says and judges it. The pair has its redundancy afterwards.
pub fn round(plan: &mut Plan, site: &mut Site, ledger: &mut Ledger) -> anyhow::Result<Row> {
    if plan.kind == Kind::GuestReboot {
        with_console(plan, site)?;
    }
    let before = site.generation();
    let load = Load::start(site.port, plan)?;
    let after = match fault(plan, site, &load) {
        Ok(after) => after,
        Err(error) => {
            // What the clients saw says more, if they can be asked.
            let seen = if load.is_over() { load.finish(false).ok().map(|seen| seen.broken) } else { None };
            return Err(error.context(format!("{:?}; clients: {seen:?}", plan.kind)));
        }
    };
    // A start won one, and is no failover.
    let starts = u64::from(after == After::Restarts && plan.kind != Kind::GuestReboot);
    let failovers = site.generation().saturating_sub(before + starts);
    pause(plan.between(10, 300));
    let outcome = load.finish(after == After::Restarts)?;
    let mut row = judge(plan, &outcome, after)?;
    row.failovers = failovers;
    ledger.note(site.port, plan.seed)?;
    site.protect()?;
    site.complaint()?;
    Ok(row)
}

fn judge(plan: &Plan, outcome: &load::Outcome, after: After) -> anyhow::Result<Row> {
    let verdict = load::check(&outcome.history);
    let twice = |violation: &&Violation| match violation {
        Violation::CounterGap { .. } => true,
        Violation::Append { expected, found, .. } => found > expected,
        _ => false,
    };
    let double = verdict.violations.iter().filter(twice).count();
    let lost = verdict.violations.len() - double;
    let lines = |what: Vec<String>| what.join("; ");
    let violations = lines(verdict.violations.iter().map(ToString::to_string).collect());
    ensure!(violations.is_empty(), "of the writes {lost} lost, {double} double: {violations}");
    let broken = lines(outcome.broken.clone());
    ensure!(after == After::Restarts || broken.is_empty(), "connections lost: {broken}");
    let writes = outcome.history.operations.iter().filter(|operation| {
        operation.answered_ns.is_some() && !matches!(operation.request, load::Request::Get { .. })
    });
    let stall_ms = (after == After::GoesOn).then(|| clients::stall_ms(outcome));
    Ok(Row { kind: plan.kind, writes: writes.count() as u64, stall_ms, failovers: 0 })
}

/// Waits until each client had some answers, or the service ended.
fn progress(site: &mut Site, load: &Load, each: u64) -> anyhow::Result<bool> {
    let due = load.answered() + each;
    let mut looks = 0;
    until("the clients' answers", || {
        site.reap()?;
        if load.answered() >= due {
            return Ok(Some(true));
        }
        looks += 1;
        // Asking takes the halves' time: not at every look.
        let none_left = site.halves.iter().all(|half| half.stale)
            || looks % 200 == 0 && site.look()? == Some(Settled::Ended);
        Ok((none_left || load.is_over()).then_some(false))
    })
}

fn fault(plan: &mut Plan, site: &mut Site, load: &Load) -> anyhow::Result<After> {
    let some = u64::from(plan.clients) * SOME;
    ensure!(progress(site, load, some)?, "the service ended before the fault");
    // A pair that has just got its backup may not have said so yet, or may have parted by itself.
    site.protect()?;
    pause(plan.between(0, 400));
    let mut broken = Broken::default();
    match plan.kind {
        Kind::DuringReplicate => during_replicate(plan, site, &mut broken)?,
        Kind::StaleCommand => stale_command(plan, site, &mut broken)?,
        Kind::StaleBackup => stale_backup(plan, site, &mut broken)?,
        Kind::GuestReboot => return guest_reboot(site),
        Kind::DoubleFault => {
            let (first, second) = (plan.one_of(OF_TWO), plan.one_of(OF_TWO));
            println!("  {first:?}, then {second:?}");
            site.inject(first, &mut broken)?;
            pause(plan.between(0, 1000));
            site.inject(second, &mut broken)?;
            pause(plan.between(0, 1500));
        }
        Kind::DiskServerStopped => stalled_disk(plan, site, &mut broken)?,
        Kind::CutPrimaryFromDisk => {
            site.inject(plan.kind, &mut broken)?;
            // Its backup reaches the disk server: the machine goes on there.
            let handed_over =
                progress(site, load, some).context("the primary alone is cut off from the disk")?;
            ensure!(handed_over, "the service ended when the primary was cut off from the disk server");
        }
        Kind::DiskFull => {
            site.inject(plan.kind, &mut broken)?;
            pause(plan.between(50, 400));
            if plan.one_of(&[true, false]) {
                site.inject(Kind::KillPrimary, &mut broken)?;
                pause(plan.between(50, 400));
            }
        }
        kind => {
            ensure!(site.inject(kind, &mut broken)?, "no half for {kind:?}");
            let length = match kind {
                Kind::CutTcpOnly => plan.between(100, 4000),
                _ => plan.short_or_long(),
            };
            // What is dead stays dead: there is nothing to wait for.
            if !matches!(kind, Kind::KillPrimary | Kind::KillBackup | Kind::TermPrimary | Kind::TermBackup) {
                pause(length);
            }
        }
    }
    site.heal(&mut broken)?;
    aftermath(plan, site, load)
}

fn aftermath(plan: &mut Plan, site: &mut Site, load: &Load) -> anyhow::Result<After> {
    let some = u64::from(plan.clients) * SOME;
    let may_end = plan.kind.may_end_the_service();
    let went_on = progress(site, load, some)?;
    let settled = site.settle(may_end)?;
    site.dismiss_stale()?;
    if settled == Settled::Ended {
        site.cold_start(plan)?;
        return Ok(After::Restarts);
    }
    // It may have ended, or parted, between the answers and the look.
    ensure!(went_on, "connections were lost, though the service went on");
    ensure!(progress(site, load, some)?, "the service ended after the fault");
    Ok(After::GoesOn)
}

/// The backup is replaced, and one half killed while the machine is transferred.
fn during_replicate(plan: &mut Plan, site: &mut Site, broken: &mut Broken) -> anyhow::Result<()> {
    site.inject(Kind::KillBackup, broken)?;
    let Settled::Alone(live) = site.settle(false)? else { anyhow::bail!("no half was left alone") };
    let host = site.halves[live].host;
    let backup = site.start_backup(1 - host)?;
    let listen = site.halves[backup].listen.clone().context("a backup listens")?;
    let mut replicate = site.replicate(live, &listen)?;
    pause(plan.between(0, 250));
    let victim = plan.one_of(&[live, backup]);
    broken.killed.push(site.kill(victim)?);
    replicate.wait()?;
    Ok(())
}

/// What a supervisor does that knows no better.
fn stale_command(plan: &mut Plan, site: &mut Site, broken: &mut Broken) -> anyhow::Result<()> {
    ensure!(site.inject(Kind::KillPrimary, broken)?, "no primary");
    let survivor = site.halves.first().context("a backup")?.host;
    if plan.one_of(&[true, false]) {
        // The failover is over already, or is not.
        site.settle(false)?;
    }
    site.cut_from_disk(survivor)?;
    site.inject(Kind::DiskServerKilled, broken)?;
    site.start_disk_server()?;
    let old = broken.killed.pop().context("a primary was killed")?;
    let again = format!("{}-again", old.name);
    let index = site.start_again(old.host, again, old.command.clone(), old.control.clone())?;
    site.halves[index].stale = true;
    pause(plan.between(100, 900));
    *broken = Broken::default();
    Ok(())
}

/// A backup that is started again as it was is the new backup, once the live copy is told.
fn stale_backup(plan: &mut Plan, site: &mut Site, broken: &mut Broken) -> anyhow::Result<()> {
    ensure!(site.inject(Kind::KillBackup, broken)?, "no backup");
    pause(plan.between(0, 600));
    let old = broken.killed.pop().context("a backup was killed")?;
    let again = format!("{}-again", old.name);
    let index = site.start_again(old.host, again, old.command.clone(), old.control.clone())?;
    site.wait_listening(index)?;
    site.halves[index].stale = true;
    let Settled::Alone(live) = site.settle(false)? else { anyhow::bail!("no half was left alone") };
    let listen = site.halves[index].listen.clone().context("it listens")?;
    let output = site.replicate(live, &listen)?.wait_with_output()?;
    ensure!(output.status.success(), "replicate: {}", String::from_utf8_lossy(&output.stderr));
    site.halves[index].stale = false;
    Ok(())
}

/// The disk server stands still while 8 MiB are on their way to it. Both halves still answer.
fn stalled_disk(plan: &mut Plan, site: &mut Site, broken: &mut Broken) -> anyhow::Result<()> {
    let writes = clients::large_writes(site.port, plan.seed)?;
    pause(plan.between(0, 60));
    site.inject(Kind::DiskServerStopped, broken)?;
    pause(plan.between(500, 1500));
    for half in &site.halves {
        ask(&half.control, PATIENCE / 6).with_context(|| {
            format!("stuck: {} does not answer while the disk server stands still", half.name)
        })?;
    }
    pause(plan.between(0, 3000));
    site.heal(broken)?;
    writes.join().map_err(|_| anyhow::anyhow!("a panic in the large writes"))?.context("large writes")
}

/// Only a copy that was started as the primary passes on what is typed: starts one, if a backup has gone
/// live.
fn with_console(plan: &mut Plan, site: &mut Site) -> anyhow::Result<()> {
    let live = site.live()?.context("a live copy")?;
    if site.halves[live].command[0] == "primary" {
        return Ok(());
    }
    site.cold_start(plan)?;
    site.protect()?;
    let live = site.live()?.context("a live copy")?;
    ensure!(site.halves[live].command[0] == "primary", "the pair parted while the guest booted");
    Ok(())
}

/// The guest is told to reboot, and serves again; the pair stays a pair.
fn guest_reboot(site: &mut Site) -> anyhow::Result<After> {
    let generation = site.generation();
    let live = site.live()?.context("a live copy")?;
    let served = |site: &Site| site.halves[live].process.log().matches(SERVES).count();
    let before = served(site);
    let typed = site.halves[live].typed.as_mut().context("a console")?;
    typed.write_all(b"\nreboot -f\n")?;
    typed.flush()?;
    until("the guest to serve again", || {
        site.reap()?;
        ensure!(site.ended.is_empty(), "{:?} ended when the guest rebooted", site.ended);
        Ok((served(site) > before).then_some(()))
    })?;
    clients::wait_for_guest(site.port)?;
    ensure!(site.is_pair()? && site.generation() == generation, "the reboot of the guest parted the pair");
    Ok(After::Restarts)
}
