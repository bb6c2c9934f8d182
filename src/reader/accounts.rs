//! Whose account the lines of a reader go to.

use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashMap;

use crate::origin::{Origin, Origins};
use crate::sys::Sender;
use crate::telemetry::senders::{Account, SENDERS_MAX, Senders, Tally, Who};
use crate::time::Time;

/// Milliseconds after which a reader asks anew whose account is whose: an account that no reader
/// holds can be closed.
const KNOWN: i64 = 60_000;

/// Senders that a reader knows; all are forgotten when there are more.
const KNOWN_MAX: usize = 2 * SENDERS_MAX;

/// The senders that one reader knows, and what it counts for the one whose lines it takes in.
pub(super) struct Accounts {
    /// Where the kernel says nothing, all are one sender.
    listener: Arc<str>,
    known: HashMap<(Sender, Origin), usize, RandomState>,
    accounts: Vec<Arc<Account>>,
    since: Time,
    /// Whose lines are being taken in, and the place of its account.
    open: Option<((Sender, Origin), usize)>,
    pub tally: Tally,
}

impl Accounts {
    pub(super) fn new(listener: &str) -> Self {
        Self {
            listener: listener.into(),
            known: HashMap::default(),
            accounts: Vec::new(),
            since: Time::default(),
            open: None,
            tally: Tally::default(),
        }
    }

    /// What follows was sent by this sender.
    pub(super) fn open(
        &mut self,
        sender: (Sender, Origin),
        now: Time,
        senders: &Senders,
        origins: &Origins,
    ) {
        if self.open.is_some_and(|(open, _)| open == sender) {
            return;
        }
        self.settle(now);
        let place = match self.known.get(&sender) {
            Some(place) => *place,
            None => self.meet(sender, now, senders, origins),
        };
        self.open = Some((sender, place));
    }

    #[cold]
    fn meet(
        &mut self,
        sender: (Sender, Origin),
        now: Time,
        senders: &Senders,
        origins: &Origins,
    ) -> usize {
        if self.known.len() >= KNOWN_MAX {
            self.forget();
        }
        let (who, name) = origins.who(sender.0, sender.1);
        let who = who.unwrap_or_else(|| Who::Listener(Arc::clone(&self.listener)));
        self.accounts.push(senders.account(who, now, name));
        self.known.insert(sender, self.accounts.len() - 1);
        self.accounts.len() - 1
    }

    /// The account of the sender whose lines are being taken in.
    pub(super) fn account(&self) -> Option<&Account> {
        self.open.map(|(_, place)| &*self.accounts[place])
    }

    /// The number of this account.
    pub(super) fn number(&self) -> u16 {
        self.account().map_or(0, |account| account.number)
    }

    /// Adds what was counted to the account.
    pub(super) fn settle(&mut self, now: Time) {
        if let Some((_, place)) = self.open {
            self.accounts[place].settle(&mut self.tally, now);
        }
    }

    /// To be called about once a second.
    pub(super) fn tick(&mut self, now: Time) {
        // A clock that was set back begins anew as well.
        if now.0 - self.since.0 >= KNOWN || now < self.since {
            self.settle(now);
            self.since = now;
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.open = None;
        self.known.clear();
        self.accounts.clear();
    }
}
