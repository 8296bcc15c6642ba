//! A connection whose command computes for about a second of the guest's time, and longer beside a load; its
//! result says whether every step of it was taken, on whichever host.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use anyhow::ensure;
use load::client::Client;
use load::resp::Reply;
use lockstep::cluster::Cluster;
use lockstep::io::clock::HostClock;

use crate::load_run::call;
use crate::machine::Guest;

/// Rounds of minikv's DEBUG SPIN.
const MINIKV_ROUNDS: u64 = 60_000_000;
/// Rounds of the script.
const SCRIPT_ROUNDS: u64 = 2_000_000;
/// Redis serves nobody while it runs a script. Its numbers are of 53 bits.
const SCRIPT: &str = "local x = tonumber(ARGV[1])
for _ = 1, x do x = (x * 69069 + 1) % 4294967296 end
return x";

/// A connection that computes.
pub struct Spinner(JoinHandle<anyhow::Result<u64>>);

impl Spinner {
    /// Sends the command.
    pub fn start(cluster: &Cluster, guest: Guest) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], cluster.port()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let spin = async move {
            let mut client = Client::connect(address).await?;
            match guest {
                Guest::Minikv => spin(&mut client).await?,
                Guest::Redis => script(&mut client).await?,
                Guest::Nginx | Guest::Busybox => anyhow::bail!("{guest:?} is not asked to compute"),
            }
            Ok(HostClock.now_ns())
        };
        let thread = std::thread::Builder::new().name("spin".into()).spawn(move || runtime.block_on(spin))?;
        Ok(Self(thread))
    }

    /// When it was answered.
    pub fn finish(self) -> anyhow::Result<u64> {
        self.0.join().map_err(|_| anyhow::anyhow!("the spinner panicked"))?
    }
}

async fn spin(client: &mut Client) -> anyhow::Result<()> {
    let rounds = MINIKV_ROUNDS.to_string();
    let reply = call(client, &[b"DEBUG", b"SPIN", rounds.as_bytes()]).await?;
    ensure!(reply == Reply::Integer(spun(MINIKV_ROUNDS)), "DEBUG SPIN answered {reply:?}");
    Ok(())
}

/// What DEBUG SPIN computes: so many rounds of splitmix64, each from the one before.
fn spun(rounds: u64) -> i64 {
    let mut state = rounds;
    for _ in 0..rounds {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    (state >> 1) as i64
}

async fn script(client: &mut Client) -> anyhow::Result<()> {
    // Else redis answers everybody with an error once a script took five seconds.
    let reply = call(client, &[b"CONFIG", b"SET", b"busy-reply-threshold", b"0"]).await?;
    ensure!(reply == Reply::Simple("OK".into()), "CONFIG SET answered {reply:?}");
    let rounds = SCRIPT_ROUNDS.to_string();
    let reply = call(client, &[b"EVAL", SCRIPT.as_bytes(), b"0", rounds.as_bytes()]).await?;
    let due = (0..SCRIPT_ROUNDS).fold(SCRIPT_ROUNDS, |x, _| (x * 69069 + 1) % (1 << 32));
    ensure!(reply == Reply::Integer(due as i64), "EVAL answered {reply:?}, not {due}");
    Ok(())
}
