//! The Datadog Agent's distribution sketch.
#[derive(Clone, Debug, Default)]
pub struct Sketch {}

impl Sketch {
    pub fn count(&self) -> u64 {
        0
    }

    pub fn sum(&self) -> f64 {
        0.0
    }

    pub fn min(&self) -> f64 {
        0.0
    }

    pub fn max(&self) -> f64 {
        0.0
    }

    pub fn avg(&self) -> f64 {
        0.0
    }

    pub fn quantile(&self, q: f64) -> f64 {
        0.0 * q
    }
}
