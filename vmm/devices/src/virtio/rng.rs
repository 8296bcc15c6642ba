//! virtio-rng (virtio 1.2, 5.4): one queue of buffers that the guest wants filled with entropy.
//!
//! Entropy is no function of the machine's state: it enters as `Trap` events of the log, eight bytes each, so
//! a replica fills the same buffers with the same bytes at the same positions. The device says how many it
//! wants; whoever owns the machine offers that many as soon as it sees so.
//!
//! ```text
//!  guest: buffer, notify ─▶ request kept ─▶ wanted() words ─▶ entropy() each ─▶ all there: buffer, interrupt
//! ```

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::GuestMemory;

use super::mmio::{COMMON_FEATURES, Effect, Identity, Transport};
use super::ring::{Broken, Chain, Ring, Segment, scatter};

/// Most bytes that one buffer gets; the guest asks again for more. Linux asks for 64.
const MAX_ANSWER: u64 = 64;
/// Bytes of one `Trap` event.
const WORD: usize = 8;

const IDENTITY: Identity =
    Identity { name: "virtio-rng", device_id: VIRTIO_ID_RNG, features: COMMON_FEATURES };

/// A buffer that waits for entropy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    head: u16,
    buffers: Vec<Segment>,
    len: usize,
    /// What has come of it.
    gathered: Vec<u8>,
}

/// The entropy device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rng {
    transport: Transport,
    ring: Ring,
    request: Option<Request>,
}

impl Rng {
    pub(crate) fn new() -> Self {
        Self { transport: Transport::default(), ring: Ring::new(), request: None }
    }

    /// As at power-on.
    pub(crate) fn reset(&mut self) {
        *self = Self { transport: self.transport.after_reset(), ..Self::new() };
    }

    /// The level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.transport.line()
    }

    /// How many words the guest waits for.
    pub(crate) fn wanted(&self) -> usize {
        self.request.as_ref().map_or(0, |request| (request.len - request.gathered.len()).div_ceil(WORD))
    }

    /// Whether a restored state can be one that this device reached.
    pub(crate) fn consistent(&self) -> bool {
        self.request
            .as_ref()
            .is_none_or(|request| request.gathered.len() < request.len && request.len as u64 <= MAX_ANSWER)
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.read(&IDENTITY, &[&self.ring], &[], offset, data);
    }

    pub(crate) fn write<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain, offset: u64, data: &[u8]) {
        match self.transport.write(mem, &IDENTITY, &mut [&mut self.ring], offset, data) {
            Effect::Notify(0) => self.service(mem, scratch),
            Effect::Reset => self.request = None,
            _ => {}
        }
    }

    /// Takes the guest's next buffer, if none waits.
    pub(crate) fn service<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain) {
        if !self.transport.running() || self.request.is_some() || !self.ring.has_chain(mem) {
            return;
        }
        if let Err(reason) = self.try_service(mem, scratch) {
            self.transport.break_down(&IDENTITY, reason);
        }
    }

    fn try_service<M: GuestMemory>(&mut self, mem: &M, chain: &mut Chain) -> Result<(), Broken> {
        let mut returned = false;
        for _ in 0..self.ring.size() {
            if !self.ring.pop(mem, chain)? {
                break;
            }
            let len = chain.writable_len.min(MAX_ANSWER) as usize;
            if len > 0 {
                let buffers = chain.writable.clone();
                self.request = Some(Request { head: chain.head, buffers, len, gathered: Vec::new() });
                break;
            }
            self.ring.push_used(mem, chain.head, 0)?;
            returned = true;
        }
        self.ring.ask_for_notification(mem)?;
        self.interrupt_if(mem, returned)
    }

    fn interrupt_if<M: GuestMemory>(&mut self, mem: &M, returned: bool) -> Result<(), Broken> {
        if returned && self.ring.wants_interrupt(mem)? {
            self.transport.interrupt_used();
        }
        Ok(())
    }

    /// Takes one word; the last one that a buffer waits for returns it to the guest.
    pub(crate) fn entropy<M: GuestMemory>(&mut self, mem: &M, scratch: &mut Chain, value: u64) {
        let Some(request) = &mut self.request else { return };
        let rest = request.len - request.gathered.len();
        request.gathered.extend(&value.to_le_bytes()[..rest.min(WORD)]);
        if request.gathered.len() < request.len {
            return;
        }
        let request = self.request.take().expect("just seen");
        if self.transport.running()
            && self.ring.ready()
            && let Err(reason) = self.answer(mem, &request)
        {
            self.transport.break_down(&IDENTITY, reason);
        }
        self.service(mem, scratch);
    }

    #[allow(clippy::cast_possible_truncation, reason = "a request is at most as long as is gathered at once")]
    fn answer<M: GuestMemory>(&mut self, mem: &M, request: &Request) -> Result<(), Broken> {
        scatter(mem, &request.buffers, 0, &request.gathered)?;
        self.ring.push_used(mem, request.head, request.len as u32)?;
        self.interrupt_if(mem, true)
    }
}

#[cfg(test)]
#[path = "rng_tests.rs"]
mod tests;
