//! What the server costs: times of single requests over loopback, next to the bare system calls.
//!
//!     cargo run --release -p disk-server --example latency [-- DIR]
//!
//! DIR (default: a temporary directory) decides which storage is measured.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use disk_server::client::DiskClient;
use disk_server::{Options, Server};
use logchannel::{DiskOp, DiskRequest};

const ROUNDS: usize = 4000;
const DISK_BYTES: u64 = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = runtime.block_on(Server::bind(&Options::new("127.0.0.1:0", dir.path().join("data"))))?;
    let address = server.local_addr().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = std::thread::Builder::new().spawn(move || {
        runtime.block_on(server.serve(async {
            let _ = stopped.await;
        }))
    })?;
    bare(&dir.path().join("bare"))?;
    single(&address)?;
    for threads in [1, 4, 8] {
        durable_writers(&address, threads)?;
    }
    in_flight(&address, 32)?;
    drop(stop);
    serving.join().expect("the server's thread")?;
    Ok(())
}

/// The system calls that a write cannot do without.
fn bare(path: &std::path::Path) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(DISK_BYTES)?;
    file.sync_all()?;
    report("bare pwrite + fdatasync, 512 B", |round| {
        file.write_all_at(&[round as u8; 512], offset(round))?;
        Ok(file.sync_data()?)
    })?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut message = [0; 512];
            while far.read_exact(&mut message).and_then(|()| far.write_all(&message[..32])).is_ok() {}
        });
        let mut answer = [0; 32];
        report("bare TCP, 512 B there, 32 B back", |_| {
            near.write_all(&[1; 512])?;
            Ok(near.read_exact(&mut answer)?)
        })?;
        Ok(near.shutdown(std::net::Shutdown::Both)?)
    })
}

fn single(address: &str) -> anyhow::Result<()> {
    let mut client = DiskClient::connect(address, DEADLINE)?;
    let disk = client.open("single", "disk", Some(DISK_BYTES), 1)?.disk;
    client.test_and_set("single", 0, 1)?;
    report("query (an answer without I/O)", |_| Ok(client.query("single").map(drop)?))?;
    report("durable write, 512 B", |n| Ok(client.write(disk, 1, offset(n), &[n as u8; 512], true)?))?;
    report("plain write, 512 B", |n| Ok(client.write(disk, 1, offset(n), &[n as u8; 512], false)?))?;
    report("read, 512 B", |n| Ok(client.read(disk, 1, offset(n), 512).map(drop)?))?;
    report("plain write, 64 KiB", |n| Ok(client.write(disk, 1, offset(n), &[n as u8; 1 << 16], false)?))?;
    let mut generation = 0;
    report("test-and-set", |_| {
        client.test_and_set("claims", generation, 1)?;
        generation += 1;
        Ok(())
    })
}

/// Several connections that write durably to one disk, one request each at a time.
fn durable_writers(address: &str, threads: usize) -> anyhow::Result<()> {
    let vm = format!("writers-{threads}");
    let mut first = DiskClient::connect(address, DEADLINE)?;
    first.open(&vm, "disk", Some(DISK_BYTES), 1)?;
    first.test_and_set(&vm, 0, 1)?;
    let begin = now();
    std::thread::scope(|scope| {
        let (address, vm) = (&address, &vm);
        // A claimant each: of one claimant, only the newest connection is served.
        let write = |claimant: u128| -> anyhow::Result<()> {
            let mut client = DiskClient::connect(address, DEADLINE)?;
            let disk = client.open(vm, "disk", None, claimant)?.disk;
            for round in 0..ROUNDS {
                client.write(disk, 1, offset(round), &[round as u8; 512], true)?;
            }
            Ok(())
        };
        let writers: Vec<_> = (0..threads as u128).map(|n| scope.spawn(move || write(n + 2))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer"))
    })?;
    let rate = (threads * ROUNDS) as f64 / begin.elapsed().as_secs_f64();
    let status = first.status()?;
    let disk = status.vms.iter().find(|v| v.name == vm).and_then(|v| v.disks.first()).context("no status")?;
    let share = disk.commits as f64 / disk.syncs as f64;
    println!("{threads} durable writers on one disk: {rate:8.0} writes/s, {share:.1} per fdatasync");
    Ok(())
}

/// One connection with many durable writes in flight.
fn in_flight(address: &str, depth: usize) -> anyhow::Result<()> {
    let mut client = DiskClient::connect(address, DEADLINE)?;
    let disk = client.open("in-flight", "disk", Some(DISK_BYTES), 1)?.disk;
    client.test_and_set("in-flight", 0, 1)?;
    let (sender, mut reader) = client.split(disk)?;
    let submit = |n: usize| {
        let op = DiskOp::Write { offset: offset(n), data: vec![n as u8; 512], durable: true };
        sender.submit(n as u64, &DiskRequest { id: n as u64, op }, 1)
    };
    let begin = now();
    (0..depth).try_for_each(submit)?;
    for n in 0..ROUNDS {
        reader.next_answer()?;
        submit(depth + n)?;
    }
    let rate = ROUNDS as f64 / begin.elapsed().as_secs_f64();
    println!("1 connection, {depth} durable writes in flight: {rate:8.0} writes/s");
    Ok(())
}

/// The same few places again and again: new places of a sparse file cost the file system more.
fn offset(round: usize) -> u64 {
    (round as u64 % 64) << 16
}

fn report(what: &str, mut action: impl FnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let begin = now();
        action(round)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let at = |share: f64| times[(share * (ROUNDS - 1) as f64) as usize].as_secs_f64() * 1e6;
    println!("{what:32} p50 {:7.1} µs   p99 {:7.1} µs", at(0.5), at(0.99));
    Ok(())
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
