//! The Datadog Agent's distribution sketch.
#[derive(Clone, Debug, Default)]
pub struct Sketch {}
