//! Receiving many datagrams by one call, and who sent them.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{LABEL, Memory, PAGE, number, write_label};

/// Datagrams taken by one call.
pub const BATCH: usize = 64;

/// Fixed buffers that datagrams are received into, many per system call.
pub struct Receiver {
    memory: Memory,
    buffer_size: usize,
    /// The file of the memory, removed with the receiver.
    file: Option<PathBuf>,
    senders: Senders,
}

/// Where the parts of its memory begin: the kernel's table of what it received, and the buffers.
const TABLE: usize = PAGE;
const BUFFERS: usize = TABLE + 4096;
const _: () = assert!(size_of::<[libc::mmsghdr; BATCH]>() <= BUFFERS - TABLE);

/// The numbers at the beginning: which these are, the batch that was received last, the last one
/// that is safe elsewhere, when it was received, and the size of a buffer.
const MARK: u64 = u64::from_le_bytes(*b"tallyd\0L");
const RECEIVED: usize = 1;
const SAFE: usize = 2;
const ARRIVAL: usize = 3;
const BUFFER_SIZE: usize = 4;
/// For bytes of a stream: how many of them had come before, and their form plus one; else 0.
const KEPT: usize = 5;
const FORM: usize = 6;

impl Memory {
    /// The numbers, the kernel's table and the buffers.
    fn parts(&mut self) -> (&[AtomicU64; 8], &mut [libc::mmsghdr; BATCH], &mut [u8]) {
        // SAFETY: all lie within the mapping and apart from each other. The table is aligned, and
        // any bytes of it were written by us or by the kernel, or are zero.
        unsafe {
            let buffers = self.start.add(BUFFERS).as_ptr();
            (
                self.start.cast().as_ref(),
                self.start.add(TABLE).cast().as_mut(),
                std::slice::from_raw_parts_mut(buffers, self.length - BUFFERS),
            )
        }
    }
}

/// One datagram, where the kernel put it.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub bytes: &'a [u8],
    /// It was longer than the buffer; the rest is gone.
    pub truncated: bool,
    pub sender: Sender,
}

/// The datagrams of one call, where the kernel put them.
pub struct Received<'a> {
    headers: &'a [libc::mmsghdr],
    buffers: &'a [u8],
    buffer_size: usize,
    senders: &'a Senders,
    numbers: &'a [AtomicU64; 8],
    next: usize,
}

impl<'a> Received<'a> {
    /// What has to be told when the datagrams are safe elsewhere.
    pub const fn landed(&self) -> Landing<'a> {
        Landing(self.numbers)
    }
}

impl<'a> Iterator for Received<'a> {
    type Item = Datagram<'a>;

    fn next(&mut self) -> Option<Datagram<'a>> {
        let (i, size) = (self.next, self.buffer_size);
        let header = self.headers.get(i)?;
        self.next += 1;
        let length = (header.msg_len as usize).min(size);
        Some(Datagram {
            bytes: &self.buffers[i * size..][..length],
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            sender: self.senders.answer(i, &header.msg_hdr),
        })
    }
}

impl Receiver {
    /// Takes [`BATCH`] times `buffer_size` bytes.
    pub fn new(buffer_size: usize) -> Self {
        let memory = Memory::new(BUFFERS + BATCH * buffer_size, None);
        let senders = Senders::Unasked;
        Self { memory: memory.expect("memory for buffers"), buffer_size, file: None, senders }
    }

    /// One whose buffers are those of a file, an empty one of its own in memory: what it receives
    /// lies there from the moment that the kernel gives it away, and outlives the process. The
    /// owner's `label` stands in the file as well. Batches are counted from `first` on.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn landing(file: &File, label: &[u8], first: u64, buffer_size: usize) -> io::Result<Self> {
        write_label(file, label)?;
        let mut memory = Memory::new(BUFFERS + BATCH * buffer_size, Some(file))?;
        // Every page is there before the kernel is to write to it: a process that is killed while one
        // is fetched would lose the datagram.
        memory.parts().2.fill(0);
        let numbers = memory.numbers();
        numbers[RECEIVED].store(first, Ordering::Release);
        numbers[SAFE].store(first, Ordering::Release);
        numbers[BUFFER_SIZE].store(buffer_size as u64, Ordering::Release);
        numbers[0].store(MARK, Ordering::Release);
        Ok(Self { memory, buffer_size, file: None, senders: Senders::Unasked })
    }

    /// Removes this file when the receiver is dropped: nothing is left in it then.
    pub fn removing(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// Asks the kernel this about the senders of what is received from now on.
    pub fn asking(mut self, senders: Senders) -> Self {
        self.senders = senders;
        self
    }

    /// Tells when the next batch arrives. Returns its number.
    pub fn expect(&mut self, arrival: i64) -> u64 {
        let numbers = self.memory.numbers();
        numbers[ARRIVAL].store(arrival.cast_unsigned(), Ordering::Release);
        numbers[RECEIVED].load(Ordering::Relaxed) + 1
    }

    /// Takes what waits in the socket, up to [`BATCH`] datagrams, without waiting for more.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; whatever else `recvmmsg` says.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received<'_>> {
        let size = self.buffer_size;
        let (numbers, headers, buffers) = self.memory.parts();
        let first = buffers.as_mut_ptr();
        let mut slices: [libc::iovec; BATCH] = std::array::from_fn(|i| libc::iovec {
            iov_base: first.wrapping_add(i * size).cast(),
            iov_len: size,
        });
        // SAFETY: mmsghdr is plain data for which all zeroes is a valid value.
        *headers = unsafe { std::mem::zeroed() };
        for (i, (header, slice)) in headers.iter_mut().zip(&mut slices).enumerate() {
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            self.senders.ask(i, &mut header.msg_hdr);
        }
        numbers[FORM].store(0, Ordering::Release);
        // SAFETY: each of the BATCH headers holds one slice, a part of `buffers` of the stated
        // length, and at most one place for an answer, of the stated length as well. The pointers
        // were made just now, and neither `buffers`, `slices` nor `senders` is touched otherwise
        // until the call is over.
        let count = unsafe { recvmmsg(socket, headers, numbers)? };
        // Only what was received by this very call: older datagrams still lie in later buffers.
        let headers = &headers[..count];
        let (buffer_size, senders) = (size, &self.senders);
        Ok(Received { headers, buffers, buffer_size, senders, numbers, next: 0 })
    }

    /// Reads from a stream into `space`, as `read` does; what was read lies in the receiver's memory
    /// as well, behind what was `kept` of that stream, as the next batch. `form` is the caller's to
    /// know how such bytes are cut up.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; whatever else `recvmmsg` says.
    pub fn read(
        &mut self,
        socket: BorrowedFd<'_>,
        kept: &[u8],
        form: u32,
        space: &mut [u8],
    ) -> io::Result<(usize, Landing<'_>)> {
        let (numbers, headers, buffers) = self.memory.parts();
        let room = buffers.len().checked_sub(kept.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let (before, buffer) = buffers.split_at_mut(kept.len());
        before.copy_from_slice(kept);
        let mut slice =
            libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: space.len().min(room) };
        // SAFETY: mmsghdr is plain data for which all zeroes is a valid value.
        headers[0] = unsafe { std::mem::zeroed() };
        headers[0].msg_hdr.msg_iov = &raw mut slice;
        headers[0].msg_hdr.msg_iovlen = 1;
        numbers[KEPT].store(kept.len() as u64, Ordering::Release);
        numbers[FORM].store(u64::from(form) + 1, Ordering::Release);
        // SAFETY: the one header holds one slice, a part of `buffer` of the stated length. Neither is
        // touched otherwise until the call is over.
        unsafe { recvmmsg(socket, &mut headers[..1], numbers)? };
        let length = (headers[0].msg_len as usize).min(slice.iov_len);
        space[..length].copy_from_slice(&buffer[..length]);
        Ok((length, Landing(numbers)))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Receives the next batch, without waiting. Returns how many of the headers were used.
///
/// # Safety
/// What the headers point to must be the kernel's to write to until the call is over, with the
/// lengths that they state.
unsafe fn recvmmsg(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
    numbers: &[AtomicU64; 8],
) -> io::Result<usize> {
    // From here on lengths in the table are those of this batch.
    numbers[RECEIVED].fetch_add(1, Ordering::Release);
    // SAFETY: the caller answers for what the headers point to; they are as many as is said.
    let count = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len() as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
            std::ptr::null_mut(),
        )
    };
    if count < 0 {
        let error = io::Error::last_os_error();
        Landing(numbers).is_safe();
        return Err(error);
    }
    Ok(count as usize)
}

/// A batch that is nowhere but where the kernel put it.
#[derive(Clone, Copy)]
pub struct Landing<'a>(&'a [AtomicU64; 8]);

impl Landing<'_> {
    /// The batch is safe elsewhere, or given up.
    pub fn is_safe(self) {
        let received = self.0[RECEIVED].load(Ordering::Relaxed);
        self.0[SAFE].store(received, Ordering::Release);
    }
}

/// What a process that died had received and not yet made safe elsewhere.
#[derive(Debug)]
pub struct Landed<'a> {
    /// The number of the batch: see [`Receiver::expect`].
    pub batch: u64,
    /// As it was told to [`Receiver::expect`].
    pub arrival: i64,
    pub datagrams: Vec<Datagram<'a>>,
    /// Bytes of a stream instead, and what [`Receiver::read`] was told of their form.
    pub stream: Option<(&'a [u8], u64)>,
}

/// What lies behind the label in the file of a [`Receiver::landing`]: see there. `None` when this is
/// no such file.
pub fn label(file: &[u8]) -> Option<&[u8]> {
    (number(file, 0)? == MARK).then(|| file.get(LABEL..TABLE))?
}

/// Where the length of a datagram stands in its entry of the table.
const LENGTH: usize = std::mem::offset_of!(libc::mmsghdr, msg_len);

/// The batch that a receiver left in its file, if it was not safe elsewhere.
pub fn landed(file: &[u8]) -> Option<Landed<'_>> {
    let (batch, arrival) = (number(file, RECEIVED)?, number(file, ARRIVAL)?.cast_signed());
    if number(file, 0)? != MARK || number(file, SAFE)? == batch {
        return None;
    }
    let size = usize::try_from(number(file, BUFFER_SIZE)?).ok().filter(|size| *size > 0)?;
    let mut landed = Landed { batch, arrival, datagrams: Vec::new(), stream: None };
    if let Some(form) = number(file, FORM)?.checked_sub(1) {
        let length = file.get(TABLE + LENGTH..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))?;
        let end = usize::try_from(number(file, KEPT)?).ok()?.checked_add(length as usize)?;
        // Nothing new was read.
        let bytes = if length == 0 { &[] } else { file.get(BUFFERS..)?.get(..end)? };
        landed.stream = Some((bytes, form));
        return Some(landed);
    }
    let entries = file.get(TABLE..)?.chunks_exact(size_of::<libc::mmsghdr>()).take(BATCH);
    let buffers = file.get(BUFFERS..)?.chunks_exact(size);
    const FLAGS: usize = std::mem::offset_of!(libc::mmsghdr, msg_hdr)
        + std::mem::offset_of!(libc::msghdr, msg_flags);
    let received = entries.zip(buffers).map_while(|(entry, buffer)| {
        let word = |at| entry.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let length = (word(LENGTH)? as usize).min(size);
        let truncated = word(FLAGS)?.cast_signed() & libc::MSG_TRUNC != 0;
        Some(Datagram { bytes: &buffer[..length], truncated, sender: Sender::Unknown })
    });
    // What has no length was not received, or holds nothing.
    landed.datagrams = received.filter(|datagram| !datagram.bytes.is_empty()).collect();
    Some(landed)
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
    /// 0 where no process of our pid namespace is known.
    pub const fn pid(self) -> u32 {
        match self {
            Self::Process { pid, .. } => pid,
            Self::Unknown | Self::Address(_) => 0,
        }
    }

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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn takes_what_waits_and_nothing_older() {
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        let mut batch = Receiver::new(8);
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
    fn what_a_landing_received_lies_in_its_file_until_it_is_safe() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("landing");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).expect("file");
        let mut batch = Receiver::landing(&file, b"of mine", 41, 8).expect("memory");
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        let left = || std::fs::read(&path).expect("the file");
        assert_eq!(label(&left()).expect("it has one")[..8], *b"of mine\0");
        for (number, texts) in [(42, &["one", "a long one", ""][..]), (43, &["two"])] {
            for text in texts {
                sender.send(text.as_bytes()).expect("send");
            }
            assert_eq!(batch.expect(-5), number);
            let received = batch.receive(receiver.as_fd()).expect("receive");
            let mark = received.landed();
            assert_eq!(received.count(), texts.len());
            let file = left();
            let landed = landed(&file).expect("it is not safe");
            assert_eq!((landed.batch, landed.arrival), (number, -5));
            let texts = texts
                .iter()
                .filter(|text| !text.is_empty())
                .map(|text| (&text.as_bytes()[..text.len().min(8)], text.len() > 8));
            let found = landed.datagrams.iter().map(|d| (d.bytes, d.truncated));
            assert_eq!(found.collect::<Vec<_>>(), texts.collect::<Vec<_>>());
            mark.is_safe();
            assert!(super::landed(&left()).is_none());
        }
        // A call that brings nothing leaves nothing of the one before.
        batch.expect(-4);
        assert!(batch.receive(receiver.as_fd()).is_err());
        assert!(landed(&left()).is_none());
        drop(batch.removing(path.clone()));
        assert!(!path.exists());
        assert!(label(b"short").is_none() && landed(&[0; 9000]).is_none());
    }

    #[test]
    fn what_was_read_of_a_stream_lies_behind_what_was_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("landing");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).expect("file");
        let mut batch = Receiver::landing(&file, b"", 7, 8).expect("memory");
        let (mut sender, receiver) = UnixStream::pair().expect("socket pair");
        let left = || std::fs::read(&path).expect("the file");
        io::Write::write_all(&mut sender, b"c\nd").expect("write");
        let mut space = [0; 16];
        assert_eq!(batch.expect(-5), 8);
        let (length, landed) =
            batch.read(receiver.as_fd(), b"ab", 3, &mut space).expect("something");
        assert_eq!(&space[..length], b"c\nd");
        let file = left();
        let found = super::landed(&file).expect("it is not safe");
        assert_eq!((found.batch, found.arrival, found.stream), (8, -5, Some((&b"abc\nd"[..], 3))));
        landed.is_safe();
        assert!(super::landed(&left()).is_none());
        let again = batch.read(receiver.as_fd(), b"", 3, &mut space).err().map(|e| e.kind());
        assert_eq!(again, Some(io::ErrorKind::WouldBlock));
        assert!(super::landed(&left()).is_none());
        drop(sender);
        let (length, _) = batch.read(receiver.as_fd(), b"d", 3, &mut space).expect("the end");
        assert_eq!(length, 0);
        assert_eq!(super::landed(&left()).expect("one").stream, Some((&b""[..], 3)));
    }

    #[test]
    fn a_unix_socket_says_which_process_sent() {
        let me = Sender::Process { pid: std::process::id(), uid: effective_uid() };
        let (sender, receiver) = UnixDatagram::pair().expect("socket pair");
        socket2::SockRef::from(&receiver).set_passcred(true).expect("SO_PASSCRED");
        let mut batch = Receiver::new(8).asking(Senders::processes());
        sender.send(b"a").expect("send");
        sender.send(b"too long for it").expect("send");
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        let seen: Vec<_> = got.iter().map(|d| (d.bytes.len(), d.truncated, d.sender)).collect();
        assert_eq!(seen, [(1, false, me), (8, true, me)]);

        let shell = std::process::Command::new("sh")
            .args(["-c", "echo x >&0"])
            .stdin(OwnedFd::from(sender))
            .spawn();
        let mut shell = shell.expect("a shell");
        let pid = shell.id();
        assert!(shell.wait().expect("its end").success());
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        assert_eq!(got[0].sender, Sender::Process { pid, uid: effective_uid() });

        let (one, other) = UnixStream::pair().expect("socket pair");
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
            .stdin(OwnedFd::from(sender))
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
        let mut batch = Receiver::new(16).asking(Senders::processes());
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
            let mut batch = Receiver::new(8).asking(Senders::addresses());
            let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
            assert_eq!(got[0].sender, Sender::Address(from));
        }
        // One socket for both shows IPv4 as what it is.
        let Ok(receiver) = UdpSocket::bind("[::]:0") else { return };
        let port = receiver.local_addr().expect("address").port();
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        sender.send_to(b"x", ("127.0.0.1", port)).expect("send");
        let mut batch = Receiver::new(8).asking(Senders::addresses());
        let got: Vec<_> = batch.receive(receiver.as_fd()).expect("receive").collect();
        assert_eq!(got[0].sender, Sender::Address("127.0.0.1".parse().expect("an address")));
    }
}
