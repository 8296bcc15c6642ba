//! Addresses as people write them: `HOST:PORT`, an IPv6 address in brackets. A host is a name or an address;
//! a link-local address has its interface behind a percent sign: `[fe80::1%eth0]:7700`.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs as _};

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address: {why}; write HOST:PORT, an IPv6 address as [::1]:PORT")]
pub struct AddressError {
    text: String,
    why: &'static str,
}

/// Host and port of `text`; the host without brackets. Looks nothing up.
pub fn split(text: &str) -> Result<(&str, u16), AddressError> {
    let fails = |why| AddressError { text: text.chars().take(300).collect(), why };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| fails("it has no port"))?;
    let port = match port.bytes().all(|byte| byte.is_ascii_digit()) {
        true => port.parse().map_err(|_| fails("its port is not 0 to 65535"))?,
        false => return Err(fails("its port is no number")),
    };
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or_else(|| fails("a bracket is not closed"))?;
        let (address, scope) = inner.split_once('%').unwrap_or((inner, "1"));
        let is_scope =
            !scope.is_empty() && scope.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        return match address.parse::<Ipv6Addr>() {
            Ok(_) if is_scope => Ok((inner, port)),
            _ => Err(fails("in the brackets is no IPv6 address")),
        };
    }
    let is_name = |c: char| c.is_alphanumeric() || "._-".contains(c);
    match host {
        "" => Err(fails("it has no host")),
        _ if host.contains(':') => Err(fails("an IPv6 address needs brackets")),
        _ if host.chars().all(is_name) => Ok((host, port)),
        _ => Err(fails("its host is no name")),
    }
}

/// An address to connect to, unchanged, if `text` is one: for options of a command line.
pub fn peer(text: &str) -> Result<String, AddressError> {
    match split(text)? {
        (_, 0) => Err(AddressError { text: text.into(), why: "nobody can be reached at port 0" }),
        _ => Ok(text.to_owned()),
    }
}

/// An address to listen at, unchanged, if `text` is one; port 0 takes any.
pub fn listen(text: &str) -> Result<String, AddressError> {
    split(text).map(|_| text.to_owned())
}

/// The socket addresses of `text`, at least one. Looks names up.
pub fn resolve(text: &str) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = split(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
    }
}

#[cfg(test)]
#[path = "address_tests.rs"]
mod tests;
