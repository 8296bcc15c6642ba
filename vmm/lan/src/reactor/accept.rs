//! Accepting ports and host clients, and turning away those for whom there is no room: by a reset, so that
//! they learn of it at once, counted, and with a line in the log.

use std::fs::File;
use std::io;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Reactor, Token};
use crate::stream::{is_not_now, is_out_of_descriptors, reset_on_close};

/// Connections accepted from one listener before other work gets its turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long nothing is accepted after the host has refused even to turn a peer away.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;

/// A descriptor to be without.
pub(super) fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Reactor {
    pub(super) fn accept_ports(&mut self, now_ns: u64, index: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listeners[index].accept() {
                Ok((stream, peer)) => self.add_port(stream, peer),
                Err(error) if is_not_now(&error) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => match self.turn_away(&error, |reactor| reactor.reset_port(index)) {
                    Ok(()) => self.refused += 1,
                    Err(error) if is_not_now(&error) => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept ports");
                        return self.pause(now_ns);
                    }
                },
            }
        }
    }

    pub(super) fn accept_clients(&mut self, now_ns: u64, index: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            let (listener, forward) = &self.forwards[index];
            let (forward, limit) = (*forward, self.options.max_connections);
            match listener.accept() {
                Ok((client, peer)) if self.outlets.gateway.open_connections() >= limit => {
                    reset_on_close(&client);
                    self.outlets.gateway.refused();
                    tracing::warn!(%peer, %forward, limit, "client refused: --max-connections are open");
                }
                Ok((client, peer)) => {
                    if let Err(error) = self.outlets.gateway.accept(&self.epoll, client, forward.target) {
                        self.outlets.gateway.refused();
                        tracing::warn!(%peer, %forward, %error, "client refused");
                    }
                }
                Err(error) if is_not_now(&error) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => match self.turn_away(&error, |reactor| reactor.reset_client(index)) {
                    Ok(()) => self.outlets.gateway.refused(),
                    Err(error) if is_not_now(&error) => return,
                    Err(error) => {
                        tracing::warn!(%forward, %error, "cannot accept clients");
                        return self.pause(now_ns);
                    }
                },
            }
        }
    }

    fn reset_port(&self, index: usize) -> io::Result<()> {
        self.listeners[index].accept().map(|(stream, _)| stream.reset())
    }

    fn reset_client(&self, index: usize) -> io::Result<()> {
        self.forwards[index].0.accept().map(|(client, _)| reset_on_close(&client))
    }

    /// After an `accept` that failed for want of a descriptor, gives up the spare one to accept a peer and
    /// reset it. Otherwise the peer would wait unanswered, and its listener would be ready for ever. An
    /// error that says "not now": no peer was there.
    fn turn_away(
        &mut self,
        error: &io::Error,
        reset_one: impl FnOnce(&Self) -> io::Result<()>,
    ) -> io::Result<()> {
        if !is_out_of_descriptors(error) || self.spare.take().is_none() {
            self.spare = self.spare.take().or_else(spare);
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        let result = reset_one(self);
        self.spare = spare();
        if result.is_ok() {
            tracing::warn!(%error, "peer refused: it was reset");
        }
        result
    }

    fn pause(&mut self, now_ns: u64) {
        self.paused = Some(now_ns + ACCEPT_PAUSE_NS);
        self.watch_listeners(EpollFlags::empty());
    }

    pub(super) fn watch_listeners(&self, flags: EpollFlags) {
        let of_port = |index: usize| EpollEvent::new(flags, Token::Listener(index as u64).pack());
        let of_client = |index: usize| EpollEvent::new(flags, Token::Forward(index as u64).pack());
        let failed = |error: nix::errno::Errno| tracing::warn!(%error, "cannot watch a listener");
        for (index, listener) in self.listeners.iter().enumerate() {
            self.epoll.modify(listener, &mut of_port(index)).unwrap_or_else(failed);
        }
        for (index, (listener, _)) in self.forwards.iter().enumerate() {
            self.epoll.modify(listener, &mut of_client(index)).unwrap_or_else(failed);
        }
    }
}
