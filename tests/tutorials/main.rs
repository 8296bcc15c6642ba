//! Every command of every tutorial, read from the document and run as it stands there: docs/operations.md on
//! three hosts and a client, with minikv and with Linux and redis; docs/guests.md, docs/recordings.md,
//! docs/debugging.md and the README on one.
//!
//! What the words after a block's language mean is in `runner.rs`. Hosts are network namespaces: without
//! root, or without a tool that the commands name, a tutorial is skipped loudly.
#![allow(clippy::unwrap_used)]

mod document;
#[path = "../hosts/mod.rs"]
mod hosts;
mod runner;

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use lockstep::cli::guest::build_if_missing;

use crate::document::blocks;
use crate::hosts::Hosts;
use crate::runner::Runner;

/// Images need the package servers, which no namespace reaches: each test has built what it needs.
const BUILT: (&str, &str) = ("lockstep guest build", "lockstep guest path");

/// Guests compete for the processors: one tutorial at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test with hosts of these names, if this host has what it needs.
fn tutorial(
    test: &str,
    tools: &[&str],
    names: &[&'static str],
    body: impl FnOnce(Hosts) -> anyhow::Result<()>,
) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let absent =
        |tool: &&&str| Command::new("which").arg(tool).output().map_or(true, |out| !out.status.success());
    let absent: Vec<&str> = tools.iter().filter(absent).copied().collect();
    if !absent.is_empty() {
        eprintln!("SKIPPED {test}: without {}", absent.join(", "));
        return;
    }
    let done = match Hosts::new(names) {
        Ok(hosts) => body(hosts),
        Err(error) => return eprintln!("SKIPPED {test}: {error:#}"),
    };
    if let Err(error) = done {
        panic!("{test}: {error:#}");
    }
}

/// Hosts A, B, C on a private network, and a client beside A and B on the guests' network.
fn operations(guest: &'static str, more: &str) -> impl FnOnce(Hosts) -> anyhow::Result<()> {
    move |hosts| {
        hosts.network("private")?;
        hosts.network("guests")?;
        for host in 0..3 {
            hosts.cable(host, "eth0", "private")?;
            hosts.ip(host, &format!("addr add 10.0.0.{}/24 dev eth0", host + 1))?;
        }
        for (host, device) in [(0, "eth1"), (1, "eth1"), (3, "eth0")] {
            hosts.cable(host, device, "guests")?;
        }
        hosts.ip(3, "addr add 10.77.0.1/24 dev eth0")?;
        let mut runner = Runner::new(hosts, &["A", "B", "C", "client"], guest)?;
        runner.instead.push((BUILT.0.into(), BUILT.1.into()));
        runner.instead.push(("--net tap:tap0".into(), format!("--net tap:tap0{more}")));
        runner.run(&blocks("docs/operations.md")?)?;
        counted(&runner.said("counting")?)
    }
}

/// Every count once, in order: none lost, none twice, on the connection of the beginning. That ends with the
/// server: what follows is of a client without one.
fn counted(text: &str) -> anyhow::Result<()> {
    let is_count = |line: &&str| line.parse::<u64>().is_ok();
    let after = text.lines().skip_while(is_count);
    let mut others =
        after.filter(|line| !line.starts_with("Error: ") && !line.starts_with("Could not connect"));
    ensure!(others.next().is_none(), "{text}");
    let counts: Vec<u64> = text.lines().take_while(is_count).filter_map(|line| line.parse().ok()).collect();
    let first = *counts.first().context("nothing was counted")?;
    let due: Vec<u64> = (first..first + counts.len() as u64).collect();
    ensure!(counts == due, "not every count once: {counts:?}");
    Ok(())
}

#[test]
fn operations_with_minikv() {
    let tools = ["redis-cli"];
    tutorial("operations_with_minikv", &tools, &["a", "b", "c", "client"], operations("minikv", ""));
}

#[test]
fn operations_with_linux_and_redis() {
    let test = "operations_with_linux_and_redis";
    if let Err(error) = build_if_missing("redis") {
        return eprintln!("SKIPPED {test}: {error:#}");
    }
    let body = operations("redis", " --guest redis");
    tutorial(test, &["redis-cli"], &["a", "b", "c", "client"], body);
}

/// A document whose commands need one host.
fn on_one_host(test: &str, tools: &[&str], prepare: impl FnOnce(&mut Runner) -> anyhow::Result<()>) {
    tutorial(test, tools, &["here"], |hosts| {
        let mut runner = Runner::new(hosts, &["here"], "minikv")?;
        runner.instead.push((BUILT.0.into(), BUILT.1.into()));
        prepare(&mut runner)?;
        runner.run(&blocks(&format!("docs/{test}.md"))?)
    });
}

#[test]
fn guests() {
    if let Err(error) = build_if_missing("busybox") {
        return eprintln!("SKIPPED guests: {error:#}");
    }
    on_one_host("guests", &["script", "mkfs.ext4"], |runner| {
        // What a reader has of their own.
        let text = "```sh\nimage=$(lockstep guest path busybox)\ncp $image/vmlinux bzImage\n\
                    cp $image/initrd initrd.img\ntruncate -s 1M root.ext4\nmkfs.ext4 -q root.ext4\n```\n";
        runner.run(&document::parse("before", text)?)
    });
}

#[test]
fn recordings() {
    on_one_host("recordings", &[], |_| Ok(()));
}

#[test]
fn debugging() {
    if let Err(error) = build_if_missing("busybox") {
        return eprintln!("SKIPPED debugging: {error:#}");
    }
    on_one_host("debugging", &["gdb"], |_| Ok(()));
}

/// The README's commands but the one that runs this.
#[test]
fn readme() {
    tutorial("readme", &[], &["here"], |hosts| {
        let mut runner = Runner::new(hosts, &["here"], "minikv")?;
        runner.instead.push(("cargo run --release -- ".into(), "lockstep ".into()));
        let mut commands = 0;
        for mut block in blocks("README.md")?.into_iter().filter(|block| block.language == "sh") {
            let tests = |line: &&str| line.starts_with("cargo test") || line.starts_with(".ci/");
            let lines: Vec<&str> = block.text.lines().filter(|line| !tests(line)).collect();
            commands += lines.len();
            block.text = lines.join("\n");
            runner.run(&[block])?;
        }
        ensure!(commands > 0, "the README has no command");
        Ok(())
    });
}
