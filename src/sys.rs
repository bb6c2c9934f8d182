//! System calls that the standard library does not offer, behind safe signatures.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
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

/// Number of datagrams the kernel has dropped at this socket since it was opened, because its
/// buffer was full (`SO_MEMINFO`, Linux 4.12). Wraps at 2^32. Unix sockets never drop: their
/// senders wait or are told.
///
/// # Errors
/// Where the kernel does not know the option.
pub fn kernel_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_MEMINFO: libc::c_int = 55;
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
    Ok(info[DROPS])
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
        assert_eq!(kernel_drops(receiver.as_fd()).expect("SO_MEMINFO"), 0);
        for _ in 0..200 {
            sender.send_to(&[0; 1000], to).expect("send");
        }
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
        assert_eq!(received + kernel_drops(receiver.as_fd()).expect("SO_MEMINFO"), 200);
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
