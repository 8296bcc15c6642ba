//! Accepting ports and host clients, and turning away those for whom there is no room: by a reset, so that
//! they learn of it at once, counted, and with a line in the log.

use std::fs::File;
use std::io;
use std::net::TcpListener;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Reactor, Token};
use crate::stream::{Listener, is_not_now, is_out_of_descriptors, reset_on_close};

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
                Err(error) => {
                    self.refused += 1;
                    tracing::warn!(%error, "port refused: cannot accept it");
                    let turned_away =
                        |listener: &Listener| listener.accept().map(|(stream, _)| stream.reset());
                    if !self.turn_away(&error, |reactor| turned_away(&reactor.listeners[index])) {
                        return self.pause(now_ns);
                    }
                }
            }
        }
    }

    pub(super) fn accept_clients(&mut self, now_ns: u64, index: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            let (listener, forward) = &self.forwards[index];
            let (forward, limit) = (*forward, self.options.max_connections);
            let error = match listener.accept() {
                Ok((client, peer)) if self.outlets.gateway.open_connections() >= limit => {
                    reset_on_close(&client);
                    self.outlets.gateway.refused();
                    tracing::warn!(%peer, %forward, limit, "client refused: --max-connections are open");
                    continue;
                }
                Ok((client, _)) => match self.outlets.gateway.accept(&self.epoll, client, forward.target) {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) if is_not_now(&error) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => error,
            };
            self.outlets.gateway.refused();
            tracing::warn!(%forward, %error, "client refused: cannot accept it");
            let turned_away =
                |listener: &TcpListener| listener.accept().map(|(client, _)| reset_on_close(&client));
            if !self.turn_away(&error, |reactor| turned_away(&reactor.forwards[index].0)) {
                return self.pause(now_ns);
            }
        }
    }

    /// With no descriptor left, gives up the spare one to accept a peer and reset it; whether that went well.
    /// Otherwise the peer would wait unanswered, and its listener would be ready for ever.
    fn turn_away(&mut self, error: &io::Error, accept: impl FnOnce(&Self) -> io::Result<()>) -> bool {
        if !is_out_of_descriptors(error) || self.spare.take().is_none() {
            return false;
        }
        let accepted = accept(self);
        self.spare = spare();
        accepted.is_ok()
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
