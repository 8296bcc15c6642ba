//! Measures the network by itself: round trips and requests per second through gateway and switch, side by
//! side with a plain TCP connection on loopback.
//!
//!     cargo run --release -p lockstep-lan --example lan_bench -- [serve]
//!
//! With `serve` it stays and prints the port of a guest that answers PING, for redis-benchmark:
//!
//!     redis-benchmark -p PORT -t ping_mbulk -c 50 -P 16 -n 2000000

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use lockstep_lan::{DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, Lan, LanOptions};
use support::{App, Guest, PORT};

const PING: &[u8; 14] = b"*1\r\n$4\r\nPING\r\n";
const PONG: &[u8; 7] = b"+PONG\r\n";
const ROUND_TRIPS: usize = 20_000;
const BULK_LEN: usize = 512 << 20;

// A measurement is about host time.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::Builder::new().spawn(work).expect("a thread starts")
}

/// A plain server that answers PING, one thread per connection.
fn plain_server() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(move || -> std::io::Result<()> {
                let mut stream = stream;
                stream.set_nodelay(true)?;
                let (mut buffer, mut have) = ([0; 16384], 0);
                loop {
                    let count = stream.read(&mut buffer)?;
                    if count == 0 {
                        return Ok(());
                    }
                    have += count;
                    stream.write_all(&PONG.repeat(have / PING.len()))?;
                    have %= PING.len();
                }
            });
        }
    });
    Ok(address)
}

fn round_trips(address: SocketAddr) -> anyhow::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for i in 0..ROUND_TRIPS + 1000 {
        let start = now();
        stream.write_all(PING)?;
        stream.read_exact(&mut [0; 7])?;
        if i >= 1000 {
            times.push(now().duration_since(start).as_nanos() as f64 / 1000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Requests per second of this many connections with this pipeline, from one thread.
fn requests_per_second(address: SocketAddr, connections: usize, pipeline: usize) -> anyhow::Result<f64> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let batch = PING.repeat(pipeline);
    let mut answer = vec![0; PONG.len() * pipeline];
    let start = now();
    let mut count = 0;
    while count < 1_000_000 {
        for stream in &mut streams {
            stream.write_all(&batch)?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut answer)?;
            count += pipeline;
        }
    }
    Ok(count as f64 / now().duration_since(start).as_secs_f64())
}

/// Bytes per second echoed by the guest, counted one way.
fn bulk(address: SocketAddr) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    let mut writer = stream.try_clone()?;
    let start = now();
    let sender = spawn(move || -> std::io::Result<()> {
        let block = vec![7; 1 << 20];
        for _ in 0..BULK_LEN / block.len() {
            writer.write_all(&block)?;
        }
        Ok(())
    });
    let (mut buffer, mut got) = (vec![0; 1 << 20], 0);
    while got < BULK_LEN {
        match stream.read(&mut buffer)? {
            0 => anyhow::bail!("the connection ended after {got} bytes"),
            count => got += count,
        }
    }
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    Ok(got as f64 / now().duration_since(start).as_secs_f64())
}

fn guest(app: App, switch: &str) -> anyhow::Result<(Lan, Guest, SocketAddr)> {
    let lan = Lan::start(LanOptions {
        listen: vec![switch.parse()?],
        forwards: vec![format!("127.0.0.1:0={DEFAULT_GUEST_IP}:{PORT}").parse()?],
        ..LanOptions::default()
    })?;
    let guest = Guest::start(&lan.ready().listen[0], DEFAULT_GUEST_IP, DEFAULT_GUEST_MAC, app, 160);
    let forward = lan.ready().forwards[0].listen;
    Ok((lan, guest, forward))
}

fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let unix = format!("unix:{}", directory.path().join("lan.sock").display());
    if std::env::args().nth(1).as_deref() == Some("serve") {
        let (_lan, _guest, forward) = guest(App::Pong, "tcp:127.0.0.1:0")?;
        println!("{}", forward.port());
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let plain = plain_server()?;
    for switch in ["tcp:127.0.0.1:0", unix.as_str()] {
        let (_lan, _guest, forward) = guest(App::Pong, switch)?;
        println!("switch port over {}", switch.split(':').next().unwrap_or(switch));
        for _ in 0..3 {
            for (name, address) in [("plain", plain), ("network", forward)] {
                let times = round_trips(address)?;
                let at = |q: f64| times[(times.len() as f64 * q) as usize];
                println!("  {name:8} round trip p50 {:6.1} us, p99 {:6.1} us", at(0.5), at(0.99));
            }
        }
        for (name, address) in [("plain", plain), ("network", forward)] {
            println!(
                "  {name:8} 50 connections, pipeline 16: {:9.0} requests/s",
                requests_per_second(address, 50, 16)?
            );
            println!(
                "  {name:8} 50 connections, pipeline  1: {:9.0} requests/s",
                requests_per_second(address, 50, 1)?
            );
        }
    }
    let (_lan, _guest, forward) = guest(App::Echo, "tcp:127.0.0.1:0")?;
    println!("bulk echo through the network: {:.0} MB/s each way", bulk(forward)? / 1e6);
    Ok(())
}
