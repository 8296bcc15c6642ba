//! virtio-console (virtio 1.2, 5.3): one port, no features: a receive and a transmit queue, `hvc0` in Linux.
//!
//! What the guest sends leaves as `Output::Console`, as from the serial port. Console input goes to one of
//! the two, as the configuration says; what the guest has no buffer for yet is kept here.

use std::collections::VecDeque;

use logchannel::Output;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_memory::GuestMemory;

use super::mmio::{COMMON_FEATURES, Effect, Identity, Transport};
use super::ring::{Broken, Chain, Ring, gather, scatter};

/// Number of the receive queue.
const RX_QUEUE: u32 = 0;
/// Number of the transmit queue.
const TX_QUEUE: u32 = 1;
/// How long after its driver set the device up input waits: Linux throws away what comes before it has
/// entered the port in its list, which is after it put buffers into the queue, and nothing tells when.
pub(crate) const SETTLING_NS: u64 = 1_000_000_000;
/// Most input that is kept for a guest without buffers.
const MAX_PENDING: usize = 4096;
/// Most bytes of one output, and of what the guest sends in one buffer: the rest of that is dropped. Linux
/// sends at most so much.
const MAX_SENT: usize = 32 << 10;
/// Columns, rows, number of ports, emergency write: all there by features only, none of which is offered.
const CONFIG: [u8; 12] = [0; 12];

const IDENTITY: Identity =
    Identity { name: "virtio-console", device_id: VIRTIO_ID_CONSOLE, features: COMMON_FEATURES };

/// The console device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Console {
    transport: Transport,
    rx: Ring,
    tx: Ring,
    takes_input: bool,
    pending: VecDeque<u8>,
    /// When the driver was first seen to be there.
    set_up_ns: Option<u64>,
}

impl Console {
    /// A console; with `takes_input`, the machine's console input comes here.
    pub(crate) fn new(takes_input: bool) -> Self {
        let (rx, tx) = (Ring::new(), Ring::new());
        let (transport, pending) = (Transport::default(), VecDeque::new());
        Self { transport, rx, tx, takes_input, pending, set_up_ns: None }
    }

    /// As at power-on.
    pub(crate) fn reset(&mut self) {
        *self = Self { transport: self.transport.after_reset(), ..Self::new(self.takes_input) };
    }

    /// The level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.transport.line()
    }

    /// Whether console input comes here.
    pub(crate) fn takes_input(&self) -> bool {
        self.takes_input
    }

    /// Whether the guest's driver takes input.
    pub(crate) fn listens(&self, now_ns: u64) -> bool {
        self.is_set_up() && self.set_up_ns.is_some_and(|at| now_ns >= at.saturating_add(SETTLING_NS))
    }

    fn is_set_up(&self) -> bool {
        self.transport.running() && self.rx.ready()
    }

    /// Takes note, after a write of the driver, since when it is there.
    pub(crate) fn note_driver(&mut self, now_ns: u64) {
        self.set_up_ns = if self.is_set_up() { self.set_up_ns.or(Some(now_ns)) } else { None };
    }

    /// How many bytes of input there is room for.
    pub(crate) fn room(&self) -> usize {
        MAX_PENDING.saturating_sub(self.pending.len())
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.read(&IDENTITY, &[&self.rx, &self.tx], &CONFIG, offset, data);
    }

    pub(crate) fn write<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
        offset: u64,
        data: &[u8],
    ) {
        let rings = &mut [&mut self.rx, &mut self.tx];
        match self.transport.write(mem, &IDENTITY, rings, offset, data) {
            Effect::Notify(RX_QUEUE) => self.deliver(mem, scratch),
            Effect::Notify(TX_QUEUE) => self.send(mem, scratch, outputs),
            _ => {}
        }
    }

    /// Takes input for the guest.
    pub(crate) fn receive<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain, bytes: &[u8]) {
        self.pending.extend(bytes.iter().take(self.room()));
        self.deliver(mem, scratch);
    }

    /// Services both queues.
    pub(crate) fn service<M: GuestMemory>(
        &mut self,
        mem: &M,
        scratch: &mut Chain,
        outputs: &mut VecDeque<Output>,
    ) {
        self.deliver(mem, scratch);
        self.send(mem, scratch, outputs);
    }

    fn deliver<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain) {
        if self.pending.is_empty() || !self.transport.running() || !self.rx.has_chain(mem) {
            return;
        }
        if let Err(reason) = self.try_deliver(mem, scratch) {
            self.transport.break_down(&IDENTITY, reason);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the smaller one is a limit of ours")]
    fn try_deliver<M: GuestMemory>(&mut self, mem: &M, chain: &mut Chain) -> Result<(), Broken> {
        for _ in 0..self.rx.size() {
            if self.pending.is_empty() || !self.rx.pop(mem, chain)? {
                break;
            }
            let len = (chain.writable_len.min(MAX_PENDING as u64) as usize).min(self.pending.len());
            let bytes: Vec<u8> = self.pending.drain(..len).collect();
            scatter(mem, &chain.writable, 0, &bytes)?;
            self.rx.push_used(mem, chain.head, len as u32)?;
        }
        self.rx.ask_for_notification(mem)?;
        if self.rx.wants_interrupt(mem)? {
            self.transport.interrupt_used();
        }
        Ok(())
    }

    fn send<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain, outputs: &mut VecDeque<Output>) {
        if !self.transport.running() || !self.tx.has_chain(mem) {
            return;
        }
        let mut sent = Vec::new();
        let result = self.try_send(mem, scratch, &mut sent, outputs);
        if !sent.is_empty() {
            outputs.push_back(Output::Console(sent));
        }
        if let Err(reason) = result {
            self.transport.break_down(&IDENTITY, reason);
        }
    }

    /// What is sent gathers in `sent`, and leaves when that is full.
    #[allow(clippy::cast_possible_truncation, reason = "the smaller one is a limit of ours")]
    fn try_send<M: GuestMemory>(
        &mut self,
        mem: &M,
        chain: &mut Chain,
        sent: &mut Vec<u8>,
        outputs: &mut VecDeque<Output>,
    ) -> Result<(), Broken> {
        for _ in 0..self.tx.size() {
            if !self.tx.pop(mem, chain)? {
                break;
            }
            let mut bytes = vec![0; chain.readable_len.min(MAX_SENT as u64) as usize];
            gather(mem, &chain.readable, 0, &mut bytes)?;
            self.tx.push_used(mem, chain.head, 0)?;
            if sent.len() + bytes.len() > MAX_SENT {
                outputs.push_back(Output::Console(std::mem::take(sent)));
            }
            sent.extend(bytes);
        }
        self.tx.ask_for_notification(mem)?;
        if self.tx.wants_interrupt(mem)? {
            self.transport.interrupt_used();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
