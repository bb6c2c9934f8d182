//! Sockets that a service manager has opened for us (`sd_listen_fds(3)`).
//!
//! The manager keeps them open: while tallyd restarts, the kernel holds what is sent to them.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use socket2::{SockRef, Type};

use crate::sys;

/// What a socket receives on, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Udp(SocketAddr),
    Tcp(SocketAddr),
    UnixDatagram(PathBuf),
    UnixStream(PathBuf),
    /// No listener receives on such a socket.
    Other,
}

impl Place {
    fn of(socket: &SockRef<'_>) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        let path = address.as_pathname().map(Path::to_owned);
        Ok(match (socket.r#type()?, address.as_socket(), path) {
            (Type::DGRAM, Some(address), _) => Self::Udp(address),
            (Type::DGRAM, _, Some(path)) => Self::UnixDatagram(path),
            (Type::STREAM, Some(address), _) if socket.is_listener()? => Self::Tcp(address),
            (Type::STREAM, _, Some(path)) if socket.is_listener()? => Self::UnixStream(path),
            _ => Self::Other,
        })
    }

    /// Whether a socket here is what a listener wants. One for all addresses serves a listener for
    /// one of them, which could not be bound beside it.
    fn serves(&self, wanted: &Self) -> bool {
        let covers = |own: &SocketAddr, wanted: &SocketAddr| {
            own == wanted || own.port() == wanted.port() && own.ip().is_unspecified()
        };
        match (self, wanted) {
            (Self::Udp(own), Self::Udp(wanted)) | (Self::Tcp(own), Self::Tcp(wanted)) => {
                covers(own, wanted)
            }
            (Self::UnixDatagram(own), Self::UnixDatagram(wanted))
            | (Self::UnixStream(own), Self::UnixStream(wanted)) => same_file(own, wanted),
            _ => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::UnixDatagram(path) => write!(f, "unixgram://{}", path.display()),
            Self::UnixStream(path) => write!(f, "unixstream://{}", path.display()),
            Self::Other => f.write_str("of another kind"),
        }
    }
}

/// Also by way of links: /var/run is /run.
fn same_file(a: &Path, b: &Path) -> bool {
    let inode = |path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    a == b || inode(a).is_some_and(|a| inode(b) == Some(a))
}

/// Sockets that no listener has taken yet.
#[derive(Debug, Default)]
pub struct Passed(Vec<(Place, String, OwnedFd)>);

impl Passed {
    /// Takes the sockets that were passed to this process. To be called first of all, while the
    /// process has one thread.
    ///
    /// # Errors
    /// When the manager's variables do not fit what was passed.
    pub fn receive() -> anyhow::Result<Self> {
        let sockets = sys::passed_sockets().context("LISTEN_FDS: cannot take sockets over")?;
        Self::new(sockets)
    }

    /// Sockets with the names that the manager knows them by.
    ///
    /// # Errors
    /// When one is no socket.
    pub fn new(sockets: Vec<(String, OwnedFd)>) -> anyhow::Result<Self> {
        let examine = |(name, fd): (String, OwnedFd)| {
            let place = Place::of(&SockRef::from(&fd))
                .with_context(|| format!("LISTEN_FDS: {name:?} is no socket"))?;
            anyhow::Ok((place, name, fd))
        };
        Ok(Self(sockets.into_iter().map(examine).collect::<Result<_, _>>()?))
    }

    /// A socket for this listener: first one at its very address.
    pub(super) fn take(&mut self, wanted: &Place) -> Option<OwnedFd> {
        let exact = self.0.iter().position(|(place, ..)| place == wanted);
        let found = exact.or_else(|| self.0.iter().position(|(place, ..)| place.serves(wanted)))?;
        let (place, name, fd) = self.0.remove(found);
        tracing::info!("taking over {place} from the service manager ({name})");
        Some(fd)
    }

    pub(super) fn has(&self, wanted: &Place) -> bool {
        self.0.iter().any(|(place, ..)| place.serves(wanted))
    }

    /// Closes what no listener has taken.
    pub(super) fn close(self) {
        for (place, name, _) in self.0 {
            tracing::warn!(
                "the service manager passed a socket that no listener asks for, {place} ({name}): \
                 it is closed and what is sent there is lost; add it to intake.listeners, or \
                 remove it from the unit"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn place(socket: &impl std::os::fd::AsFd) -> Place {
        Place::of(&SockRef::from(socket)).unwrap()
    }

    #[test]
    fn sockets_are_known_by_kind_and_address() {
        let folder = tempfile::tempdir().unwrap();
        let (gram, stream) = (folder.path().join("gram"), folder.path().join("stream"));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(place(&udp), Place::Udp(udp.local_addr().unwrap()));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(place(&tcp), Place::Tcp(tcp.local_addr().unwrap()));
        let unix = UnixDatagram::bind(&gram).unwrap();
        assert_eq!(place(&unix), Place::UnixDatagram(gram));
        assert_eq!(place(&UnixListener::bind(&stream).unwrap()), Place::UnixStream(stream));
        let connection = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert_eq!(place(&connection), Place::Other);
        assert_eq!(place(&UnixDatagram::unbound().unwrap()), Place::Other);
    }

    #[test]
    fn a_listener_takes_what_serves_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dsd.socket");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        let udp = |address: &str| Place::Udp(address.parse().unwrap());
        let tcp = |address: &str| Place::Tcp(address.parse().unwrap());
        let gram = |path: &Path| Place::UnixDatagram(path.to_owned());
        for (passed, wanted, serves) in [
            (udp("127.0.0.1:1"), udp("127.0.0.1:1"), true),
            (udp("[::]:1"), udp("127.0.0.1:1"), true),
            (udp("0.0.0.0:1"), udp("[::]:1"), true),
            (udp("127.0.0.1:1"), udp("[::]:1"), false),
            (udp("127.0.0.1:1"), udp("127.0.0.1:2"), false),
            (udp("[::]:1"), udp("[::]:2"), false),
            (udp("127.0.0.1:1"), tcp("127.0.0.1:1"), false),
            (tcp("127.0.0.1:1"), tcp("127.0.0.1:1"), true),
            (gram(&path), gram(&path), true),
            (gram(&path), gram(&link.join("dsd.socket")), true),
            (gram(&path), gram(&folder.path().join("other")), false),
            (gram(&path), Place::UnixStream(path.clone()), false),
            (Place::Other, Place::Other, false),
        ] {
            assert_eq!(passed.serves(&wanted), serves, "{passed} for {wanted}");
        }
    }

    #[test]
    fn the_very_address_comes_first_and_each_is_taken_once() {
        let any = UdpSocket::bind("0.0.0.0:0").unwrap();
        let all = any.local_addr().unwrap();
        let own = SocketAddr::from(([127, 0, 0, 1], all.port()));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, Type::DGRAM, None).unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        Passed::new(vec![("file".to_owned(), file.into())]).unwrap_err();
        // Two sockets of one port need the kernel's consent; the place is all that counts here.
        let mut passed = Passed(vec![
            (Place::Udp(all), "all".to_owned(), any.into()),
            (Place::Udp(own), "own".to_owned(), socket.into()),
        ]);
        assert!(passed.has(&Place::Udp(own)));
        let mut taken = || {
            let fd = passed.take(&Place::Udp(own))?;
            Some(SockRef::from(&fd).local_addr().unwrap().as_socket().unwrap().port())
        };
        assert_eq!([taken(), taken(), taken()], [Some(0), Some(all.port()), None]);
        assert!(!passed.has(&Place::Udp(own)));
    }
}
