//! What the kernel command line says.

use alloc::format;
use alloc::string::String;

/// The guest's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Its IPv4 address.
    pub ip: [u8; 4],
    /// Bits of its network's prefix.
    pub prefix: u8,
    /// Its default gateway.
    pub gateway: [u8; 4],
    /// TCP port to listen on.
    pub port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self { ip: [10, 77, 0, 2], prefix: 24, gateway: [10, 77, 0, 1], port: 6379 }
    }
}

impl Config {
    /// Reads `ip=A.B.C.D/N gw=A.B.C.D port=P`, each optional. Words with another key are left alone: a
    /// command line may hold words for others. The error says which word is wrong, and what is right.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut config = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            match key {
                "ip" => {
                    let parsed = value.split_once('/').and_then(|(ip, prefix)| {
                        let prefix = prefix.parse().ok().filter(|bits| (1..=32).contains(bits))?;
                        Some((address(ip)?, prefix))
                    });
                    let Some((ip, prefix)) = parsed else {
                        return Err(format!("{word}: want ip=A.B.C.D/BITS"));
                    };
                    config.ip = ip;
                    config.prefix = prefix;
                }
                "gw" => {
                    config.gateway = address(value).ok_or_else(|| format!("{word}: want gw=A.B.C.D"))?;
                }
                "port" => {
                    let port = value.parse().ok().filter(|&port| port != 0);
                    config.port = port.ok_or_else(|| format!("{word}: want port=1..65535"))?;
                }
                _ => {}
            }
        }
        Ok(config)
    }
}

fn address(text: &str) -> Option<[u8; 4]> {
    text.parse::<core::net::Ipv4Addr>().ok().map(|address| address.octets())
}
