//! System calls that the standard library does not offer, behind safe signatures.
#![allow(unsafe_code)]

mod memory;
mod receiver;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

pub use memory::Shared;
pub use receiver::{
    BATCH, Control, Datagram, Landed, Landing, Received, Receiver, Sender, Senders, label, landed,
    peer,
};

/// Ends this process as `kill -9` would.
pub fn kill_own_process() {
    // SAFETY: both calls only take numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Asks the processor to fetch what lies there into its cache, ahead of use.
#[inline]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing the program could see, and cannot fault. The
    // second place is the last byte of what is borrowed.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(place).cast::<i8>();
        _mm_prefetch::<_MM_HINT_T0>(start);
        if size_of::<T>() > 64 {
            _mm_prefetch::<_MM_HINT_T0>(start.add(size_of::<T>() - 1));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The same of a place that is only guessed: whatever lies there, or nothing.
#[inline]
pub fn prefetch_at(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing the program could see, and cannot fault, be
    // there memory or not.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Where these bytes stand in a block: a bit for each place, the first in the lowest.
#[inline(always)]
pub fn marks<const N: usize>(block: &[u8; 32], wanted: [u8; N]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has SSE2. Both halves of the block are read, and
    // they need not be aligned.
    unsafe {
        use std::arch::x86_64::{
            _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
            _mm_setzero_si128,
        };
        let start = block.as_ptr();
        let halves = [_mm_loadu_si128(start.cast()), _mm_loadu_si128(start.add(16).cast())];
        let mut found = [_mm_setzero_si128(); 2];
        for byte in wanted {
            let byte = _mm_set1_epi8(byte as i8);
            found[0] = _mm_or_si128(found[0], _mm_cmpeq_epi8(halves[0], byte));
            found[1] = _mm_or_si128(found[1], _mm_cmpeq_epi8(halves[1], byte));
        }
        _mm_movemask_epi8(found[0]) as u32 | (_mm_movemask_epi8(found[1]) as u32) << 16
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let places = block.iter().enumerate();
        places.fold(0, |all, (at, byte)| all | u32::from(wanted.contains(byte)) << at)
    }
}

/// Asks the kernel to back this room by huge pages, where it is large and the system has them. A
/// table that is read at random spends much of its time on finding the page otherwise. What was
/// touched before stays in small pages, so the vector should be new and empty.
pub fn prefer_huge_pages<T>(room: &Vec<T>) {
    /// Less than a few huge pages gains nothing.
    const BYTES_MIN: usize = 4 << 20;
    const PAGE: usize = 4096;
    let bytes = room.capacity().saturating_mul(size_of::<T>());
    if bytes < BYTES_MIN {
        return;
    }
    let start = room.as_ptr().cast::<u8>();
    let skipped = start.align_offset(PAGE);
    // SAFETY: whole pages inside of an allocation of our own. The advice changes neither what they
    // hold nor whether they may be used; where the kernel does not take it, nothing happens.
    unsafe {
        libc::madvise(
            start.wrapping_add(skipped).cast_mut().cast(),
            (bytes - skipped) / PAGE * PAGE,
            libc::MADV_HUGEPAGE,
        );
    }
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

/// The variables by which a service manager tells of sockets that it passes (`sd_listen_fds(3)`).
const LISTEN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Takes the sockets that a service manager has opened for this process, each with the manager's
/// name for it, and removes the variables that tell of them. To be called at the start, before
/// anything else is opened.
///
/// # Errors
/// When the variables are wrong, or the process has more than one thread already.
pub fn passed_sockets() -> io::Result<Vec<(String, OwnedFd)>> {
    let passed = passed(LISTEN.map(|name| std::env::var(name).ok()), std::process::id())?;
    if passed.is_empty() {
        return Ok(Vec::new());
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has several threads"));
    }
    for name in LISTEN {
        // SAFETY: no other thread is there to read the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    let take = |(name, fd)| {
        // SAFETY: the call changes a flag of a descriptor, and no memory.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, as was seen just now. It was opened for this process, and
        // as the variables are gone it is taken once.
        Ok((name, unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    passed.into_iter().map(take).collect()
}

/// Names and numbers of the descriptors that these variables promise to this process.
fn passed(
    [process, count, names]: [Option<String>; 3],
    own: u32,
) -> io::Result<Vec<(String, RawFd)>> {
    /// Where they begin.
    const FIRST: RawFd = 3;
    /// More than any unit has.
    const MAX: RawFd = 1024;
    let (Some(process), Some(count)) = (process, count) else { return Ok(Vec::new()) };
    if process.parse() != Ok(own) {
        return Ok(Vec::new());
    }
    let count = count.parse().ok().filter(|count| (0..=MAX).contains(count));
    let count = count.ok_or_else(|| io::Error::other("no number of sockets"))?;
    let names = names.unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat("")).map(str::to_owned);
    Ok(names.zip(FIRST..FIRST + count).collect())
}

/// The user that this process acts as.
pub fn user() -> u32 {
    // SAFETY: the call reads a number that the kernel keeps, and cannot fail.
    unsafe { libc::geteuid() }
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

/// A folder that stays open, so that its files are found without walking the path to it again. It
/// takes far less memory of the kernel than open files do, whose text is kept with them.
#[derive(Debug)]
pub struct Folder(File);

impl Folder {
    /// # Errors
    /// When it is not there, or is no folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        File::options().read(true).custom_flags(flags).open(path).map(Self)
    }

    /// Opens a file in it for reading.
    ///
    /// # Errors
    /// Whatever `openat` says: `NotFound` for all of them once the folder was removed, even where
    /// another was made in its place.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let name = CString::new(name)?;
        loop {
            let (folder, flags) = (self.0.as_raw_fd(), libc::O_RDONLY | libc::O_CLOEXEC);
            // SAFETY: `name` ends in a zero byte, and the call writes nothing.
            let fd = unsafe { libc::openat(folder, name.as_ptr(), flags) };
            if fd >= 0 {
                // SAFETY: the call has just opened it, so nobody else has it.
                return Ok(unsafe { File::from_raw_fd(fd) });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Files, sockets and folders that this process may have open at a time.
pub fn open_files_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit into `limit`.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}

/// Gives memory that is free back to the system, after work that needed much of it. Where the C
/// library is not glibc, it does so by itself.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches what nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sets glibc's allocator up for what this program does. For the start, before there are threads.
///
/// Large allocations are kept apart from others, so that their memory goes back to the system as
/// soon as they are freed: by itself glibc takes what was freed once for usual and keeps it, between
/// other things, where it serves none of the same size. And what is freed is joined with its
/// neighbours at once: by itself glibc puts small pieces by and gathers them all, with its lock held,
/// when somebody asks for more than a kilobyte. After a flush of a million series that is some
/// milliseconds, which a reader would wait.
pub fn set_up_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes numbers of the allocator's.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Has the kernel forget which pages of code this process has used. They stay in the page cache,
/// and come back one by one as they are used: after a start, which runs through much that is not
/// needed again, most do not.
pub fn release_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, end) in maps.lines().filter_map(code_of_file) {
        // SAFETY: the pages are those of a file, which nothing in this process can have changed,
        // since they cannot be written: what is read from them later is the same.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Start and end of a mapping of code: of a file, and not writable.
fn code_of_file(mapping: &str) -> Option<(usize, usize)> {
    let mut fields = mapping.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let hex = |digits| usize::from_str_radix(digits, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    (code && start < end).then_some((start, end))
}

/// Lets other threads go first from now on, where there are not enough processors: for a thread whose
/// work nobody waits for, and which holds no lock that a reader or a flush needs.
pub fn give_way() {
    // SAFETY: it takes numbers, and changes the scheduling of the calling thread alone.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// CPU time that the process has used, in itself and in the kernel.
pub fn cpu_time() -> Duration {
    // SAFETY: rusage is plain data for which all zeroes is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage into `usage`.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
        return Duration::ZERO;
    }
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    use super::*;

    #[test]
    fn who_gives_way_does_so_alone() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let behind_name = &stat[stat.rfind(')').unwrap()..];
            behind_name.split_whitespace().nth(17).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let given_way = std::thread::spawn(move || {
            give_way();
            nice()
        });
        assert_eq!((given_way.join().unwrap(), nice()), (before.max(10), before));
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
    fn every_place_is_marked() {
        let block = *b"a|b:c||::\xff|de\0|:abcdefghijklmno|";
        let places = |wanted: &[u8]| {
            block
                .iter()
                .enumerate()
                .filter(|(_, b)| wanted.contains(b))
                .map(|(at, _)| 1 << at)
                .sum()
        };
        let all: u32 = places(b"|:");
        assert_eq!((marks(&block, *b"|:"), marks(&block, *b"|")), (all, places(b"|")));
        assert_eq!((marks(&block, [0]), marks(&block, [0xff])), (1 << 13, 1 << 9));
        assert_eq!(marks(&block, []), 0);
    }

    #[test]
    fn advice_about_pages_changes_nothing() {
        for room in [0, 1000, 1 << 20, (1 << 20) + 1] {
            let mut numbers: Vec<u64> = Vec::with_capacity(room);
            prefer_huge_pages(&numbers);
            numbers.extend(0..room as u64);
            prefer_huge_pages(&numbers);
            assert!(numbers.into_iter().eq(0..room as u64));
        }
    }

    #[test]
    fn what_a_service_manager_promises() {
        let told = |variables: [&str; 3]| {
            passed(variables.map(|v| Some(v.to_owned()).filter(|v| v != "-")), 7).ok()
        };
        let found = |names: &[&str]| {
            Some(names.iter().map(|n| (*n).to_owned()).zip(3..).collect::<Vec<_>>())
        };
        for (variables, expected) in [
            (["-", "-", "-"], found(&[])),
            (["-", "1", "a"], found(&[])),
            (["7", "-", "a"], found(&[])),
            (["8", "1", "a"], found(&[])),
            (["x", "1", "a"], found(&[])),
            (["7", "0", ""], found(&[])),
            (["7", "2", "a:b"], found(&["a", "b"])),
            (["7", "2", "-"], found(&["", ""])),
            (["7", "2", "a"], found(&["a", ""])),
            (["7", "1", "a:b"], found(&["a"])),
            (["7", "-1", "a"], None),
            (["7", "x", "a"], None),
            (["7", "4000000000", "a"], None),
        ] {
            assert_eq!(told(variables), expected, "{variables:?}");
        }
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

    #[test]
    fn code_of_files_is_told_from_all_else() {
        let of = |line| code_of_file(line);
        let line = "55d0c8b00000-55d0c8c00000 r-xp 00100000 fd:00 1234    /opt/my tools/tallyd";
        assert_eq!(of(line), Some((0x55d0_c8b0_0000, 0x55d0_c8c0_0000)));
        for other in [
            "55d0c8a00000-55d0c8b00000 r--p 00000000 fd:00 1234    /opt/tallyd",
            "55d0c8a00000-55d0c8b00000 rwxp 00000000 fd:00 1234    /opt/tallyd",
            "7f0000002000-7f0000003000 r-xp 00000000 00:00 0 ",
            "7fff00000000-7fff00002000 r-xp 00000000 00:00 0       [vdso]",
            "nonsense",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        release_code();
        assert_eq!(of(line).map(|(start, _)| start), Some(0x55d0_c8b0_0000), "code goes on");
    }
}
