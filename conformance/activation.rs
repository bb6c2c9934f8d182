//! Sockets that a service manager keeps open: what is sent while tallyd restarts is not lost.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::process::{Launch, Tallyd};
use super::received::Received;
use super::test_intake::Intake;

/// What the manager holds: a UDP and a Unix datagram socket.
struct Manager {
    udp: UdpSocket,
    unix: UnixDatagram,
    address: SocketAddr,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dsd.socket");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&udp).set_recv_buffer_size(4 << 20).unwrap();
        let unix = UnixDatagram::bind(&path).unwrap();
        let address = udp.local_addr().unwrap();
        Self { udp, unix, address, path, _folder: folder }
    }

    fn pass(&self) -> [OwnedFd; 2] {
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        [copy(self.udp.as_fd()), copy(self.unix.as_fd())]
    }

    /// Starts a process on these sockets.
    fn start(&self, intake: &Intake) -> Tallyd {
        let unix = format!("unixgram://{}", self.path.display());
        let launch = Launch::new().to(intake).calm();
        let launch = launch.listen(&[&format!("udp://{}", self.address), &unix]);
        launch.passing(self.pass()).start()
    }

    /// Datagrams that the UDP socket had no room for.
    fn drops(&self) -> u32 {
        tallyd::sys::buffer(self.udp.as_fd()).unwrap().drops
    }
}

/// The sum of a counter at the intake.
fn sum(intake: &Intake, name: &str) -> f64 {
    let received = Received::of(&intake.requests());
    received.named(name).iter().map(|point| point.value).sum()
}

/// Sends one datagram after the other until told to stop, and returns how many.
fn keep_sending(
    stop: &Arc<AtomicBool>,
    pause: Duration,
    send: impl Fn() + Send + 'static,
) -> std::thread::JoinHandle<u32> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut sent = 0;
        while !stop.load(Relaxed) {
            send();
            sent += 1;
            std::thread::sleep(pause);
        }
        sent
    })
}

#[test]
fn a_restart_loses_no_datagram() {
    let (manager, intake) = (Manager::new(), Intake::start());
    let stop = Arc::<AtomicBool>::default();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect(manager.address).unwrap();
    // A pace at which the socket's buffer holds what comes in a second or two.
    let udp = keep_sending(&stop, Duration::from_millis(4), move || {
        udp.send(b"udp:1|c").unwrap();
    });
    // This one waits while its queue is full.
    let unix = UnixDatagram::unbound().unwrap();
    unix.connect(&manager.path).unwrap();
    let unix = keep_sending(&stop, Duration::from_micros(100), move || {
        unix.send(b"unix:1|c").unwrap();
    });
    for _ in 0..3 {
        let tallyd = manager.start(&intake);
        tallyd.wait_until("something comes", |tallyd| {
            ["udp", "unixgram"].iter().all(|scheme| {
                tallyd.figure("tallyd_listener_samples_total", &format!("{scheme}://")) > 20.0
            })
        });
        let finished = tallyd.stop();
        assert!(finished.stderr.contains("taking over udp://"), "{}", finished.stderr);
        assert!(manager.path.exists(), "the file is the manager's");
    }
    let last = manager.start(&intake);
    stop.store(true, Relaxed);
    let sent = [udp.join().unwrap(), unix.join().unwrap()].map(f64::from);
    last.stop();
    assert_eq!(manager.drops(), 0);
    assert_eq!([sum(&intake, "udp"), sum(&intake, "unix")], sent);
}

#[test]
fn what_was_sent_after_a_kill_is_taken_by_the_next_process() {
    let (manager, intake) = (Manager::new(), Intake::start());
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unix = UnixDatagram::unbound().unwrap();
    unix.connect(&manager.path).unwrap();
    unix.set_nonblocking(true).unwrap();
    let tallyd = manager.start(&intake);
    udp.send_to(b"before:1|c", manager.address).unwrap();
    tallyd.wait_until("it is read", |tallyd| {
        tallyd.figure("tallyd_listener_samples_total", "udp://") == 1.0
    });
    tallyd.signal("KILL");
    tallyd.wait();
    for _ in 0..100 {
        udp.send_to(b"udp:1|c", manager.address).unwrap();
    }
    let fitting = (0..100).take_while(|_| unix.send(b"unix:1|c").is_ok()).count();
    assert!(fitting > 0);
    manager.start(&intake).stop();
    assert_eq!([sum(&intake, "udp"), sum(&intake, "unix")], [100.0, fitting as f64]);
}

#[test]
fn connections_wait_for_the_next_process() {
    let intake = Intake::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream.socket");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let address = tcp.local_addr().unwrap();
    // Nobody accepts yet.
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(b"tcp:1|c\ntcp:2|c\n").unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"\x08\0\0\0unix:4|c").unwrap();
    let listeners = [format!("tcp://{address}"), format!("unixstream://{}", path.display())];
    let launch = Launch::new().to(&intake).calm().listen(&[&listeners[0], &listeners[1]]);
    let tallyd = launch.passing([tcp.into(), unix.into()]).start();
    tallyd.wait_until("both are read", |tallyd| {
        tallyd.figure("tallyd_listener_samples_total", "") == 3.0
    });
    tallyd.stop();
    assert_eq!([sum(&intake, "tcp"), sum(&intake, "unix")], [3.0, 4.0]);
    assert!(path.exists());
}

#[test]
fn what_no_listener_asks_for_is_closed_and_named() {
    let manager = Manager::new();
    let unix = format!("unixgram://{}", manager.path.display());
    let tallyd = Launch::new().listen(&[&unix]).passing(manager.pass()).start();
    let udp = format!(
        "the service manager passed a socket that no listener asks for, udp://{} (first): it is \
         closed",
        manager.address
    );
    tallyd.wait_for_stderr(&udp);
    assert_eq!(tallyd.listener("unixgram"), manager.path.display().to_string());
    UnixDatagram::unbound().unwrap().send_to(b"m:1|c", &manager.path).unwrap();
    tallyd.wait_until("it is read", |tallyd| {
        tallyd.figure("tallyd_listener_samples_total", "") == 1.0
    });
    tallyd.stop();
}

#[test]
fn variables_that_do_not_fit_stop_the_start() {
    let launch = Launch::new().passing(Manager::new().pass()).env("LISTEN_FDS", "9");
    let finished = launch.spawn().wait();
    assert_eq!(finished.code(), 1);
    assert!(finished.stderr.starts_with("error: LISTEN_FDS: cannot take "), "{finished:?}");

    // Meant for another process.
    let launch = Launch::new().env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let finished = launch.start().stop();
    assert!(!finished.stderr.contains("service manager"), "{finished:?}");
}
