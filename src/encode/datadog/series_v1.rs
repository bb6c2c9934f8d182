//! Series as JSON: POST /api/v1/series.

use serde::Serialize;

use super::pack::{Frame, Gatherer, Output};
use super::series::expand;
use super::{device, plain_tags};
use crate::batch::Batch;

const FRAME: Frame = Frame { head: br#"{"series":["#, between: b",", tail: b"]}" };

#[derive(Serialize)]
struct Series<'a> {
    metric: &'a str,
    points: &'a [(i64, f64)],
    tags: Vec<&'a str>,
    host: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
    r#type: &'static str,
    interval: u32,
}

/// Resources other than host and device have no place here, as in the Agent's.
pub fn encode(batch: &Batch, points_max: usize, output: Output<'_>) {
    let mut gatherer = Gatherer::new(output, FRAME);
    let dropped = expand(batch, points_max, |series| {
        let json = Series {
            metric: series.name,
            points: series.points,
            tags: plain_tags(series.context).collect(),
            host: series.context.host(),
            device: device(series.context),
            r#type: if series.rate { "rate" } else { "gauge" },
            interval: series.interval,
        };
        gatherer.item(series.points.len(), |bytes| {
            serde_json::to_writer(bytes, &json).expect("numbers and strings are JSON");
        });
    });
    gatherer.finish().drop_points(dropped);
}
