//! The page as of one moment, written out piece by piece.

use super::Observed;
use crate::context::Context;
use crate::encode::exposition::{Labels, Type, write_quantile, write_sample, write_type};

/// What one scrape gets, whatever is folded in meanwhile. Its text may be a hundred times as long as
/// what is sent of it at once, so it is never there as a whole.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) hostname: String,
    /// Name and type of each, in their order.
    pub(super) families: Vec<(String, Type)>,
    pub(super) lines: Vec<Line>,
    /// Lists of quantiles.
    pub(super) quantiles: Vec<Box<[f64]>>,
    /// The line that comes next.
    pub(super) next: usize,
}

/// One series.
#[derive(Debug)]
pub(super) struct Line {
    /// In the list of families.
    pub family: u32,
    /// Its labels are made of this.
    pub context: Context,
    pub value: f64,
    pub observed: Option<Box<Observed>>,
}

impl Snapshot {
    /// Puts it in the order in which it is written: by family, then by name, host and tags.
    pub(super) fn sort(&mut self) {
        self.lines.sort_unstable_by(|a, b| {
            let families = a.family.cmp(&b.family);
            families.then_with(|| a.context.cmp(&b.context))
        });
    }

    /// Appends series until this many bytes are reached, or the end: then it returns false.
    pub fn write(&mut self, out: &mut String, bytes: usize) -> bool {
        while out.len() < bytes {
            let Some(Line { family, context, value, observed }) = self.lines.get(self.next) else {
                return false;
            };
            let before = self.next.checked_sub(1).map(|before| self.lines[before].family);
            let (name, kind) = &self.families[*family as usize];
            if before != Some(*family) {
                write_type(out, name, *kind);
            }
            let labels = Labels::of_series(context, &self.hostname);
            match observed {
                None => write_sample(out, name, "", &labels, *value),
                Some(observed) => {
                    let quantiles = &self.quantiles[observed.quantiles as usize];
                    for (quantile, value) in quantiles.iter().zip(&observed.values) {
                        write_quantile(out, name, *quantile, &labels, *value);
                    }
                    write_sample(out, name, "_sum", &labels, *value);
                    write_sample(out, name, "_count", &labels, observed.count);
                }
            }
            self.next += 1;
        }
        true
    }
}
