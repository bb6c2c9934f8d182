//! Memory of files, which outlives the process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Memory that one owner alone uses; of a file, which keeps it when the process dies, or of none. It
/// begins with a page of numbers and of what its owner writes there.
pub(super) struct Memory {
    pub(super) start: NonNull<u8>,
    pub(super) length: usize,
}

// SAFETY: the memory belongs to this value, which can be used from one thread at a time.
unsafe impl Send for Memory {}

/// Where that page ends.
pub(super) const PAGE: usize = 4096;

/// Where the label begins in it.
pub(super) const LABEL: usize = 64;

impl Memory {
    pub(super) fn new(length: usize, file: Option<&File>) -> io::Result<Self> {
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

    pub(super) const fn numbers(&self) -> &[AtomicU64; 8] {
        // SAFETY: a page's beginning has room and alignment for them, and any bytes are numbers.
        unsafe { self.start.cast().as_ref() }
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
        Memory::new(PAGE + length, Some(file)).map(Self)
    }

    /// Numbers of the owner's. The first one is a mark that says what this is.
    pub const fn numbers(&self) -> &[AtomicU64; 8] {
        self.0.numbers()
    }

    pub const fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: they lie within the mapping, apart from the numbers, and are borrowed from it alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.start.add(PAGE).as_ptr(), self.0.length - PAGE)
        }
    }

    /// Numbers, label and bytes of such a file.
    pub fn read(file: &[u8]) -> Option<([u64; 8], &[u8], &[u8])> {
        let mut numbers = [0; 8];
        for (i, place) in numbers.iter_mut().enumerate() {
            *place = number(file, i)?;
        }
        Some((numbers, file.get(LABEL..PAGE)?, file.get(PAGE..)?))
    }
}

/// Writes what its owner has to say into the first page of a file.
pub(super) fn write_label(file: &File, label: &[u8]) -> io::Result<()> {
    if label.len() > PAGE - LABEL {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.write_all_at(label, LABEL as u64)
}

pub(super) fn number(file: &[u8], index: usize) -> Option<u64> {
    file.get(index * 8..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}
