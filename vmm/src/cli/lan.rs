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
    /// Where monitors connect: HOST:PORT, [IPV6]:PORT or unix:PATH. May be repeated.
    #[arg(long, default_value = "127.0.0.1:7800", value_name = "ENDPOINT")]
    pub listen: Vec<Endpoint>,
    /// Forward a TCP port of this host to the guest: LISTEN=GUEST. May be repeated.
    #[arg(long, value_name = "HOST:PORT=GUEST:PORT")]
    pub forward: Vec<Forward>,
    /// Most forwarded connections at once; clients beyond are reset.
    #[arg(
        long,
        default_value_t = lan::DEFAULT_MAX_CONNECTIONS,
        value_name = "N",
        value_parser = at_least_one
    )]
    pub max_connections: usize,
    /// Most monitors (ports of the switch) at once; more are refused.
    #[arg(long, default_value_t = lan::DEFAULT_MAX_PORTS, value_name = "N", value_parser = at_least_one)]
    pub max_monitors: usize,
}

fn at_least_one(text: &str) -> anyhow::Result<usize> {
    match text.parse() {
        Ok(0) => anyhow::bail!("at least 1"),
        // The gateway has a port of its own for each connection, of the 16384 that are for such things.
        Ok(count) if count > 16_384 => anyhow::bail!("at most 16384"),
        result => Ok(result?),
    }
}

/// Descriptors of a process beside those of its connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// Lets this process have as many descriptors as the limits of its connections ask for.
fn allow_descriptors(args: &LanArgs) -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let connections = (args.max_connections + args.max_monitors) as u64;
    let needed = connections + OTHER_DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= needed {
        return Ok(());
    }
    anyhow::ensure!(
        hard >= needed,
        "{connections} connections and monitors need {needed} descriptors, and a process may have {hard}: \
         raise the limit (ulimit -Hn, LimitNOFILE= of a systemd unit), or lower --max-connections"
    );
    Ok(setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?)
}

/// Runs the command.
pub fn run(args: &LanArgs) -> anyhow::Result<u8> {
    allow_descriptors(args)?;
    let options = LanOptions {
        listen: args.listen.clone(),
        forwards: args.forward.clone(),
        max_connections: args.max_connections,
        max_ports: args.max_monitors,
        ..LanOptions::default()
    };
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
