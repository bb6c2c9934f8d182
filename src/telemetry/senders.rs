//! What each sender sent and lost, so that every loss has a name.
//!
//! A reader gathers its figures in a [`Tally`] of its own, for as long as datagrams of one sender
//! follow each other and at most for a batch, and then adds them to the sender's [`Account`]. So
//! a datagram costs no atomic operation here, and readers do not fight for a line of the cache.
//!
//! There are at most [`SENDERS_MAX`] accounts. When they run out, those that no reader knows any
//! more and that own no series are closed, the longest silent ones first: their figures go over to
//! the account of the others, so the sum over all accounts stays what the listeners counted.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ahash::RandomState;
use hashbrown::HashMap;

use super::Counter;
use crate::sample::Reject;
use crate::time::Time;

/// Accounts, the one of the others included.
pub const SENDERS_MAX: usize = 4096;

/// The number of the account of the others.
pub const OTHERS: u16 = 0;

/// Accounts that are closed at once to make room.
const CLOSED_AT_ONCE: usize = SENDERS_MAX / 8;

/// Who sends, as far as the kernel says it; what a client says of itself is only a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Those for whom there was no room, and those that were forgotten.
    Others,
    /// All processes and addresses of a container, by its id.
    Container(Arc<str>),
    /// A process of no container. It has the number 0 in another pid namespace.
    Process {
        pid: u32,
        uid: u32,
    },
    Address(IpAddr),
    /// Whoever sends to this listener, where the kernel does not say more.
    Listener(Arc<str>),
}

/// What one sender sent and lost. Counts are totals since its account was opened.
#[derive(Debug)]
pub struct Account {
    /// Of all open accounts no two have the same.
    pub number: u16,
    pub who: Who,
    /// Of a container its name, of a process that of its program.
    name: Mutex<Option<Arc<str>>>,
    /// Unix seconds at which something last came.
    used: AtomicI64,
    pub datagrams: Counter,
    pub bytes: Counter,
    pub truncated: Counter,
    pub lines: Counter,
    rejects: [Counter; Reject::ALL.len()],
    dropped: [Counter; Drop::ALL.len()],
}

/// What becomes of a line that was understood and yet is lost, or folded into others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Folded into `tallyd.overflow`: `shard.contexts_max`.
    Series,
    /// Beyond `shard.timed_points_max`.
    Timed,
    /// Beyond `shard.events_max`.
    Event,
    NonFinite,
}

impl Drop {
    pub const ALL: [Self; 4] = [Self::Series, Self::Timed, Self::Event, Self::NonFinite];

    /// The word used on pages and in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Series => "series_limit",
            Self::Timed => "timed_points_limit",
            Self::Event => "events_limit",
            Self::NonFinite => "not_finite",
        }
    }
}

/// What a reader has counted for one sender and not yet added to its account.
#[derive(Debug, Default)]
pub struct Tally {
    pub datagrams: u64,
    pub bytes: u64,
    pub truncated: u64,
    pub lines: u64,
    rejects: [u32; Reject::ALL.len()],
    dropped: [u64; Drop::ALL.len()],
    /// There are rejects or drops.
    lossy: bool,
}

impl Tally {
    pub const fn reject(&mut self, reason: Reject) {
        self.rejects[reason as usize] += 1;
        self.lossy = true;
    }

    pub const fn drop(&mut self, cause: Drop, count: u64) {
        self.dropped[cause as usize] += count;
        self.lossy |= count > 0;
    }

    const fn is_empty(&self) -> bool {
        self.datagrams == 0 && self.lines == 0 && self.truncated == 0 && !self.lossy
    }
}

impl Account {
    fn new(number: u16, who: Who, name: Option<Arc<str>>, now: Time) -> Self {
        Self {
            number,
            who,
            name: Mutex::new(name),
            used: now.seconds().into(),
            datagrams: Counter::default(),
            bytes: Counter::default(),
            truncated: Counter::default(),
            lines: Counter::default(),
            rejects: Default::default(),
            dropped: Default::default(),
        }
    }

    /// Takes over what a reader counted until `now`, and empties its tally.
    pub fn settle(&self, tally: &mut Tally, now: Time) {
        if tally.is_empty() {
            return;
        }
        self.used.store(now.seconds(), Relaxed);
        self.datagrams.add(std::mem::take(&mut tally.datagrams));
        self.bytes.add(std::mem::take(&mut tally.bytes));
        self.truncated.add(std::mem::take(&mut tally.truncated));
        self.lines.add(std::mem::take(&mut tally.lines));
        if std::mem::take(&mut tally.lossy) {
            for (total, new) in self.rejects.iter().zip(&mut tally.rejects) {
                total.add(std::mem::take(new).into());
            }
            for (total, new) in self.dropped.iter().zip(&mut tally.dropped) {
                total.add(std::mem::take(new));
            }
        }
    }

    /// Lines refused, by reason.
    pub fn rejects(&self) -> impl Iterator<Item = (Reject, u64)> {
        Reject::ALL.into_iter().map(|reason| (reason, self.rejects[reason as usize].get()))
    }

    /// What was dropped, by cause.
    pub fn dropped(&self) -> impl Iterator<Item = (Drop, u64)> {
        Drop::ALL.into_iter().map(|cause| (cause, self.dropped[cause as usize].get()))
    }

    /// Unix seconds at which something last came.
    pub fn used(&self) -> i64 {
        self.used.load(Relaxed)
    }

    pub fn name(&self) -> Option<Arc<str>> {
        self.name.lock().expect("no panic under this lock").clone()
    }

    fn give_name(&self, name: impl FnOnce() -> Option<Arc<str>>) {
        let mut known = self.name.lock().expect("no panic under this lock");
        if known.is_none() {
            *known = name();
        }
    }

    /// How a sender is called where there is one word for it.
    pub fn label(&self) -> String {
        let name = self.name();
        match &self.who {
            Who::Others => "others".to_owned(),
            Who::Container(id) => match name {
                Some(name) => format!("container {name}"),
                None => format!("container {}", id.get(..12).unwrap_or(id)),
            },
            Who::Process { pid: 0, uid } => format!("uid {uid} of another pid namespace"),
            Who::Process { pid, uid } => match name {
                Some(program) => format!("{program}[{pid}] uid {uid}"),
                None => format!("pid {pid} uid {uid}"),
            },
            Who::Address(address) => address.to_string(),
            Who::Listener(listener) => format!("via {listener}"),
        }
    }

    fn take_over(&self, closed: &Self) {
        let pairs = [
            (&self.datagrams, &closed.datagrams),
            (&self.bytes, &closed.bytes),
            (&self.truncated, &closed.truncated),
            (&self.lines, &closed.lines),
        ];
        let rejects = self.rejects.iter().zip(&closed.rejects);
        let dropped = self.dropped.iter().zip(&closed.dropped);
        for (to, from) in pairs.into_iter().chain(rejects).chain(dropped) {
            to.add(from.get());
        }
        self.used.fetch_max(closed.used(), Relaxed);
    }
}

/// All accounts. The lock is taken for a sender that a reader does not know, and by who looks.
#[derive(Debug)]
pub struct Senders {
    table: Mutex<Table>,
    others: Arc<Account>,
    /// Series held now, by the account of who made them.
    series: Box<[AtomicU64]>,
    /// Accounts that were closed to make room for others.
    pub forgotten: Counter,
    /// Times that a sender got no account.
    pub refused: Counter,
}

#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<Who, Arc<Account>, RandomState>,
    /// Numbers of closed accounts.
    free: Vec<u16>,
    /// When room was last looked for, in Unix seconds.
    swept: i64,
}

impl Default for Senders {
    fn default() -> Self {
        let others = Account::new(OTHERS, Who::Others, None, Time::default());
        Self {
            table: Mutex::default(),
            others: Arc::new(others),
            series: std::iter::repeat_with(AtomicU64::default).take(SENDERS_MAX).collect(),
            forgotten: Counter::default(),
            refused: Counter::default(),
        }
    }
}

impl Senders {
    /// The account of a sender, opened if there is room for it; else that of the others. `name` is
    /// asked while it has none.
    pub fn account(
        &self,
        who: Who,
        now: Time,
        name: impl FnOnce() -> Option<Arc<str>>,
    ) -> Arc<Account> {
        let mut table = self.table.lock().expect("no panic under this lock");
        if let Some(account) = table.accounts.get(&who) {
            account.give_name(name);
            return Arc::clone(account);
        }
        if table.accounts.len() + 1 >= SENDERS_MAX {
            self.make_room(&mut table, now);
        }
        let next = u16::try_from(table.accounts.len() + 1).ok();
        let next = next.filter(|next| usize::from(*next) < SENDERS_MAX);
        let Some(number) = table.free.pop().or(next) else {
            drop(table);
            self.refused.add(1);
            return Arc::clone(&self.others);
        };
        let account = Arc::new(Account::new(number, who.clone(), name(), now));
        table.accounts.insert(who, Arc::clone(&account));
        account
    }

    /// Closes the accounts that were silent for longest, of those that nobody holds. To look costs
    /// something, so it is done once a second.
    fn make_room(&self, table: &mut Table, now: Time) {
        if std::mem::replace(&mut table.swept, now.seconds()) == now.seconds() {
            return;
        }
        // Nobody gets at an account but through this table, which is locked.
        let unheld = |account: &&Arc<Account>| {
            Arc::strong_count(account) == 1 && self.series_of(account.number) == 0
        };
        let unheld = table.accounts.values().filter(unheld);
        let mut silent: Vec<_> =
            unheld.map(|account| (account.used(), account.who.clone())).collect();
        silent.sort_unstable_by_key(|(used, _)| *used);
        for (_, who) in silent.into_iter().take(CLOSED_AT_ONCE) {
            if let Some(account) = table.accounts.remove(&who) {
                self.others.take_over(&account);
                table.free.push(account.number);
                self.forgotten.add(1);
            }
        }
    }

    /// Every account, that of the others first.
    pub fn all(&self) -> Vec<Arc<Account>> {
        let table = self.table.lock().expect("no panic under this lock");
        std::iter::once(&self.others).chain(table.accounts.values()).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.table.lock().expect("no panic under this lock").accounts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Series held now that this sender was the first to send.
    pub fn series_of(&self, number: u16) -> u64 {
        self.series[usize::from(number)].load(Relaxed)
    }

    /// A series begins whose maker has this number.
    pub fn begin_series(&self, number: u16) {
        self.series[usize::from(number)].fetch_add(1, Relaxed);
    }

    /// Such a series ends.
    pub fn end_series(&self, number: u16) {
        self.series[usize::from(number)].fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_seconds(1000);

    fn process(pid: u32) -> Who {
        Who::Process { pid, uid: 5 }
    }

    fn open(senders: &Senders, who: Who, now: Time) -> Arc<Account> {
        senders.account(who, now, || None)
    }

    fn total(senders: &Senders) -> u64 {
        senders.all().iter().map(|account| account.lines.get()).sum()
    }

    #[test]
    fn a_tally_is_added_once() {
        let senders = Senders::default();
        let account = open(&senders, process(7), NOW);
        let mut tally = Tally { datagrams: 1, bytes: 20, lines: 3, ..Tally::default() };
        tally.reject(Reject::Type);
        tally.drop(Drop::Timed, 2);
        for _ in 0..2 {
            account.settle(&mut tally, Time::from_seconds(1005));
        }
        let again = open(&senders, process(7), NOW);
        assert_eq!((again.datagrams.get(), again.bytes.get(), again.lines.get()), (1, 20, 3));
        let rejects: Vec<_> = again.rejects().filter(|(_, lines)| *lines > 0).collect();
        let dropped: Vec<_> = again.dropped().filter(|(_, lines)| *lines > 0).collect();
        assert_eq!((rejects, dropped), (vec![(Reject::Type, 1)], vec![(Drop::Timed, 2)]));
        assert_eq!((again.used(), senders.len()), (1005, 1));
    }

    #[test]
    fn room_is_made_of_those_that_nobody_holds_and_no_figure_is_lost() {
        let senders = Senders::default();
        let full = SENDERS_MAX as u32 - 1;
        let mut held = Vec::new();
        for pid in 1..=full {
            let account = open(&senders, process(pid), Time::from_seconds(i64::from(pid)));
            let mut tally = Tally { lines: 1, ..Tally::default() };
            account.settle(&mut tally, Time::from_seconds(i64::from(pid)));
            // The first is held by a reader, the second has a series.
            match pid {
                1 => held.push(account),
                2 => senders.begin_series(account.number),
                _ => {}
            }
        }
        assert_eq!((senders.len() as u32, senders.forgotten.get()), (full, 0));
        let now = Time::from_seconds(10_000);
        let new = open(&senders, process(full + 1), now);
        assert_eq!(senders.forgotten.get(), CLOSED_AT_ONCE as u64);
        let has = |who: Who| senders.all().iter().any(|account| account.who == who);
        let closed = CLOSED_AT_ONCE as u32;
        let expected = [
            (1, true),
            (2, true),
            (3, false),
            (closed + 2, false),
            (closed + 3, true),
            (full + 1, true),
        ];
        for (pid, kept) in expected {
            assert_eq!(has(process(pid)), kept, "{pid}");
        }
        assert_eq!(total(&senders), u64::from(full));
        let mut numbers: Vec<_> = senders.all().iter().map(|account| account.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), senders.len() + 1, "no two have the same number");
        drop((held, new));

        // Who comes when nobody can be closed is one of the others.
        for account in senders.all() {
            senders.begin_series(account.number);
        }
        let mut refused = 0;
        for pid in 0..2 * closed {
            let account = open(&senders, process(100_000 + pid), Time::from_seconds(20_000));
            refused += u64::from(account.who == Who::Others);
            senders.begin_series(account.number);
        }
        assert_eq!(refused, u64::from(closed) + 1);
        assert_eq!((senders.refused.get(), senders.len() as u32), (refused, full));
    }

    #[test]
    fn senders_have_a_word() {
        let senders = Senders::default();
        let id: Arc<str> = "0123456789abcdef".into();
        let named = |name: &str| Some(Arc::from(name));
        for (who, name, label) in [
            (Who::Container(Arc::clone(&id)), None, "container 0123456789ab"),
            // Once it is known.
            (Who::Container(id), named("web-1"), "container web-1"),
            (process(7), named("python3"), "python3[7] uid 5"),
            (process(8), None, "pid 8 uid 5"),
            (process(0), None, "uid 5 of another pid namespace"),
            (Who::Address("10.0.0.1".parse().expect("an address")), None, "10.0.0.1"),
            (Who::Listener("udp://x".into()), None, "via udp://x"),
        ] {
            assert_eq!(senders.account(who, NOW, || name).label(), label);
        }
        assert_eq!(senders.all()[0].label(), "others");
    }
}
