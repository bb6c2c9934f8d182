//! System calls that the standard library does not offer, behind safe signatures.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// Datagrams taken by one call.
pub const BATCH: usize = 64;

/// Fixed buffers that datagrams are received into, many per system call.
pub struct Receiver {
    buffers: Box<[u8]>,
    buffer_size: usize,
    senders: Senders,
}

/// What is asked of the kernel about senders. To ask costs a little for each datagram.
pub enum Senders {
    Unasked,
    /// Processes, on a Unix socket with `SO_PASSCRED`.
    Processes(Box<[Control; BATCH]>),
    /// Addresses, on a UDP socket.
    Addresses(Box<[libc::sockaddr_storage; BATCH]>),
}

/// Room for the one control message that `SO_PASSCRED` brings, and for no file descriptors, which
/// the kernel would open for us.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Control {
    header: libc::cmsghdr,
    credentials: libc::ucred,
}

// SAFETY: CMSG_SPACE only calculates.
const _: () = assert!(size_of::<Control>() == unsafe { libc::CMSG_SPACE(12) } as usize);

/// Who sent a datagram, as the kernel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sender {
    #[default]
    Unknown,
    /// `pid` is 0 for a process outside of our pid namespace.
    Process {
        pid: u32,
        uid: u32,
    },
    Address(IpAddr),
}

/// One datagram, where the kernel put it.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub bytes: &'a [u8],
    /// It was longer than the buffer; the rest is gone.
    pub truncated: bool,
    pub sender: Sender,
}

impl Senders {
    pub fn processes() -> Self {
        let header = libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 };
        let credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        Self::Processes(Box::new([Control { header, credentials }; BATCH]))
    }

    pub fn addresses() -> Self {
        // SAFETY: sockaddr_storage is plain data for which all zeroes is a valid value.
        Self::Addresses(Box::new([unsafe { std::mem::zeroed() }; BATCH]))
    }

    /// Has the answers for datagram `i` put here.
    fn ask(&mut self, i: usize, header: &mut libc::msghdr) {
        match self {
            Self::Unasked => {}
            Self::Processes(controls) => {
                header.msg_control = (&raw mut controls[i]).cast();
                header.msg_controllen = size_of::<Control>() as _;
            }
            Self::Addresses(addresses) => {
                header.msg_name = (&raw mut addresses[i]).cast();
                header.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            }
        }
    }

    /// What the kernel said of datagram `i`.
    fn answer(&self, i: usize, header: &libc::msghdr) -> Sender {
        match self {
            Self::Processes(controls) if header.msg_controllen > 0 => controls[i].sender(),
            Self::Addresses(addresses) if header.msg_namelen > 0 => address(&addresses[i]),
            Self::Unasked | Self::Processes(_) | Self::Addresses(_) => Sender::Unknown,
        }
    }
}

impl Control {
    fn sender(&self) -> Sender {
        let Self { header, credentials } = self;
        if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
            return Sender::Unknown;
        }
        Sender::of(credentials)
    }
}

impl Sender {
    const fn of(credentials: &libc::ucred) -> Self {
        Self::Process { pid: credentials.pid.cast_unsigned(), uid: credentials.uid }
    }
}

/// An IPv4 address that an IPv6 socket shows in its own form is an IPv4 address.
fn address(storage: &libc::sockaddr_storage) -> Sender {
    let place: *const libc::sockaddr_storage = storage;
    match libc::c_int::from(storage.ss_family) {
        // SAFETY: the kernel wrote a sockaddr_in here, which the storage has room and alignment for.
        libc::AF_INET => Sender::Address(IpAddr::V4(
            u32::from_be(unsafe { (*place.cast::<libc::sockaddr_in>()).sin_addr.s_addr }).into(),
        )),
        // SAFETY: as above, a sockaddr_in6.
        libc::AF_INET6 => Sender::Address(
            IpAddr::from(unsafe { (*place.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr })
                .to_canonical(),
        ),
        _ => Sender::Unknown,
    }
}

/// The process at the other end of a Unix stream, as it was when it connected.
pub fn peer(stream: BorrowedFd<'_>) -> Sender {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&credentials) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `credentials`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Sender::Unknown } else { Sender::of(&credentials) }
}

impl Receiver {
    /// Takes [`BATCH`] times `buffer_size` bytes.
    pub fn new(buffer_size: usize, senders: Senders) -> Self {
        let buffers = vec![0; BATCH * buffer_size].into_boxed_slice();
        Self { buffers, buffer_size, senders }
    }

    /// Takes what waits in the socket, up to [`BATCH`] datagrams, without waiting for more.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; whatever else `recvmmsg` says.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> io::Result<impl Iterator<Item = Datagram<'_>>> {
        let size = self.buffer_size;
        let first = self.buffers.as_mut_ptr();
        let mut slices: [libc::iovec; BATCH] = std::array::from_fn(|i| libc::iovec {
            iov_base: first.wrapping_add(i * size).cast(),
            iov_len: size,
        });
        // SAFETY: mmsghdr is plain data for which all zeroes is a valid value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (i, (header, slice)) in headers.iter_mut().zip(&mut slices).enumerate() {
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            self.senders.ask(i, &mut header.msg_hdr);
        }
        // SAFETY: each of the BATCH headers holds one slice, a part of `buffers` of the stated
        // length, and at most one place for an answer, of the stated length as well. The pointers
        // were made just now, and neither `buffers`, `slices` nor `senders` is touched otherwise
        // until the call is over.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let senders = &self.senders;
        let buffers = self.buffers.chunks_exact(size).enumerate();
        // Only what was received by this very call: older datagrams still lie in later buffers.
        let received = headers.into_iter().zip(buffers).take(count as usize);
        Ok(received.map(move |(header, (i, buffer))| Datagram {
            bytes: &buffer[..(header.msg_len as usize).min(size)],
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            sender: senders.answer(i, &header.msg_hdr),
        }))
    }
}

/// Asks the processor to fetch what lies there into its cache, ahead of use.
#[inline]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing the program could see, and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Sends these datagrams, but at most [`BATCH`] of them, on a connected socket in one call, which
/// waits for room where the socket is a blocking one. Returns how many were sent. tallyd itself
/// sends nothing: this is for the load program.
///
/// # Errors
/// What `sendmmsg` says of the first datagram.
#[doc(hidden)]
pub fn send(socket: BorrowedFd<'_>, datagrams: &[impl AsRef<[u8]>]) -> io::Result<usize> {
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut slices = [nothing; BATCH];
    // SAFETY: mmsghdr is plain data for which all zeroes is a valid value.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for ((header, slice), datagram) in headers.iter_mut().zip(&mut slices).zip(datagrams) {
        let bytes = datagram.as_ref();
        // The kernel does not write here, though the type would let it.
        slice.iov_base = bytes.as_ptr().cast_mut().cast();
        slice.iov_len = bytes.len();
        header.msg_hdr.msg_iov = slice;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: each header that is counted holds one slice, which is one of the datagrams. They are
    // borrowed, and `slices` is not touched, until the call is over.
    let count = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            datagrams.len().min(BATCH) as libc::c_uint,
            0,
        )
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(count as usize)
}

/// Keeps the calling thread, and whatever it starts from now on, on this processor. For the load
/// program.
///
/// # Errors
/// When there is no such processor, or it is not this process's to use.
#[doc(hidden)]
pub fn pin(processor: usize) -> io::Result<()> {
    if processor >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: a set of processors is plain data for which all zeroes is the empty set; the number
    // was checked against its size, and the kernel only reads it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The receive buffer of a socket, as the kernel accounts for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Buffer {
    /// Bytes in use, the kernel's own for each datagram included.
    pub fill: u32,
    /// Bytes it may use.
    pub capacity: u32,
    /// Datagrams dropped since the socket was opened, because the buffer was full. Wraps at 2^32.
    /// Unix sockets never drop: their senders wait or are told.
    pub drops: u32,
}

/// Looks at the receive buffer of a socket (`SO_MEMINFO`, Linux 4.12).
///
/// # Errors
/// Where the kernel does not know the option.
pub fn buffer(socket: BorrowedFd<'_>) -> io::Result<Buffer> {
    const SO_MEMINFO: libc::c_int = 55;
    const FILL: usize = 0;
    const CAPACITY: usize = 1;
    const DROPS: usize = 8;
    let mut info = [0_u32; 9];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < size_of_val(&info) {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    Ok(Buffer { fill: info[FILL], capacity: info[CAPACITY], drops: info[DROPS] })
}

/// The host name that the system goes by, or `None` where it is not text.
pub fn host_name() -> Option<String> {
    let mut buffer = [0_u8; 256];
    // SAFETY: the kernel writes at most `len` bytes into `buffer`; one byte is left for the end.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    if result != 0 {
        return None;
    }
    let end = buffer.iter().position(|&b| b == 0)?;
    String::from_utf8(buffer[..end].to_vec()).ok().filter(|name| !name.is_empty())
}

/// Bytes that an unprivileged process may still write on the disk of a folder, and all its bytes.
///
/// # Errors
/// Whatever `statvfs` says.
pub fn disk_space(folder: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(folder.as_os_str().as_encoded_bytes())?;
    // SAFETY: statvfs is plain data for which all zeroes is a valid value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends in a zero byte, and the kernel writes one statvfs into `found`.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok((bytes(found.f_bavail), bytes(found.f_blocks)))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn takes_what_waits_and_nothing_older() {
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        let mut batch = Receiver::new(8, Senders::Unasked);
        for text in ["one", "two", "a long one", ""] {
            sender.send(text.as_bytes()).expect("send");
        }
        let got: Vec<(Vec<u8>, bool)> = batch
            .receive(receiver.as_fd())
            .expect("receive")
            .map(|d| (d.bytes.to_vec(), d.truncated))
            .collect();
        let expected: [(&[u8], bool); 4] =
            [(b"one", false), (b"two", false), (b"a long o", true), (b"", false)];
        assert_eq!(got, expected.map(|(b, t)| (b.to_vec(), t)));

        sender.send(b"x").expect("send");
        let again: Vec<_> =
            batch.receive(receiver.as_fd()).expect("receive").map(|d| d.bytes.to_vec()).collect();
        assert_eq!(again, [b"x"]);
        let empty = batch.receive(receiver.as_fd()).err().map(|e| e.kind());
        assert_eq!(empty, Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_unix_socket_says_which_process_sent() {
        let me = Sender::Process { pid: std::process::id(), uid: effective_uid() };
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        socket2::SockRef::from(&receiver).set_passcred(true).expect("SO_PASSCRED");
        let mut batch = Receiver::new(8, Senders::processes());
        sender.send(b"a").expect("send");
        sender.send(b"too long for it").expect("send");
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        let seen: Vec<_> = got.iter().map(|d| (d.bytes.len(), d.truncated, d.sender)).collect();
        assert_eq!(seen, [(1, false, me), (8, true, me)]);

        let shell = std::process::Command::new("sh")
            .args(["-c", "echo x >&0"])
            .stdin(std::os::fd::OwnedFd::from(sender))
            .spawn();
        let mut shell = shell.expect("a shell");
        let pid = shell.id();
        assert!(shell.wait().expect("its end").success());
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        assert_eq!(got[0].sender, Sender::Process { pid, uid: effective_uid() });

        let (one, other) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        assert_eq!((peer(one.as_fd()), peer(other.as_fd())), (me, me));
        assert_eq!(peer(receiver.as_fd()), me);
        let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_ne!(peer(udp.as_fd()), me);
    }

    /// As the system tells it in a file.
    fn effective_uid() -> u32 {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let uids = status.lines().find_map(|l| l.strip_prefix("Uid:")).expect("uids");
        uids.split_whitespace().nth(1).expect("effective").parse().expect("a number")
    }

    #[test]
    fn file_descriptors_that_come_along_are_not_taken() {
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        socket2::SockRef::from(&receiver).set_passcred(true).expect("SO_PASSCRED");
        let script = "import socket, os\n\
                      s = socket.socket(fileno=0)\n\
                      socket.send_fds(s, [b'with files'], [1, 2])";
        let status = std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(std::os::fd::OwnedFd::from(sender))
            .status();
        if !status.is_ok_and(|status| status.success()) {
            println!("SKIP file_descriptors_that_come_along_are_not_taken: no python3");
            return;
        }
        let open = || std::fs::read_dir("/proc/self/fd").expect("a folder");
        let pipes = |entries: std::fs::ReadDir| {
            let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
            links.filter(|link| *link == std::fs::read_link("/proc/self/fd/1").expect("it")).count()
        };
        let before = pipes(open());
        let mut batch = Receiver::new(16, Senders::processes());
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        assert_eq!(got[0].bytes, b"with files");
        assert!(matches!(got[0].sender, Sender::Process { .. }));
        assert_eq!(pipes(open()), before);
    }

    #[test]
    fn a_udp_socket_says_which_address_sent() {
        for (bind, from) in [("127.0.0.1:0", "127.0.0.9"), ("[::1]:0", "::1")] {
            let Ok(receiver) = UdpSocket::bind(bind) else {
                println!("SKIP a_udp_socket_says_which_address_sent: cannot bind {bind}");
                continue;
            };
            let from: IpAddr = from.parse().expect("an address");
            let sender = UdpSocket::bind((from, 0)).expect("bind");
            sender.send_to(b"x", receiver.local_addr().expect("address")).expect("send");
            let mut batch = Receiver::new(8, Senders::addresses());
            let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
            assert_eq!(got[0].sender, Sender::Address(from));
        }
        // One socket for both shows IPv4 as what it is.
        let Ok(receiver) = UdpSocket::bind("[::]:0") else { return };
        let port = receiver.local_addr().expect("address").port();
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        sender.send_to(b"x", ("127.0.0.1", port)).expect("send");
        let mut batch = Receiver::new(8, Senders::addresses());
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        assert_eq!(got[0].sender, Sender::Address("127.0.0.1".parse().expect("an address")));
    }

    #[test]
    fn a_full_socket_counts_its_drops() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket2::SockRef::from(&receiver).set_recv_buffer_size(4096).expect("buffer size");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let to = receiver.local_addr().expect("address");
        let before = buffer(receiver.as_fd()).expect("SO_MEMINFO");
        assert_eq!((before.fill, before.drops), (0, 0));
        for _ in 0..200 {
            sender.send_to(&[0; 1000], to).expect("send");
        }
        let full = buffer(receiver.as_fd()).expect("SO_MEMINFO");
        assert!(full.fill > full.capacity / 2, "{full:?}");
        let mut batch = Receiver::new(1024, Senders::Unasked);
        let mut received = 0;
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            match batch.receive(receiver.as_fd()) {
                Ok(datagrams) => received += datagrams.count() as u32,
                Err(_) if received > 0 => break,
                Err(_) => {}
            }
        }
        assert_eq!(received + buffer(receiver.as_fd()).expect("SO_MEMINFO").drops, 200);
    }

    #[test]
    fn sends_a_batch_in_order_and_says_how_many_had_room() {
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        sender.set_nonblocking(true).expect("nonblocking");
        let none: [&[u8]; 0] = [];
        assert_eq!(send(sender.as_fd(), &none).expect("nothing to do"), 0);
        assert_eq!(send(sender.as_fd(), &["one", "", "three"]).expect("send"), 3);
        let mut batch = Receiver::new(8, Senders::Unasked);
        let mut received = || -> Vec<Vec<u8>> {
            let datagrams = batch.receive(receiver.as_fd()).expect("receive");
            datagrams.map(|d| d.bytes.to_vec()).collect()
        };
        assert_eq!(received(), [&b"one"[..], b"", b"three"]);

        // The queue is short: what has no room is not counted as sent.
        let many: Vec<Vec<u8>> = (0..=BATCH as u8).map(|i| vec![i]).collect();
        sender.set_nonblocking(false).expect("blocking");
        sender.set_write_timeout(Some(Duration::from_millis(10))).expect("timeout");
        let sent = send(sender.as_fd(), &many).expect("send");
        assert!((1..=BATCH).contains(&sent), "{sent} sent");
        assert_eq!(received(), many[..sent]);

        drop(receiver);
        assert!(send(sender.as_fd(), &["to nobody"]).is_err());
    }

    #[test]
    fn a_pinned_thread_stays_on_its_processor() {
        let allowed = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
            let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
            list.expect("a list").trim().to_owned()
        };
        let pinned = std::thread::spawn(move || {
            let before = allowed();
            let first = before.split([',', '-']).next().expect("a number").to_owned();
            pin(first.parse().expect("a number")).expect("pinned");
            assert_eq!(allowed(), first);
        });
        pinned.join().expect("the thread");
        assert!(pin(usize::MAX).is_err());
    }

    #[test]
    fn the_host_has_a_name() {
        assert!(host_name().is_some_and(|name| !name.contains('\0')));
    }

    #[test]
    fn a_disk_has_more_bytes_than_are_free() {
        let (free, total) = disk_space(Path::new("/")).expect("the root");
        assert!(free <= total && total > 0, "{free} of {total}");
        disk_space(Path::new("/no such folder")).expect_err("there is none");
    }
}
