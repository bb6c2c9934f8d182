//! System calls that the standard library does not offer, behind safe signatures.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// Datagrams taken by one call.
pub const BATCH: usize = 64;

/// Fixed buffers that datagrams are received into, many per system call.
pub struct Receiver {
    buffers: Box<[u8]>,
    buffer_size: usize,
}

/// One datagram, where the kernel put it.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub bytes: &'a [u8],
    /// It was longer than the buffer; the rest is gone.
    pub truncated: bool,
}

impl Receiver {
    /// Takes [`BATCH`] times `buffer_size` bytes.
    pub fn new(buffer_size: usize) -> Self {
        Self { buffers: vec![0; BATCH * buffer_size].into_boxed_slice(), buffer_size }
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
        for (header, slice) in headers.iter_mut().zip(&mut slices) {
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each of the BATCH headers holds one slice, a part of `buffers` of the stated
        // length. The pointers were made just now, and neither `buffers` nor `slices` is touched
        // otherwise until the call is over.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let buffers = self.buffers.chunks_exact(size);
        // Only what was received by this very call: older datagrams still lie in later buffers.
        Ok(headers.into_iter().zip(buffers).take(count as usize).map(move |(header, buffer)| {
            Datagram {
                bytes: &buffer[..(header.msg_len as usize).min(size)],
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            }
        }))
    }
}

/// Writes these slices one after another at a place in a file, and returns how many bytes were
/// written.
///
/// # Errors
/// Whatever `pwritev` says.
pub fn write_at(file: &File, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: an IoSlice has the layout of an iovec; the kernel only reads what they point to, which
    // is borrowed until the call is over.
    let written = unsafe {
        libc::pwritev(file.as_raw_fd(), slices.as_ptr().cast(), slices.len() as libc::c_int, offset)
    };
    if written < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(written as usize)
}

/// Ends this process as `kill -9` would.
pub fn kill_own_process() {
    // SAFETY: both calls only take numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
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

/// Bytes sent on a Unix socket that its peer has not read. For tests.
///
/// # Errors
/// What `ioctl` says.
#[doc(hidden)]
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the place of `bytes`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes as u32)
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
        let mut batch = Receiver::new(1024);
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
        let mut batch = Receiver::new(8);
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
