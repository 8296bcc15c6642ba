//! Names of the places where a network is: parsed from and printed for the command line.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a network is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `tcp:HOST:PORT`: a switch's port over TCP.
    Tcp(SocketAddr),
    /// `unix:PATH`: a switch's port over a Unix stream socket.
    Unix(PathBuf),
    /// `tap:NAME`: a TAP device of this host that exists (only to connect to; needs CAP_NET_ADMIN).
    Tap(String),
    /// `tap:NAME,create`: the same, made if it does not exist, and gone with the process then.
    NewTap(String),
}

/// The text names no endpoint or forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not an endpoint.
    #[error(
        "{0:?} is no network endpoint: write tcp:HOST:PORT, unix:PATH or tap:NAME; an IPv6 address in \
         brackets, as [::1]:7800"
    )]
    Endpoint(String),
    /// The name of a host that has no address.
    #[error("{host:?} has no address: {why}")]
    Host {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// Not a forward.
    #[error(
        "{0:?} is no forward: write HOST:PORT=GUEST_ADDRESS:PORT, as 127.0.0.1:6379=10.77.0.2:6379; a host's \
         IPv6 address in brackets, as [::1]:6379, the guest's is IPv4"
    )]
    Forward(String),
}

/// An address with its port; a host's name is looked up. None when the text is neither.
fn address(text: &str) -> Result<Option<SocketAddr>, EndpointError> {
    if let Ok(address) = text.parse() {
        return Ok(Some(address));
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Ok(None) };
    // An address with a zone, as [fe80::1%eth0], is the resolver's to read.
    let zoned =
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).filter(|host| host.contains('%'));
    let named = zoned.is_some() || !host.is_empty() && !host.contains([':', '/', '[', '=']);
    let host = zoned.unwrap_or(host);
    let (true, Ok(port)) = (named, port.parse::<u16>()) else { return Ok(None) };
    let fails = |why: String| EndpointError::Host { host: host.to_owned(), why };
    let mut found = (host, port).to_socket_addrs().map_err(|error| fails(error.to_string()))?;
    found.next().map(Some).ok_or_else(|| fails("the resolver found none".into()))
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// The prefix may be left out of a host with a port, and of a path that contains a slash.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Endpoint(text.to_owned());
        if let Some(host) = text.strip_prefix("tcp:") {
            return address(host)?.map(Endpoint::Tcp).ok_or_else(bad);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(bad()) } else { Ok(Endpoint::Unix(path.into())) };
        }
        if let Some(name) = text.strip_prefix("tap:") {
            return match name.strip_suffix(",create") {
                Some("") => Err(bad()),
                Some(name) => Ok(Endpoint::NewTap(name.to_owned())),
                None if name.is_empty() => Err(bad()),
                None => Ok(Endpoint::Tap(name.to_owned())),
            };
        }
        match address(text)? {
            Some(address) => Ok(Endpoint::Tcp(address)),
            None if text.contains('/') => Ok(Endpoint::Unix(text.into())),
            None => Err(bad()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tap(name) => write!(f, "tap:{name}"),
            Endpoint::NewTap(name) => write!(f, "tap:{name},create"),
        }
    }
}

/// A host TCP port that leads to a guest: each connection accepted on `listen` becomes one to `target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where the host listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The guest's address and port.
    pub target: SocketAddrV4,
}

impl FromStr for Forward {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Forward(text.to_owned());
        let (listen, target) = text.split_once('=').ok_or_else(bad)?;
        let listen = address(listen)?.ok_or_else(bad)?;
        let forward = Self { listen, target: target.parse().map_err(|_| bad())? };
        if forward.target.port() == 0 { Err(bad()) } else { Ok(forward) }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.listen, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_as_they_parse() {
        for text in
            ["tcp:127.0.0.1:7000", "unix:/run/lan.sock", "tap:tap0", "tap:tap0,create", "tcp:[::1]:80"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("127.0.0.1:0".parse::<Endpoint>().unwrap().to_string(), "tcp:127.0.0.1:0");
        assert_eq!("./lan.sock".parse::<Endpoint>().unwrap(), Endpoint::Unix("./lan.sock".into()));
        for text in [
            "",
            "tcp:",
            "unix:",
            "tap:",
            "tap:,create",
            "localhost",
            "tcp:host:port",
            ":1",
            "::1:7800",
            "[::1]",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn hosts_may_be_named() {
        let Endpoint::Tcp(address) = "localhost:7800".parse().unwrap() else { panic!("it is TCP") };
        assert!(address.ip().is_loopback() && address.port() == 7800);
        assert!("localhost:0=10.77.0.2:80".parse::<Forward>().unwrap().listen.ip().is_loopback());
    }

    #[test]
    fn forwards_print_as_they_parse() {
        for text in ["127.0.0.1:0=10.77.0.2:6379", "[::1]:0=10.77.0.2:6379"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        for text in [
            "::1:80=10.77.0.2:80",
            "[::1]:80=[fe80::2]:80",
            "",
            "127.0.0.1:0",
            "127.0.0.1:0=10.77.0.2",
            "127.0.0.1:0=10.77.0.2:0",
            "=:1",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text:?}");
        }
    }
}
