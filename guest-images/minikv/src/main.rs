//! `minikv`: a bare-metal guest that serves the Redis protocol from a virtio network card and keeps its data
//! on a virtio disk.
//!
//! Everything but the entry and the exception stubs (`cpl0.s`) runs at CPL3, with all of RAM mapped one to
//! one and every port open. It takes no interrupts: it polls its rings, and one COMMAND on the event port
//! (`event`) sends frames, starts disk writes and waits. It executes no instruction whose result is not a
//! function of its memory, its registers and its devices: no RDTSC, RDRAND or CPUID. The tests of
//! `guest-images` hold it to that.
//!
//! Exit statuses: 0 after SHUTDOWN, 1 after a failure that it explains on the UART, 0x7f without memory, 0x80
//! plus the vector after an exception.
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod console;
mod cpl0;
mod disk;
mod event;
mod heap;
mod mem;
mod network;
mod port;
mod server;
mod virtio;

use alloc::format;
use alloc::string::String;
use core::panic::PanicInfo;

use minikv_core::{Database, Limits, Store};

use crate::boot::BootParams;
use crate::disk::Disk;
use crate::event::EventPort;
use crate::network::Network;
use crate::server::{Bounds, Server};
use crate::virtio::blk::Blk;
use crate::virtio::net::Net;

/// Exit status of a failure that was explained.
const FAILED: u8 = 1;
/// Most connections, however much memory there is.
const MAX_CLIENTS: usize = 1000;

/// Entered at CPL3 by `cpl0.s`.
#[unsafe(no_mangle)]
extern "C" fn main(boot_params: usize, ram_end: usize) -> ! {
    // SAFETY: the entry passes on what the boot protocol gave it.
    let params = unsafe { BootParams::new(boot_params) };
    // SAFETY: nothing of the image is behind its end, RAM is zero at power-on (`.bss` relies on it too), and
    // this is called once.
    unsafe { heap::init(boot::image_end(), ram_end) };
    match start(&params) {
        Ok(server) => server.run(),
        Err(reason) => {
            println!("minikv: {reason}");
            port::end_machine(FAILED)
        }
    }
}

fn start(params: &BootParams) -> Result<Server, String> {
    let config = minikv_core::Config::parse(params.command_line())?;
    let heap_len = heap::len();
    let max_sockets = (heap_len / 6 / network::SOCKET_MEMORY).min(MAX_CLIENTS + network::LISTENERS);
    let max_clients = max_sockets.saturating_sub(network::LISTENERS);
    let limits = Limits { max_memory: heap_len / 2, max_clients };
    if max_clients == 0 {
        return Err(format!("{} KiB of memory is too little: give it 32 MiB or more", heap_len / 1024));
    }
    let mut event =
        EventPort::new().map_err(|found| format!("no event port: port 0x4c50 reads {found:#x}"))?;
    let mut store = Store::new();
    let mut disk = Blk::open().map(Disk::new);
    let journal = match &mut disk {
        Some(disk) => Some(disk.recover(&mut event, &mut store, limits.max_memory)?),
        None => None,
    };
    let keys = store.len();
    let kept = if journal.is_some() { "disk" } else { "memory only" };
    let db = Database::new(store, journal, limits, config);
    let seed = event.wall_base_ns() ^ event.now_ns();
    let network = Net::open().map(|net| Network::new(net, &config, seed, max_sockets, event.now_ns()));
    let [a, b, c, d] = config.ip;
    let port = config.port;
    let card = if network.is_some() { "" } else { " (no network card)" };
    println!("minikv {}: {a}.{b}.{c}.{d}:{port}{card}, {keys} keys, {kept}", env!("CARGO_PKG_VERSION"));
    let bounds = Bounds { client_memory: heap_len / 4, reserve: heap_len / 16, max_clients };
    Ok(Server::new(event, disk, network, db, bounds))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("minikv: {info}");
    port::end_machine(FAILED)
}

/// The precompiled `alloc` refers to it, for unwinding; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    port::end_machine(FAILED)
}
