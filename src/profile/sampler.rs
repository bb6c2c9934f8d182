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
use std::sync::Mutex;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};

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
            tv_sec: libc::time_t::from(1 / hz),
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
    // The C library's functions have no frames and may use that register for anything.
    if !is_code(at.instruction) {
        let Some(caller) = caller_of_foreign(&mut stack, at) else { return };
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
        let from = libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(address),
            iov_len: self.length,
        };
        let to = libc::iovec { iov_base: self.words.as_mut_ptr().cast(), iov_len: self.length };
        // SAFETY: `words` has room for `length` bytes; the kernel checks the address it reads from.
        let process = PROCESS.load(Relaxed) as libc::pid_t;
        let copied =
            unsafe { libc::process_vm_readv(process, &raw const to, 1, &raw const from, 1, 0) };
        if copied != self.length as isize {
            self.length = 0;
        }
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
    use std::time::Duration;

    use super::*;
    use crate::sys;

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

    #[test]
    fn what_burns_is_seen() {
        let sampler = Sampler::start(99).unwrap();
        let before = sys::cpu_time();
        burn(Duration::from_secs(1));
        let cpu = sys::cpu_time() - before;
        let mut n = 0;
        let lost = sampler.drain(|_| n += 1);
        println!("{n} {lost} {cpu:?}");
    }
}
