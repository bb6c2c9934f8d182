//! The accumulators: what one series holds within one bucket, one shape per kind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How histograms and sets are summed up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Figures sent for each histogram and timer: max, median, avg, count, min, sum.
    pub histogram_aggregates: Vec<String>,
    /// Percentiles sent for each histogram and timer, as fractions between 0 and 1.
    pub histogram_percentiles: Vec<String>,
    /// Samples that one histogram keeps exactly within a bucket; beyond it percentiles come from a
    /// histogram of three significant digits, while count, sum, minimum and maximum stay exact.
    pub histogram_samples_max: usize,
    /// Members that one set counts exactly within a bucket; beyond it the count is an estimate
    /// with a standard error of 0.8 %.
    pub set_members_max: usize,
    /// Also send each histogram and timer as a distribution.
    pub histogram_copy_to_distribution: bool,
    /// Put before the name of such a copy.
    pub histogram_copy_to_distribution_prefix: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            histogram_aggregates: ["max", "median", "avg", "count"].map(String::from).to_vec(),
            histogram_percentiles: vec!["0.95".to_owned()],
            histogram_samples_max: 4096,
            set_members_max: 16_384,
            histogram_copy_to_distribution: false,
            histogram_copy_to_distribution_prefix: String::new(),
        }
    }
}

/// One of the figures a histogram is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    Max,
    Median,
    Avg,
    Count,
    Min,
    Sum,
}

/// What a histogram came to. Weighted by the sample rate throughout.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub count: f64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub median: f64,
    /// Per cent and value, ascending.
    pub percentiles: Vec<(u8, f64)>,
}

impl Summary {
    pub fn avg(&self) -> f64 {
        self.sum / self.count
    }
}
