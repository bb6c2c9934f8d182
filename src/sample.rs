//! What one line of the protocol says, borrowed from the datagram it came in.
//!
//! Nothing here allocates: a [`Sample`] is a handful of slices of the reader's buffer. Names, tags
//! and members are bytes, since the protocol does not promise UTF-8.

use serde::{Deserialize, Serialize};

/// What a sample measures. One name may be sent with several kinds: they are separate series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `c`: summed within a bucket.
    Count,
    /// `g`: the last value wins.
    Gauge,
    /// `s`: the number of distinct members.
    Set,
    /// `ms`: a histogram of durations, in milliseconds by convention.
    Timer,
    /// `h`: minimum, maximum, average, percentiles and so on of the values.
    Histogram,
    /// `d`: a sketch, whose percentiles the backend computes over all hosts.
    Distribution,
}

impl Kind {
    /// Every kind, in the order of its discriminant.
    pub const ALL: [Self; 6] =
        [Self::Count, Self::Gauge, Self::Set, Self::Timer, Self::Histogram, Self::Distribution];

    /// The kinds whose value is one number, which fits into a cell.
    pub const FLAT: [Self; 2] = [Self::Count, Self::Gauge];

    /// The kinds whose values do not.
    pub const BOXED: [Self; 4] = [Self::Set, Self::Timer, Self::Histogram, Self::Distribution];

    /// The word used on pages, in tables and in tags.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Gauge => "gauge",
            Self::Set => "set",
            Self::Timer => "timer",
            Self::Histogram => "histogram",
            Self::Distribution => "distribution",
        }
    }
}

/// Which reading of the statsd line format a listener applies.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// DogStatsD as the Datadog Agent reads it.
    #[default]
    Datadog,
    /// The original statsd: signed gauges are deltas, unknown types are counters, keys are
    /// sanitised.
    Statsd,
}

/// One line that was understood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'a> {
    Metric(Sample<'a>),
    Event(EventLine<'a>),
    Check(CheckLine<'a>),
}

/// One metric line: possibly several values of one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// As sent, before mapping, namespace and sanitising. Never empty.
    pub name: &'a [u8],
    pub kind: Kind,
    pub values: Values<'a>,
    /// The sample rate as sent, 1 when absent. Not range-checked: see [`Reading::weight`].
    pub rate: f64,
    /// The raw text of the last `#` field, comma separated; empty when there is none.
    pub tags: &'a [u8],
    /// Unix seconds of the `T` field, at least 1.
    pub timestamp: Option<i64>,
    pub origin: OriginFields<'a>,
}

/// What a sample adds to its series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    pub values: Values<'a>,
    /// As in [`Sample`].
    pub rate: f64,
    pub timestamp: Option<i64>,
}

impl Reading<'_> {
    /// How many events one value stands for: `1 / rate`. A rate outside (0, 1] counts as 1, where
    /// the originals divide by zero or go negative; `None` tells that this happened.
    #[inline]
    pub fn weight(&self) -> Option<f64> {
        if self.rate == 1.0 {
            // Nearly always, and sooner said than divided.
            Some(1.0)
        } else if self.rate > 0.0 && self.rate < 1.0 {
            Some((1.0 / self.rate).min(f64::MAX))
        } else {
            None
        }
    }
}

impl<'a> Sample<'a> {
    pub const fn reading(&self) -> Reading<'a> {
        Reading { values: self.values, rate: self.rate, timestamp: self.timestamp }
    }

    /// The tags as sent, in order, with empty and repeated ones.
    pub fn tags(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        split_tags(self.tags)
    }
}

/// Splits the text of a `#` field; empty text has no tags.
pub fn split_tags(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = (!text.is_empty()).then(|| text.split(|&b| b == b','));
    parts.into_iter().flatten()
}

/// The values of one metric line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values<'a> {
    /// A single number. It may be infinite or NaN: the aggregate refuses those one by one.
    One(f64),
    /// The text of two or more numbers, `1:2:3`, each already checked; empty elements are skipped.
    Packed(&'a [u8]),
    /// A member of a set, colons included.
    Member(&'a [u8]),
    /// A signed change of a gauge (dialect `statsd` only).
    Delta(f64),
}

/// The client's own words about who it is; empty means absent. Read by [`crate::origin`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginFields<'a> {
    /// `c:` local data: container id or cgroup inode.
    pub local: &'a [u8],
    /// `e:` external data: pod uid, container name.
    pub external: &'a [u8],
    /// `card:` how many tags the origin should bring.
    pub cardinality: &'a [u8],
}

/// One event line, still escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLine<'a> {
    pub title: &'a [u8],
    pub text: &'a [u8],
    /// Unix seconds; 0 means "when it arrived".
    pub timestamp: i64,
    /// Empty means absent.
    pub host: &'a [u8],
    pub aggregation_key: &'a [u8],
    pub source_type: &'a [u8],
    pub priority: Priority,
    pub alert_type: AlertType,
    pub tags: &'a [u8],
    pub origin: OriginFields<'a>,
    /// Number of optional fields that were malformed and left out.
    pub ignored: u8,
}

/// One service check line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckLine<'a> {
    pub name: &'a [u8],
    pub status: Status,
    /// Unix seconds; 0 means "when it arrived".
    pub timestamp: i64,
    /// Empty means absent.
    pub host: &'a [u8],
    pub message: &'a [u8],
    pub tags: &'a [u8],
    pub origin: OriginFields<'a>,
    /// Number of optional fields that were malformed and left out.
    pub ignored: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    #[default]
    Normal,
    Low,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertType {
    Error,
    Warning,
    #[default]
    Info,
    Success,
}

/// The state a service check reports; the discriminants are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

/// Why a line was refused. Counted by reason; the line costs its neighbours nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// No `|` in a metric line.
    NoPipe,
    /// No colon, an empty name, or an empty value part.
    NameValue,
    /// The type is none of `c g h ms d s`.
    Type,
    /// A value that is not a number.
    Value,
    /// Colons only, where values should be.
    NoValue,
    /// `@` without a number.
    SampleRate,
    /// `T` without a positive integer.
    Timestamp,
    /// An event without `_e{title length,text length}:`.
    EventHeader,
    EventEmptyTitle,
    /// An event shorter than its header says.
    EventBody,
    /// A service check with fewer than two `|`.
    CheckFormat,
    CheckName,
    /// A status other than 0, 1, 2, 3.
    CheckStatus,
    /// The last line lacks its newline on a listener that requires one.
    Unterminated,
    /// The last line of a datagram that the kernel had to cut to the buffer's size.
    Truncated,
}

impl Reject {
    /// Every reason, in the order of its discriminant.
    pub const ALL: [Self; 15] = [
        Self::NoPipe,
        Self::NameValue,
        Self::Type,
        Self::Value,
        Self::NoValue,
        Self::SampleRate,
        Self::Timestamp,
        Self::EventHeader,
        Self::EventEmptyTitle,
        Self::EventBody,
        Self::CheckFormat,
        Self::CheckName,
        Self::CheckStatus,
        Self::Unterminated,
        Self::Truncated,
    ];

    /// The word used in logs, metrics and test vectors.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoPipe => "no_pipe",
            Self::NameValue => "name_value",
            Self::Type => "type",
            Self::Value => "value",
            Self::NoValue => "no_value",
            Self::SampleRate => "sample_rate",
            Self::Timestamp => "timestamp",
            Self::EventHeader => "event_header",
            Self::EventEmptyTitle => "event_empty_title",
            Self::EventBody => "event_body",
            Self::CheckFormat => "sc_format",
            Self::CheckName => "sc_name",
            Self::CheckStatus => "sc_status",
            Self::Unterminated => "unterminated",
            Self::Truncated => "truncated",
        }
    }
}
