//! Faults that are there from one moment on until they are healed.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;

use crate::hosts::Traffic;
use crate::kinds::{Kind, Plan};
use crate::looking::View;
use crate::site::{A, ADDRESSES, B, C, Half, Site, until};

/// What has to be undone.
#[derive(Default)]
pub struct Broken {
    disk_server_killed: bool,
    disk_server_stopped: bool,
    full: bool,
    /// Halves that were killed, to start their commands again.
    pub killed: Vec<Half>,
}

/// Which half a fault is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Primary,
    Backup,
}

impl Site {
    /// The half that is primary or backup, as far as one can be told; a fault of two may find none.
    fn half(&mut self, which: Which) -> anyhow::Result<Option<usize>> {
        let views = self.views()?;
        let fits = |view: &View| match which {
            Which::Primary => matches!(view, View::Live(..)),
            Which::Backup => matches!(view, View::Backup(_)),
        };
        Ok(views.iter().position(fits))
    }

    /// Makes a fault. Whether it met anything.
    pub fn inject(&mut self, kind: Kind, broken: &mut Broken) -> anyhow::Result<bool> {
        use Kind::*;
        let which = match kind {
            KillBackup | StopBackup | TermBackup | CutBackupFromDisk => Which::Backup,
            _ => Which::Primary,
        };
        match kind {
            KillPrimary | KillBackup | StopPrimary | StopBackup | TermPrimary | TermBackup => {
                let Some(half) = self.half(which)? else { return Ok(false) };
                match kind {
                    KillPrimary | KillBackup => broken.killed.push(self.kill(half)?),
                    TermPrimary | TermBackup => self.halves[half].process.signal(Signal::SIGTERM)?,
                    _ => {
                        self.halves[half].process.signal(Signal::SIGSTOP)?;
                        self.halves[half].stopped = true;
                    }
                }
            }
            KillBoth => {
                for half in &self.halves {
                    half.process.signal(Signal::SIGKILL)?;
                }
                while !self.halves.is_empty() {
                    broken.killed.push(self.kill(0)?);
                }
            }
            CutBothWays | CutToBackup | CutToPrimary | CutUdpOnly | CutTcpOnly => {
                let primary = self.half(Which::Primary)?.map_or(A, |half| self.halves[half].host);
                self.cut_halves(kind, primary)?;
            }
            CutPrimaryFromDisk | CutBackupFromDisk => {
                let Some(half) = self.half(which)? else { return Ok(false) };
                let host = self.halves[half].host;
                self.cut_from_disk(host)?;
            }
            DiskServerKilled => {
                *self.disk_server() = None;
                broken.disk_server_killed = true;
            }
            DiskServerStopped => {
                self.disk_server().as_ref().context("a disk server runs")?.signal(Signal::SIGSTOP)?;
                broken.disk_server_stopped = true;
            }
            DiskFull => {
                self.fill_up()?;
                broken.full = true;
            }
            StaleCommand | StaleBackup | GuestReboot | DuringReplicate | DoubleFault => {
                bail!("{kind:?} is more than one fault")
            }
        }
        Ok(true)
    }

    fn cut_halves(&mut self, kind: Kind, primary: usize) -> anyhow::Result<()> {
        let backup = if primary == A { B } else { A };
        let traffic = match kind {
            Kind::CutUdpOnly => Traffic::Udp,
            Kind::CutTcpOnly => Traffic::Tcp,
            _ => Traffic::All,
        };
        if kind != Kind::CutToPrimary {
            self.hosts.cut(primary, ADDRESSES[backup], traffic)?;
        }
        if kind != Kind::CutToBackup {
            self.hosts.cut(backup, ADDRESSES[primary], traffic)?;
        }
        Ok(())
    }

    /// Nothing passes between a host and the disk server's.
    pub fn cut_from_disk(&mut self, host: usize) -> anyhow::Result<()> {
        self.hosts.cut(host, ADDRESSES[C], Traffic::All)?;
        self.hosts.cut(C, ADDRESSES[host], Traffic::All)
    }

    /// Takes what room the file system of the disks has.
    fn fill_up(&self) -> anyhow::Result<()> {
        let mut ballast = File::create(self.data().join("ballast"))?;
        let block = vec![0xa5; 1 << 20];
        for size in [block.len(), 4096] {
            while ballast.write_all(&block[..size]).is_ok() {}
        }
        ensure!(ballast.metadata()?.len() > 0, "no ballast could be written");
        Ok(())
    }

    /// Ends all faults. Halves that were killed stay dead.
    pub fn heal(&mut self, broken: &mut Broken) -> anyhow::Result<()> {
        self.hosts.heal()?;
        if std::mem::take(&mut broken.full) {
            std::fs::remove_file(self.data().join("ballast"))?;
        }
        if std::mem::take(&mut broken.disk_server_stopped)
            && let Some(server) = self.disk_server()
        {
            server.signal(Signal::SIGCONT)?;
        }
        if std::mem::take(&mut broken.disk_server_killed) {
            self.start_disk_server()?;
        }
        for half in self.halves.iter_mut().filter(|half| half.stopped) {
            half.process.signal(Signal::SIGCONT)?;
            half.stopped = false;
        }
        Ok(())
    }

    /// Everything is down: starts the pair again, on either host.
    pub fn cold_start(&mut self, plan: &mut Plan) -> anyhow::Result<()> {
        while !self.halves.is_empty() {
            self.kill(0)?;
        }
        // The disk server has to see that the old copies are gone.
        until("the disk server to see that nobody is left", || {
            Ok(self.holding().is_some_and(|state| !state.holder_connected).then_some(()))
        })?;
        let primary = plan.one_of(&[A, B]);
        self.start_pair(primary, if primary == A { B } else { A })
    }
}
