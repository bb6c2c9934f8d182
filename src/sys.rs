//! System calls that the standard library does not offer, behind safe signatures.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// Memory that a receiver alone uses; of a file, which keeps it when the process dies, or of none.
/// First a page of numbers and of what its owner writes there, then the kernel's table of what it
/// received, then the buffers.
struct Memory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to this value, which can be used from one thread at a time.
unsafe impl Send for Memory {}

/// Where the parts of a receiver's memory begin.
const TABLE: usize = 4096;
const BUFFERS: usize = TABLE + 4096;
/// Where the label begins, in the first page.
const LABEL: usize = 64;
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
    fn new(length: usize, file: Option<&File>) -> io::Result<Self> {
        let (descriptor, flags) = match file {
            Some(file) => (file.as_raw_fd(), libc::MAP_SHARED),
            None => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        };
        if file.is_some() {
            let length = libc::off_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
            // All of it now: a page that cannot be had later would end the process.
            // SAFETY: the call takes numbers only.
            let error = unsafe { libc::posix_fallocate(descriptor, 0, length) };
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
        }
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                descriptor,
                0,
            )
        };
        let start = NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED);
        Ok(Self { start: start.ok_or_else(io::Error::last_os_error)?, length })
    }

    const fn numbers(&self) -> &[AtomicU64; 8] {
        // SAFETY: a page's beginning has room and alignment for them, and any bytes are numbers.
        unsafe { self.start.cast().as_ref() }
    }

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

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Memory of a file that outlives the process: a page of numbers and of what its owner writes there,
/// and behind it bytes.
pub struct Shared(Memory);

impl Shared {
    /// Makes this many bytes the content of an empty file, which no disk may stand behind. The
    /// owner's `label` stands in it as well.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn new(file: &File, label: &[u8], length: usize) -> io::Result<Self> {
        write_label(file, label)?;
        Memory::new(TABLE + length, Some(file)).map(Self)
    }

    /// Numbers of the owner's. The first one is a mark that says what this is.
    pub const fn numbers(&self) -> &[AtomicU64; 8] {
        self.0.numbers()
    }

    pub const fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: they lie within the mapping, apart from the numbers, and are borrowed from it alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.start.add(TABLE).as_ptr(), self.0.length - TABLE)
        }
    }

    /// Numbers, label and bytes of such a file.
    pub fn read(file: &[u8]) -> Option<([u64; 8], &[u8], &[u8])> {
        let mut numbers = [0; 8];
        for (i, place) in numbers.iter_mut().enumerate() {
            *place = number(file, i)?;
        }
        Some((numbers, file.get(LABEL..TABLE)?, file.get(TABLE..)?))
    }
}

/// Writes what its owner has to say into the first page of a file.
fn write_label(file: &File, label: &[u8]) -> io::Result<()> {
    if label.len() > TABLE - LABEL {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.write_all_at(label, LABEL as u64)
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

fn number(file: &[u8], index: usize) -> Option<u64> {
    file.get(index * 8..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
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

/// Where these bytes stand in a block: a bit for each place, the first in the lowest.
#[inline]
pub fn marks<const N: usize>(block: &[u8; 32], wanted: [u8; N]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has SSE2, and nothing here takes a pointer.
    unsafe {
        use std::arch::x86_64::{
            __m128i, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x,
            _mm_set1_epi8, _mm_setzero_si128,
        };
        let half = |at: usize| {
            let word = |at: usize| i64::from_le_bytes(std::array::from_fn(|i| block[at + i]));
            _mm_set_epi64x(word(at + 8), word(at))
        };
        let marks = |half: __m128i| {
            let here = |byte: u8| _mm_cmpeq_epi8(half, _mm_set1_epi8(byte as i8));
            let none = _mm_setzero_si128();
            let all = wanted.into_iter().fold(none, |all, byte| _mm_or_si128(all, here(byte)));
            _mm_movemask_epi8(all) as u32
        };
        marks(half(0)) | marks(half(16)) << 16
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
    const BYTES_MIN: usize = 8 << 20;
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

    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::time::Instant;

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
}
