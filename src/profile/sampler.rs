//! Takes samples of where the process spends its CPU time, by a timer's signal.
//!
//! The kernel sends SIGPROF each time the process has used up another 1/hz of a second of CPU
//! (`ITIMER_PROF`), to the thread that is running then. The handler notes the thread's name and the
//! addresses on its stack in a fixed table, which the profile's thread empties. In the handler
//! nothing is locked or allocated, and of the stack only what the kernel was able to copy is looked
//! at, so that a broken chain of frames ends a walk and not the process.
#![allow(unsafe_code)]

use std::io;
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
    pub thread: [u8; NAME],
    /// The instruction that ran, then the calls that led to it, from the inside out.
    pub stack: Vec<usize>,
}

/// The timer, while it runs. There is one in a process.
pub struct Sampler(());

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
        let sampler = Self(());
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
        set_timer(1_000_000 / hz.clamp(1, 1_000_000))?;
        Ok(sampler)
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
        let _ = set_timer(0);
        TABLE.drain(drop);
        RUNNING.store(false, Release);
    }
}

/// Whether the kernel lets the process copy its own stacks. Without that a sample is the innermost
/// address alone.
pub fn sees_callers() -> bool {
    let word = 1_usize;
    Stack::new().word(&raw const word as usize) == Some(word)
}

/// No microseconds stop the timer.
fn set_timer(microseconds: u32) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: libc::time_t::from(microseconds / 1_000_000),
        tv_usec: libc::suseconds_t::from(microseconds % 1_000_000),
    };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the kernel reads `timer` and writes nothing.
    let result =
        unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The handler of SIGPROF.
extern "C" fn on_timer(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the place of errno is valid for the thread's life, and `info` for that of the
    // handler. The interrupted code must find errno as it left it.
    unsafe {
        let errno = *libc::__errno_location();
        // Whoever else sends SIGPROF has measured nothing.
        if (*info).si_code == libc::SI_KERNEL {
            record(&TABLE, Registers::of(context));
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
fn record(table: &Table, at: Registers) {
    let Some(slot) = table.claim() else { return };
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
            let depth = slot.depth.load(Relaxed).min(DEPTH_MAX);
            let stack = slot.stack[..depth].iter().map(|a| a.load(Relaxed)).collect();
            slot.state.store(EMPTY, Release);
            take(Sample { thread, stack });
        }
        self.lost.swap(0, Relaxed)
    }
}
