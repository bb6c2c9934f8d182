//! Takes samples of where the process spends its CPU time, by a timer's signal.
//!
//! Each thread has a timer on its own CPU clock: the kernel sends it SIGPROF each time it has used up
//! another 1/hz of a second. A timer of the whole process would be simpler, but before Linux 6.4
//! its signals go to the main thread, whichever runs; and `ITIMER_PROF` misses what runs between two
//! ticks of the kernel. The handler notes the thread's name and the addresses on its stack in a
//! fixed table, which the profile's thread empties. In the handler nothing is locked or allocated,
//! and of the stack only what the kernel was able to copy is looked at, so that a broken chain of
//! frames ends a walk and not the process.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

use super::maps;

/// Addresses kept of a stack, the innermost first.
pub const DEPTH_MAX: usize = 64;

/// Samples that wait for the profile's thread.
pub const SLOTS: usize = 512;

/// Bytes of a thread's name, as the kernel keeps it.
const NAME: usize = 16;

/// A frame is no larger than this: beyond it, what looks like a frame pointer is something else.
const FRAME_MAX: usize = 1 << 20;

/// Words of the stack in which the caller of a function without a frame is looked for.
const SCAN: usize = 128;

const WORD: usize = size_of::<usize>();

/// One sample: who ran, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How often the timer has gone off: more than once where the kernel was late.
    pub times: u32,
    pub thread: [u8; NAME],
    /// The instruction that ran, then the calls that led to it, from the inside out.
    pub stack: Vec<usize>,
}

/// The timers, while they run. There is one such set in a process.
pub struct Sampler {
    hz: u32,
    /// By the kernel's number of the thread; `None` where it refused one.
    timers: Mutex<HashMap<libc::pid_t, Option<Timer>>>,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static TABLE: Table = Table::new();
/// The program's own code, where frame pointers are kept.
static CODE: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));
/// The process itself, whose stacks are copied.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// A file in memory through which they are copied where the process may not read memory as a
/// debugger does, as by Docker's usual filter of system calls; else [`NO_FILE`].
static THROUGH: AtomicI32 = AtomicI32::new(NO_FILE);
const NO_FILE: RawFd = -1;

impl Sampler {
    /// Begins to take `hz` samples per second of CPU time.
    ///
    /// # Errors
    /// When another one runs in this process, or the kernel refuses.
    pub fn start(hz: u32) -> io::Result<Self> {
        if RUNNING.swap(true, AcqRel) {
            let taken = "another server in this process takes the profile";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, taken));
        }
        // From here on its drop clears the way for the next one.
        let sampler = Self { hz: hz.clamp(1, 1_000_000_000), timers: Mutex::default() };
        let code = maps::holding(on_timer as *const () as usize)?;
        CODE.0.store(code.start, Relaxed);
        CODE.1.store(code.end, Relaxed);
        PROCESS.store(std::process::id(), Relaxed);
        if !sees_callers() {
            THROUGH.store(memory_file(), Relaxed);
        }
        // SAFETY: sigaction is plain data for which all zeroes is a valid value; the handler has
        // the signature that SA_SIGINFO asks for, and does only what a handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(_, _, _) = on_timer;
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            if libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        sampler.follow()?;
        Ok(sampler)
    }

    /// Gives threads that have begun a timer, and takes those of threads that have ended away.
    ///
    /// # Errors
    /// When `/proc` cannot be read, or not even this thread can have a timer.
    pub fn follow(&self) -> io::Result<()> {
        let threads = std::fs::read_dir("/proc/self/task")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect::<HashSet<libc::pid_t>>();
        let mut timers = self.timers.lock().expect("no panic under this lock");
        timers.retain(|thread, _| threads.contains(thread));
        let mut refused = None;
        for thread in threads {
            timers.entry(thread).or_insert_with(|| {
                Timer::start(thread, self.hz).map_err(|error| refused = Some(error)).ok()
            });
        }
        match refused {
            Some(error) if timers.values().all(Option::is_none) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes what has been sampled since the last call. Returns the number of samples for which
    /// there was no room meanwhile.
    pub fn drain(&self, take: impl FnMut(Sample)) -> u64 {
        TABLE.drain(take)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The handler stays: a signal may still be on its way, and would end the process.
        self.timers.get_mut().expect("no panic under this lock").clear();
        TABLE.drain(drop);
        RUNNING.store(false, Release);
    }
}

/// A timer on the CPU clock of one thread.
struct Timer(libc::timer_t);

// SAFETY: it is a name that any thread of the process may use.
unsafe impl Send for Timer {}

impl Timer {
    fn start(thread: libc::pid_t, hz: u32) -> io::Result<Self> {
        // How Linux names the clock of a thread's time on a processor.
        let clock = !thread << 3 | 6;
        let period = libc::timespec {
            tv_sec: (1 / hz).into(),
            tv_nsec: (1_000_000_000 / hz % 1_000_000_000).into(),
        };
        let time = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: sigevent is plain data for which all zeroes is a valid value, and the kernel only
        // reads it; it writes the timer's name into `timer`, and reads `time`.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGPROF;
            event.sigev_notify_thread_id = thread;
            let mut timer = std::ptr::null_mut();
            if libc::timer_create(clock, &raw mut event, &raw mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let timer = Self(timer);
            if libc::timer_settime(timer.0, 0, &raw const time, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(timer)
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `start`, and is deleted only here.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Whether the kernel lets the process copy its own stacks. Without that a sample is the innermost
/// address alone.
pub fn sees_callers() -> bool {
    let word = 1_usize;
    Stack::new().word(&raw const word as usize) == Some(word)
}

/// A file for [`THROUGH`], which stays open: a signal may come at any time.
fn memory_file() -> RawFd {
    // SAFETY: the name ends in a zero byte, and the call writes nothing.
    unsafe { libc::memfd_create(c"stacks".as_ptr(), libc::MFD_CLOEXEC) }
}

/// Sends the calling thread a signal as a timer does. For the bench.
#[doc(hidden)]
pub fn provoke() {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value, and the kernel only
    // reads it; the signal has a handler once a sampler was started, and else ends the process.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        info.si_signo = libc::SIGPROF;
        info.si_code = libc::SI_TIMER;
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGPROF, &raw const info);
    }
}

/// The handler of SIGPROF.
extern "C" fn on_timer(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the place of errno is valid for the thread's life, and `info` for that of the
    // handler. The interrupted code must find errno as it left it.
    unsafe {
        let errno = *libc::__errno_location();
        // Whoever else sends SIGPROF has measured nothing.
        if (*info).si_code == libc::SI_TIMER {
            let times = 1 + (*info).si_overrun().max(0) as u32;
            record(&TABLE, Registers::of(context), times);
        }
        *libc::__errno_location() = errno;
    }
}

/// Where a thread was interrupted.
#[derive(Clone, Copy, Debug)]
struct Registers {
    instruction: usize,
    stack: usize,
    frame: usize,
    /// Where the last call returns to, on processors that keep it in a register; else 0.
    link: usize,
}

impl Registers {
    /// # Safety
    /// `context` is what a signal handler was given.
    #[cfg(target_arch = "x86_64")]
    unsafe fn of(context: *mut libc::ucontext_t) -> Self {
        // SAFETY: the caller's promise.
        let registers = unsafe { &(*context).uc_mcontext.gregs };
        let register = |number: libc::c_int| registers[number as usize] as usize;
        Self {
            instruction: register(libc::REG_RIP),
            stack: register(libc::REG_RSP),
            frame: register(libc::REG_RBP),
            link: 0,
        }
    }

    /// # Safety
    /// `context` is what a signal handler was given.
    #[cfg(target_arch = "aarch64")]
    unsafe fn of(context: *mut libc::ucontext_t) -> Self {
        // SAFETY: the caller's promise.
        let machine = unsafe { &(*context).uc_mcontext };
        Self {
            instruction: machine.pc as usize,
            stack: machine.sp as usize,
            frame: machine.regs[29] as usize,
            link: machine.regs[30] as usize,
        }
    }
}

/// Notes the thread's name and its stack in a free slot of the table, or counts that there is none.
fn record(table: &Table, at: Registers, times: u32) {
    let Some(slot) = table.claim() else { return };
    slot.times.store(times, Relaxed);
    let mut name = [0_u64; NAME / 8];
    // SAFETY: the kernel writes at most 16 bytes into `name`, which is that long.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    for (kept, part) in slot.thread.iter().zip(name) {
        kept.store(part, Relaxed);
    }
    let mut depth = 0;
    walk(at, |address| {
        slot.stack[depth].store(address, Relaxed);
        depth += 1;
        depth < DEPTH_MAX
    });
    slot.depth.store(depth, Relaxed);
    slot.state.store(FULL, Release);
}

/// Calls `step` with each address of the stack, from the inside out, until it wants no more. Those
/// of callers are one byte before the place to return to, and so within the call.
fn walk(at: Registers, mut step: impl FnMut(usize) -> bool) {
    if !step(at.instruction) {
        return;
    }
    let mut stack = Stack::new();
    let (mut low, mut frame) = (at.stack, at.frame);
    let frameless = if !is_code(at.instruction) {
        // The C library's functions have no frames and may use that register for anything.
        let caller = caller_of_foreign(&mut stack, at);
        if caller.is_none() {
            return;
        }
        caller
    } else {
        // The frame is still the caller's, or again.
        back_at_edge(&mut stack, at).map(|back| Caller { back, low, frame })
    };
    if let Some(caller) = frameless {
        if !step(caller.back - 1) {
            return;
        }
        (low, frame) = (caller.low, caller.frame);
    }
    // A stack grows downwards: an outer frame is at a higher address.
    while frame >= low && frame - low <= FRAME_MAX {
        let (Some(outer), Some(back)) = (stack.word(frame), stack.word(frame + WORD)) else {
            return;
        };
        if back == 0 || !step(back - 1) {
            return;
        }
        (low, frame) = (frame + 2 * WORD, outer);
    }
}

/// A function of the program that has called one without a frame.
struct Caller {
    /// Where the call returns to.
    back: usize,
    /// The frame of the caller, and the lowest address where it can be.
    frame: usize,
    low: usize,
}

/// Where a function of the program returns to, while its first instructions have not made its frame
/// yet, and when the last one is next.
#[cfg(target_arch = "x86_64")]
fn back_at_edge(stack: &mut Stack, at: Registers) -> Option<usize> {
    // Instructions have up to 15 bytes: there is code behind each.
    if !is_code(at.instruction + 2) {
        return None;
    }
    // SAFETY: the bytes lie in the program's own code, which is readable as long as it runs.
    let code = |n: usize| unsafe { *((at.instruction + n) as *const u8) };
    let back = match code(0) {
        // push %rbp; ret.
        0x55 | 0xc3 => stack.word(at.stack),
        // mov %rsp, %rbp.
        0x48 if (code(1), code(2)) == (0x89, 0xe5) => stack.word(at.stack + WORD),
        _ => None,
    };
    back.filter(|back| follows_call(*back))
}

/// Where a function of the program returns to, while its first instruction has not made its frame
/// yet, and when the last one is next.
#[cfg(target_arch = "aarch64")]
fn back_at_edge(_: &mut Stack, at: Registers) -> Option<usize> {
    // SAFETY: the aligned word lies in the program's own code, which is readable as long as it runs.
    let code = unsafe { *((at.instruction & !3) as *const u32) };
    // stp x29, x30, [sp, ...]!; ret.
    let at_edge = code & 0xffc0_7fff == 0xa980_7bfd || code == 0xd65f_03c0;
    (at_edge && follows_call(at.link)).then_some(at.link)
}

/// The nearest place on the stack to which a function of the program's own is returned to.
fn caller_of_foreign(stack: &mut Stack, at: Registers) -> Option<Caller> {
    if follows_call(at.link) {
        return Some(Caller { back: at.link, frame: at.frame, low: at.stack });
    }
    let places = (0..SCAN).map(|i| at.stack + i * WORD);
    let mut found = places.map_while(|place| Some((place, stack.word(place)?)));
    let (place, back) = found.find(|(_, word)| follows_call(*word))?;
    let low = place + WORD;
    // Most leave the register alone; one that does not has saved it, right below that place.
    let mut frame = Some(at.frame);
    let mut saved = (at.stack..place).step_by(WORD).rev();
    while let Some(candidate) = frame {
        let within = candidate >= low && candidate - low <= FRAME_MAX;
        if within && stack.word(candidate + WORD).is_some_and(follows_call) {
            break;
        }
        frame = saved.next().and_then(|place| stack.word(place));
    }
    Some(Caller { back, frame: frame.unwrap_or(0), low })
}

/// Whether this address lies in the program's own code.
fn is_code(address: usize) -> bool {
    (CODE.0.load(Relaxed)..CODE.1.load(Relaxed)).contains(&address)
}

/// Whether a call of the program's own ends here.
#[cfg(target_arch = "x86_64")]
fn follows_call(address: usize) -> bool {
    const LONGEST: usize = 7;
    if !is_code(address.wrapping_sub(LONGEST)) || !is_code(address) {
        return false;
    }
    // SAFETY: the bytes lie in the program's own code, which is readable as long as it runs.
    let before = |n: usize| unsafe { *((address - n) as *const u8) };
    // A call to a place (E8 and four bytes), or through a register or memory (FF /2).
    let indirect = |n: usize| before(n) == 0xff && before(n - 1) & 0x38 == 0x10;
    before(5) == 0xe8 || [2, 3, 4, 6, 7].into_iter().any(indirect)
}

/// Whether a call of the program's own ends here.
#[cfg(target_arch = "aarch64")]
fn follows_call(address: usize) -> bool {
    const LENGTH: usize = 4;
    if !address.is_multiple_of(LENGTH)
        || !is_code(address.wrapping_sub(LENGTH))
        || !is_code(address)
    {
        return false;
    }
    // SAFETY: the aligned word lies in the program's own code, which is readable as long as it runs.
    let call = unsafe { *((address - LENGTH) as *const u32) };
    // BL to a place, or BLR through a register.
    call & 0xfc00_0000 == 0x9400_0000 || call & 0xffff_fc1f == 0xd63f_0000
}

/// A piece of the stack, copied by the kernel, which fails where a plain read would fault.
struct Stack {
    start: usize,
    length: usize,
    words: [usize; Self::WORDS],
}

impl Stack {
    /// A quarter of the smallest page: few calls for a whole walk, and little copied in vain.
    const WORDS: usize = 128;
    const PAGE: usize = 4096;

    const fn new() -> Self {
        Self { start: 0, length: 0, words: [0; Self::WORDS] }
    }

    /// The word at this address, if it is aligned and can be read.
    fn word(&mut self, address: usize) -> Option<usize> {
        if !address.is_multiple_of(WORD) {
            return None;
        }
        if !(self.start..self.start + self.length).contains(&address) {
            self.copy(address);
        }
        self.words.get(address.checked_sub(self.start)? / WORD).copied().filter(|_| self.length > 0)
    }

    /// Copies what lies from here on, within one page: it can be read as a whole or not at all.
    fn copy(&mut self, address: usize) {
        self.length = size_of_val(&self.words).min(Self::PAGE - address % Self::PAGE);
        self.start = address;
        let from: *const libc::c_void = std::ptr::with_exposed_provenance(address);
        let (to, length) = (self.words.as_mut_ptr().cast(), self.length);
        // SAFETY: `words` has room for `length` bytes; the kernel checks the addresses it reads from.
        let copied = unsafe {
            match THROUGH.load(Relaxed) {
                NO_FILE => copy_directly(from, to, length),
                file => copy_through(file, from, to, length),
            }
        };
        if copied != self.length as isize {
            self.length = 0;
        }
    }
}

/// Copies memory of the process. Returns how many bytes, or less than none.
///
/// # Safety
/// There is room for `length` bytes behind `to`.
unsafe fn copy_directly(from: *const libc::c_void, to: *mut libc::c_void, length: usize) -> isize {
    let process = PROCESS.load(Relaxed) as libc::pid_t;
    let from = libc::iovec { iov_base: from.cast_mut(), iov_len: length };
    let to = libc::iovec { iov_base: to, iov_len: length };
    // SAFETY: the caller's promise; the kernel checks what it reads from, and writes nothing there.
    unsafe { libc::process_vm_readv(process, &raw const to, 1, &raw const from, 1, 0) }
}

/// The same, through a file in memory. Each thread has a place there; the few that have the same one
/// spoil a sample of each other if they are interrupted at once.
///
/// # Safety
/// There is room for `length` bytes behind `to`.
unsafe fn copy_through(
    file: RawFd,
    from: *const libc::c_void,
    to: *mut libc::c_void,
    length: usize,
) -> isize {
    /// So that it stays below a megabyte, however many threads come and go.
    const PLACES: libc::off_t = 512;
    // SAFETY: the first call takes nothing, and the second only reads, from where the kernel checks;
    // for the third it is the caller's promise.
    unsafe {
        let thread: libc::off_t = libc::syscall(libc::SYS_gettid);
        let place = thread % PLACES * size_of::<Stack>() as libc::off_t;
        let written = libc::pwrite(file, from, length, place);
        if written <= 0 { written } else { libc::pread(file, to, written as usize, place) }
    }
}

/// States of a slot.
const EMPTY: u8 = 0;
const CLAIMED: u8 = 1;
const FULL: u8 = 2;

/// One sample in the table.
struct Slot {
    state: AtomicU8,
    times: AtomicU32,
    thread: [AtomicU64; NAME / 8],
    depth: AtomicUsize,
    stack: [AtomicUsize; DEPTH_MAX],
}

/// Samples on their way from the handler to the profile's thread. A slot belongs to the handler
/// that claimed it until it is full, and then to whoever drains the table.
struct Table {
    slots: [Slot; SLOTS],
    /// The slot that is tried next.
    next: AtomicUsize,
    /// Samples for which there was no slot.
    lost: AtomicU64,
}

impl Table {
    const fn new() -> Self {
        let slots = [const {
            Slot {
                state: AtomicU8::new(EMPTY),
                times: AtomicU32::new(0),
                thread: [const { AtomicU64::new(0) }; NAME / 8],
                depth: AtomicUsize::new(0),
                stack: [const { AtomicUsize::new(0) }; DEPTH_MAX],
            }
        }; SLOTS];
        Self { slots, next: AtomicUsize::new(0), lost: AtomicU64::new(0) }
    }

    fn claim(&self) -> Option<&Slot> {
        let slot = &self.slots[self.next.fetch_add(1, Relaxed) % SLOTS];
        let claimed = slot.state.compare_exchange(EMPTY, CLAIMED, Acquire, Relaxed).is_ok();
        if !claimed {
            self.lost.fetch_add(1, Relaxed);
        }
        claimed.then_some(slot)
    }

    fn drain(&self, mut take: impl FnMut(Sample)) -> u64 {
        for slot in self.slots.iter().filter(|slot| slot.state.load(Acquire) == FULL) {
            let mut thread = [0; NAME];
            for (bytes, part) in thread.chunks_exact_mut(8).zip(&slot.thread) {
                bytes.copy_from_slice(&part.load(Relaxed).to_ne_bytes());
            }
            let times = slot.times.load(Relaxed);
            let depth = slot.depth.load(Relaxed).min(DEPTH_MAX);
            let stack = slot.stack[..depth].iter().map(|a| a.load(Relaxed)).collect();
            slot.state.store(EMPTY, Release);
            take(Sample { times, thread, stack });
        }
        self.lost.swap(0, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys;

    /// Only one test at a time can have the timers.
    static ALONE: Mutex<()> = Mutex::new(());

    #[inline(never)]
    fn burn(cpu: Duration) -> u64 {
        let end = sys::cpu_time() + cpu;
        let mut sum = 0_u64;
        while sys::cpu_time() < end {
            for i in 0..10_000_u64 {
                sum = black_box(sum.wrapping_mul(31).wrapping_add(i));
            }
        }
        sum
    }

    /// Burns in the C library, which has no frame pointers.
    #[inline(never)]
    fn allocate(cpu: Duration) {
        let end = sys::cpu_time() + cpu;
        while sys::cpu_time() < end {
            let vectors: Vec<_> = (0..1000).map(|i| vec![1_u8; 2000 + 64 * i]).collect();
            black_box(vectors);
        }
    }

    /// Where a function's code may be: the compiler puts others behind it.
    fn within(function: usize, address: usize) -> bool {
        (function..function + 1024).contains(&address)
    }

    /// A thread of this name that does this, and its samples.
    fn samples_of(name: &str, work: impl FnOnce() + Send + 'static) -> Vec<Sample> {
        let sampler = Sampler::start(99).expect("no other one");
        let thread = std::thread::Builder::new().name(name.to_owned());
        let (go, wait) = std::sync::mpsc::channel();
        let thread = thread.spawn(move || wait.recv().map(|()| work())).expect("a thread");
        sampler.follow().expect("timers");
        go.send(()).expect("it waits");
        thread.join().expect("no panic").expect("it was told");
        let mut samples = Vec::new();
        assert_eq!(sampler.drain(|sample| samples.push(sample)), 0);
        samples.retain(|sample| sample.thread.starts_with(name.as_bytes()));
        samples
    }

    fn times(samples: &[Sample]) -> u32 {
        samples.iter().map(|sample| sample.times).sum()
    }

    #[test]
    fn cpu_time_is_sampled_where_it_is_spent() {
        let _alone = ALONE.lock();
        let samples = samples_of("burner", || {
            burn(Duration::from_millis(500));
        });
        let all = times(&samples);
        // Other tests use CPU time too, so the thread may have less than half a second of it.
        assert!((5..=55).contains(&all), "{all} samples of half a second");
        let burning = samples.iter().filter(|sample| {
            sample.stack.iter().any(|address| within(burn as *const () as usize, *address))
        });
        let burning = times(&burning.cloned().collect::<Vec<_>>());
        assert!(burning * 10 >= all * 9, "{burning} of {all} know who burns");
        assert!(samples.iter().all(|sample| sample.stack.len() > 3), "{samples:?}");
    }

    #[test]
    fn callers_of_the_c_library_are_found() {
        let _alone = ALONE.lock();
        let samples = samples_of("allocator", || allocate(Duration::from_millis(500)));
        let foreign: Vec<_> =
            samples.into_iter().filter(|sample| !is_code(sample.stack[0])).collect();
        let all = times(&foreign);
        assert!(all >= 5, "only {all} samples in the C library");
        let named = foreign.iter().filter(|sample| {
            sample.stack.iter().any(|address| within(allocate as *const () as usize, *address))
        });
        let named = times(&named.cloned().collect::<Vec<_>>());
        assert!(named * 10 >= all * 8, "{named} of {all} know who allocates");
    }

    #[test]
    fn there_is_one_at_a_time_and_an_end() {
        let _alone = ALONE.lock();
        let first = Sampler::start(1000).expect("no other one");
        let error = Sampler::start(99).err().expect("there is one").to_string();
        assert_eq!(error, "another server in this process takes the profile");
        drop(first);
        let second = Sampler::start(1).expect("the first is gone");
        burn(Duration::from_millis(300));
        let mut taken = 0;
        second.drain(|sample| taken += sample.times);
        // The first would have taken hundreds.
        assert!(taken <= 2, "{taken} samples");
    }

    #[test]
    fn a_storm_of_signals_from_elsewhere_does_nothing() {
        let _alone = ALONE.lock();
        let sampler = Sampler::start(99).expect("no other one");
        // Calls that signals interrupt, and arithmetic that they must not disturb.
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        let (tell, told) = std::sync::mpsc::channel();
        let tell = || {
            let tell = tell.clone();
            // SAFETY: it takes nothing and cannot fail.
            move || tell.send(unsafe { libc::syscall(libc::SYS_gettid) }).expect("it listens")
        };
        let started = tell();
        let read = std::thread::spawn(move || {
            started();
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        let started = tell();
        let waited = std::thread::spawn(move || {
            started();
            let begun = Instant::now();
            std::thread::sleep(Duration::from_millis(200));
            begun.elapsed()
        });
        let started = tell();
        let calculate = || (0..20_000_000_u64).fold(1.0_f64, |x, i| (x + i as f64).sqrt());
        let calculated = std::thread::spawn(move || {
            started();
            calculate()
        });
        let threads: Vec<_> = told.iter().take(3).collect();
        let until = Instant::now() + Duration::from_millis(250);
        let mut sent = 0_u32;
        while Instant::now() < until {
            for thread in &threads {
                // SAFETY: the signal has a handler; a thread that has ended gets none.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *thread, libc::SIGPROF) };
                sent += 1;
            }
        }
        writer.write_all(b"all of it").expect("a reader");
        drop(writer);
        assert_eq!(read.join().expect("no panic").expect("no error"), "all of it");
        assert!(waited.join().expect("no panic") >= Duration::from_millis(200));
        assert_eq!(calculated.join().expect("no panic").to_bits(), calculate().to_bits());
        let mut taken = 0;
        sampler.drain(|sample| taken += sample.times);
        assert!(sent > 1000 && taken < sent / 2, "{taken} samples of {sent} signals");
    }

    #[test]
    fn a_walk_follows_frames_and_survives_broken_ones() {
        let _alone = ALONE.lock();
        let _sampler = Sampler::start(1).expect("no other one");
        let file = memory_file();
        assert_ne!(file, NO_FILE);
        for through in [NO_FILE, file] {
            let before = THROUGH.swap(through, Relaxed);
            if sees_callers() {
                walk_frames();
            } else {
                assert_eq!(through, NO_FILE, "a file copies anywhere");
                println!("SKIP a part: the kernel does not let a process copy its own memory");
            }
            THROUGH.store(before, Relaxed);
        }
    }

    /// A stack that only this test knows: frames of the given sizes, each the place of the next.
    fn walk_frames() {
        let code = walk_frames as fn() as usize;
        let mut words = vec![0_usize; 4096];
        let base = words.as_ptr() as usize;
        let place = |word: usize| base + word * WORD;
        for (frame, outer, back) in [(10, 20, 101), (20, 700, 102), (700, 3000, 103)] {
            words[frame] = place(outer);
            words[frame + 1] = back;
        }
        let registers = |frame| Registers { instruction: code, stack: place(2), frame, link: 0 };
        let walked = |words: &[usize], registers| {
            black_box(words);
            let mut stack = Vec::new();
            walk(registers, |address| {
                stack.push(address);
                stack.len() < DEPTH_MAX
            });
            stack
        };
        let whole = [code, 100, 101, 102];
        // The frame at 3000 returns to nowhere.
        assert_eq!(walked(&words, registers(place(10))), whole);
        for (outer, why) in [
            (0, "no frame"),
            (8, "not mapped"),
            (usize::MAX, "the end of memory"),
            (usize::MAX - 7, "the end of memory"),
            (place(700), "itself"),
            (place(10), "an inner one"),
            (place(3000) + 1, "not aligned"),
            (place(700) + FRAME_MAX + 64, "too far"),
        ] {
            words[700] = outer;
            assert_eq!(walked(&words, registers(place(10))), whole, "{why}");
        }
        assert_eq!(walked(&words, registers(place(1))), [code], "below the stack");
        // Deeper than is kept.
        for frame in 0..2000 {
            words[10 + 2 * frame] = place(12 + 2 * frame);
            words[11 + 2 * frame] = 500;
        }
        assert_eq!(walked(&words, registers(place(10))).len(), DEPTH_MAX);
    }

    #[test]
    fn a_table_gives_back_what_was_put_in_and_counts_the_rest() {
        static SMALL: Table = Table::new();
        let at = Registers { instruction: 77, stack: 0, frame: 0, link: 0 };
        (0..SLOTS as u32 + 100).for_each(|times| record(&SMALL, at, times));
        let mut taken = Vec::new();
        assert_eq!(SMALL.drain(|sample| taken.push(sample)), 100);
        let mut got: Vec<u32> = taken.iter().map(|sample| sample.times).collect();
        got.sort_unstable();
        assert!(got.into_iter().eq(0..SLOTS as u32));
        assert!(taken.iter().all(|sample| sample.stack == [77]));
        assert_eq!(SMALL.drain(|_| panic!("there is none")), 0);

        // Several at once, while it is being emptied: each comes out once or is counted.
        let (mut got, mut lost) = (0, 0);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(move || (0..20_000).for_each(|_| record(&SMALL, at, 1))))
                .collect();
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                lost += SMALL.drain(|sample| {
                    assert_eq!((sample.times, &sample.stack[..]), (1, &[77][..]));
                    got += 1;
                });
            }
        });
        lost += SMALL.drain(|_| got += 1);
        assert_eq!(got + lost, 80_000);
        assert!(got >= SLOTS as u64, "{got} came out");
    }
}
