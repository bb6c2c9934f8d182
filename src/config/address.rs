//! Addresses as they are written in settings.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a further listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `udp://HOST:PORT`, as HOST:PORT.
    Udp(String),
    /// `tcp://HOST:PORT`, as HOST:PORT.
    Tcp(String),
    /// `unixgram:///PATH`.
    UnixDatagram(PathBuf),
    /// `unixstream:///PATH`.
    UnixStream(PathBuf),
}

/// Longest path that fits a socket address of the system, in bytes.
const SOCKET_PATH_MAX: usize = 107;

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "udp://HOST:PORT, tcp://HOST:PORT, unixgram:///PATH or unixstream:///PATH";
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| format!("expected {expected}"))?;
        match scheme {
            "udp" => host_port(rest).map(|_| Self::Udp(rest.to_owned())),
            "tcp" => host_port(rest).map(|_| Self::Tcp(rest.to_owned())),
            "unixgram" => socket_path(rest).map(Self::UnixDatagram),
            "unixstream" => socket_path(rest).map(Self::UnixStream),
            _ => Err(format!("expected {expected}")),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::UnixDatagram(path) => write!(f, "unixgram://{}", path.display()),
            Self::UnixStream(path) => write!(f, "unixstream://{}", path.display()),
        }
    }
}

/// Splits HOST:PORT. An IPv6 address stands in square brackets, which are removed; names are not
/// looked up.
pub fn host_port(text: &str) -> Result<(&str, u16), String> {
    let expected = "expected HOST:PORT, such as 127.0.0.1:8125 or [::1]:8125";
    let (host, port) = text.rsplit_once(':').ok_or(expected)?;
    let port = port.parse().map_err(|_| expected)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
        None if is_host(host) => host,
        Some(_) | None => return Err(expected.to_owned()),
    };
    Ok((host, port))
}

/// Whether a text can be a host name or an IPv4 address.
pub fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Checks the path of a Unix socket: absolute, and short enough for the system.
pub fn socket_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err("expected an absolute path".to_owned());
    }
    if text.len() > SOCKET_PATH_MAX {
        return Err(format!("the path of a socket has at most {SOCKET_PATH_MAX} bytes"));
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, expected) in [
            ("udp://127.0.0.1:8125", ListenAddress::Udp("127.0.0.1:8125".to_owned())),
            ("tcp://[::1]:0", ListenAddress::Tcp("[::1]:0".to_owned())),
            ("unixgram:///run/a b.sock", ListenAddress::UnixDatagram("/run/a b.sock".into())),
            ("unixstream:///x", ListenAddress::UnixStream("/x".into())),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address, expected);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn wrong_addresses_are_refused() {
        let long = format!("unixgram:///{}", "x".repeat(107));
        for text in [
            "",
            "8125",
            "127.0.0.1:8125",
            "udp://",
            "udp://:8125",
            "udp://::1:8125",
            "udp://[127.0.0.1]:8125",
            "udp://host:65536",
            "udp://host:-1",
            "udp://ho st:1",
            "http://host:1",
            "unix:///x",
            "unixgram://x",
            "unixstream://",
            &long,
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn hosts_and_ports_are_split() {
        assert_eq!(host_port("localhost:80"), Ok(("localhost", 80)));
        assert_eq!(host_port("[fe80::1]:80"), Ok(("fe80::1", 80)));
    }
}
