//! The main loop.
//!
//! ```text
//!  see inputs ─▶ disk: what is done ─▶ frames in ─▶ execute ─▶ disk: next write ─▶ durable replies out ─┐
//!      ▲                                                                                               │
//!      └───────── one COMMAND: POLL if there is more to do, WAIT if not ◀────────── frames out ◀───────┘
//! ```
//!
//! The COMMAND is the only exit: it sends the frames, starts the disk write and waits, all at once. So a read
//! on an idle machine takes one, a write two: one that starts the disk's write, one that sends the reply.

use alloc::vec::Vec;

use minikv_core::{Client, Database, Environment, Progress};
use smoltcp::socket::tcp::{Socket, State};

use crate::disk::Disk;
use crate::event::EventPort;
use crate::heap;
use crate::network::{self, Network};
use crate::port;
use crate::println;

/// Commands (or KiB of them, or of answers) between two exits: about a millisecond.
const BUDGET: usize = 1024;

/// How long after SHUTDOWN, or the power button, clients that do not take their replies hold it up.
const LAST_REPLIES_NS: u64 = 5_000_000_000;

/// Bounds that follow from the size of RAM.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes that the buffers of all connections may take together.
    pub client_memory: usize,
    /// Bytes of heap below which nothing that needs memory is executed.
    pub reserve: usize,
    /// Connections that are served at the same time.
    pub max_clients: usize,
}

/// The server.
pub struct Server {
    event: EventPort,
    disk: Option<Disk>,
    network: Option<Network>,
    db: Database,
    bounds: Bounds,
    /// For each socket, its connection.
    clients: Vec<Option<Client>>,
    connected: usize,
    next_id: u64,
    /// Whose turn is first; and who spins next.
    turn: usize,
    spin_turn: usize,
    /// Since when, by virtual time.
    shutting_down: Option<u64>,
}

impl Server {
    /// A server over these parts.
    pub fn new(
        event: EventPort,
        disk: Option<Disk>,
        network: Option<Network>,
        db: Database,
        bounds: Bounds,
    ) -> Self {
        Self {
            event,
            disk,
            network,
            db,
            bounds,
            clients: Vec::new(),
            connected: 0,
            next_id: 1,
            turn: 0,
            spin_turn: 0,
            shutting_down: None,
        }
    }

    /// Serves until SHUTDOWN, or until the power button is pressed.
    pub fn run(mut self) -> ! {
        loop {
            self.event.see_inputs();
            if self.event.power_button() && self.shutting_down.is_none() {
                println!("minikv: the power button was pressed");
                self.shut_down();
            }
            let busy = self.serve();
            if self.shutting_down.is_some_and(|since_ns| self.is_settled(since_ns)) {
                self.event.poll();
                println!("minikv: shut down");
                port::end_machine(0);
            }
            if busy {
                self.event.poll();
            } else {
                let wake_at_ns = self.wake_at_ns();
                self.event.wait(wake_at_ns);
            }
        }
    }

    /// Executes nothing any more; the machine ends when what was executed is settled.
    fn shut_down(&mut self) {
        self.shutting_down.get_or_insert(self.event.now_ns());
    }

    /// Whether everything is durable, and every reply out or not wanted.
    fn is_settled(&self, since_ns: u64) -> bool {
        let replied = || self.clients.iter().flatten().all(|client| client.waiting() == 0);
        self.db.is_idle() && (self.event.now_ns() >= since_ns + LAST_REPLIES_NS || replied())
    }

    fn wake_at_ns(&mut self) -> u64 {
        let disk = self.disk.as_ref().and_then(Disk::wake_at_ns);
        let network = self.network.as_mut().and_then(Network::wake_at_ns);
        let last = self.shutting_down.map(|since_ns| since_ns + LAST_REPLIES_NS);
        let last = last.filter(|&at_ns| at_ns > self.event.now_ns());
        disk.into_iter().chain(network).chain(last).min().unwrap_or(u64::MAX)
    }

    /// One round. Whether there is more to do at once.
    fn serve(&mut self) -> bool {
        let now_ns = self.event.now_ns();
        if let Some(disk) = &mut self.disk {
            disk.serve(&mut self.db, now_ns);
        }
        let Some(mut network) = self.network.take() else { return false };
        network.receive(now_ns);
        let mut busy = self.execute(&mut network);
        // Batches and a compaction's pieces go out as soon as the one before is durable.
        if let Some(disk) = &mut self.disk {
            disk.serve(&mut self.db, now_ns);
        }
        for index in 0..network.len() {
            self.reply(&mut network, index);
        }
        self.evict(&mut network);
        network.send();
        busy |= !network.has_room();
        self.network = Some(network);
        busy
    }

    fn environment(&self) -> Environment {
        Environment {
            now_ns: self.event.now_ns(),
            wall_base_ns: self.event.wall_base_ns(),
            exits: self.event.commands(),
            clients: self.connected,
            heap_used: heap::used(),
            heap_len: heap::len(),
        }
    }

    /// Every connection executes what it has, and one of those that spin does a slice of its work.
    fn execute(&mut self, network: &mut Network) -> bool {
        let count = network.len();
        self.clients.resize_with(count, || None);
        self.db.set_memory_low(heap::len() - heap::used() < self.bounds.reserve);
        let env = self.environment();
        let mut budget = BUDGET;
        let mut busy = false;
        self.turn = (self.turn + 1) % count;
        for offset in 0..count {
            let index = (self.turn + offset) % count;
            self.connect(network.socket(index), index);
            busy |= self.execute_one(network.socket(index), index, &env, &mut budget);
        }
        let mut spinning = (0..count)
            .map(|offset| (self.spin_turn + offset) % count)
            .filter(|&index| self.clients[index].as_ref().is_some_and(Client::is_spinning));
        if let Some(index) = spinning.next() {
            self.spin_turn = index + 1;
            if let Some(client) = &mut self.clients[index] {
                client.spin(&self.db);
            }
            // Its answer may be ready, its next request may have arrived.
            busy = true;
        }
        busy
    }

    /// Keeps the connection in step with its socket's state.
    fn connect(&mut self, socket: &mut Socket<'_>, index: usize) {
        let open = !matches!(
            socket.state(),
            State::Listen | State::SynReceived | State::SynSent | State::Closed | State::TimeWait
        );
        let slot = &mut self.clients[index];
        match (open, slot.is_some()) {
            (true, false) if matches!(socket.state(), State::Established | State::CloseWait) => {
                if self.connected >= self.bounds.max_clients || self.shutting_down.is_some() {
                    self.db.stats.rejected_connections += 1;
                    let _ = socket.send_slice(b"-ERR max number of clients reached\r\n");
                    network::close(socket);
                    return;
                }
                self.db.stats.connections += 1;
                *slot = Some(Client::new(self.next_id));
                self.next_id += 1;
                self.connected += 1;
            }
            (false, true) => {
                *slot = None;
                self.connected -= 1;
            }
            _ => {}
        }
    }

    /// Takes in what a connection sent and executes it. Whether there is more to do at once.
    fn execute_one(
        &mut self,
        socket: &mut Socket<'_>,
        index: usize,
        env: &Environment,
        budget: &mut usize,
    ) -> bool {
        let Some(client) = &mut self.clients[index] else { return false };
        loop {
            let mut taken = 0;
            while socket.can_recv() && client.room() > 0 {
                let fed = socket.recv(|bytes| {
                    let count = bytes.len().min(client.room());
                    (count, client.feed(&bytes[..count]).then_some(count))
                });
                let Ok(Some(count)) = fed else {
                    // There is no memory for what it sends, and it cannot be told to wait: it may need all of
                    // it.
                    socket.abort();
                    return false;
                };
                taken += count;
            }
            if self.shutting_down.is_some() {
                return false;
            }
            match client.run(&mut self.db, env, budget) {
                Progress::Idle if taken == 0 => break,
                Progress::Idle => {}
                Progress::More => return true,
                Progress::Shutdown => {
                    self.shut_down();
                    return false;
                }
                Progress::Restart => port::reset_machine(),
                Progress::Blocked | Progress::Full | Progress::Spinning => return false,
            }
        }
        if !socket.may_recv() {
            client.finish();
        }
        false
    }

    /// Hands a connection's replies to its socket, as far as they may leave.
    fn reply(&mut self, network: &mut Network, index: usize) {
        let Some(client) = &mut self.clients[index] else { return };
        let socket = network.socket(index);
        let durable = self.db.durable();
        loop {
            let ready = client.ready(durable);
            if ready.is_empty() {
                break;
            }
            match socket.send_slice(ready) {
                Ok(0) => break,
                Ok(count) => client.sent(count),
                // The peer is gone: nobody waits for these any more.
                Err(_) => {
                    let count = ready.len();
                    client.sent(count);
                    client.finish();
                }
            }
        }
        if !matches!(socket.state(), State::Established | State::CloseWait) {
            return;
        }
        network::watch_peer(socket);
        if client.is_done() {
            network::close(socket);
        }
    }

    /// If the buffers of all connections together are too large, gives up the connection with the largest
    /// (Redis does so under the name of maxmemory-clients).
    fn evict(&mut self, network: &mut Network) {
        let sizes = self.clients.iter().map(|client| client.as_ref().map_or(0, Client::memory));
        let (mut total, mut largest) = (0, (0, 0));
        for (index, size) in sizes.enumerate() {
            total += size;
            largest = largest.max((size, index));
        }
        if total <= self.bounds.client_memory {
            return;
        }
        let (_, index) = largest;
        network.socket(index).abort();
        self.clients[index] = None;
        self.connected -= 1;
        self.db.stats.evicted_clients += 1;
    }
}
