//! `lockstep lan`: a user-space Ethernet switch with a gateway, for hosts or users without TAP devices.

use std::io::Write;

use clap::Args;
use lan::{Endpoint, Forward, LanOptions};

/// Options of `lockstep lan`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lockstep lan --listen 127.0.0.1:7800 --forward 127.0.0.1:6379=10.77.0.2:6379
  lockstep lan --listen unix:/tmp/lan.sock --forward 127.0.0.1:0=10.77.0.2:6379

Port 0 takes any free port; lines on standard output say which. Frames travel as in QEMU's -netdev stream.")]
pub struct LanArgs {
    /// Where monitors connect: host:port or unix:PATH. May be repeated.
    #[arg(long, default_value = "127.0.0.1:7800", value_name = "ENDPOINT")]
    pub listen: Vec<Endpoint>,
    /// Forward a TCP port of this host to the guest: LISTEN=GUEST. May be repeated.
    #[arg(long, value_name = "HOST:PORT=GUEST:PORT")]
    pub forward: Vec<Forward>,
}

/// Runs the command.
pub fn run(args: &LanArgs) -> anyhow::Result<u8> {
    let options =
        LanOptions { listen: args.listen.clone(), forwards: args.forward.clone(), ..LanOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        lan::run(options, announce, stop).await?;
        Ok(0)
    })
}

fn announce(ready: &lan::Ready) {
    let mut out = std::io::stdout().lock();
    for endpoint in &ready.listen {
        let _ = writeln!(out, "lan listening on {endpoint}");
    }
    for forward in &ready.forwards {
        let _ = writeln!(out, "lan forwarding {forward}");
    }
    let _ = out.flush();
}
