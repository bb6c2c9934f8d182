//! The Datadog Agent's distribution sketch.

/// A stand-in with the interface of the sketch to come: one bin per value.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    values: Vec<f64>,
}

impl Sketch {
    pub fn insert(&mut self, value: f64) {
        self.values.push(value);
    }

    pub fn finish(&mut self) {}

    pub fn count(&self) -> u64 {
        self.values.len() as u64
    }

    pub fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    pub fn avg(&self) -> f64 {
        self.sum() / self.values.len() as f64
    }

    pub fn sum(&self) -> f64 {
        self.values.iter().sum()
    }

    pub fn bins(&self) -> impl Iterator<Item = (i16, u32)> {
        self.values.iter().map(|value| (*value as i16, 1))
    }
}
