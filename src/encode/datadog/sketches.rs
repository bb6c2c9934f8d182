//! Distributions as the protobuf `SketchPayload`: POST /api/beta/sketches.

use super::metadata;
use super::pack::{Frame, Gatherer, Output};
use crate::batch::{Batch, Row, Value};
use crate::context::Context;
use crate::encode::protobuf::Message;
use crate::sketch::Sketch;

/// Field 2, the payload's own metadata, is always sent, and always empty.
const FRAME: Frame = Frame { head: b"", between: b"", tail: &[2 << 3 | 2, 0] };

/// Points of one series in one message: a sketch may take 30 kB, and a message must fit a payload.
const POINTS_MAX: usize = 64;

pub fn encode(batch: &Batch, output: Output<'_>) {
    let mut gatherer = Gatherer::new(output, FRAME);
    for rows in batch.series_and_own() {
        let points: Vec<(i64, &Sketch)> = rows.iter().filter_map(point).collect();
        for points in points.chunks(POINTS_MAX) {
            gatherer.item(points.len(), |bytes| {
                Message(bytes).message(1, |message| write(message, &rows[0].context, points));
            });
        }
    }
    gatherer.finish();
}

fn point(row: &Row) -> Option<(i64, &Sketch)> {
    match &row.value {
        Value::Distribution(sketch) => Some((row.time, sketch)),
        Value::Count(_) | Value::Gauge(_) | Value::Set(_) | Value::Histogram(_) => None,
    }
}

/// Writes one `Sketch`, whose numbers are always finite. Unlike a series, it keeps device and
/// resource tags as tags.
fn write(message: &mut Message<'_>, context: &Context, points: &[(i64, &Sketch)]) {
    message.string(1, context.name());
    message.string(2, context.host());
    for tag in context.tags() {
        message.string(4, tag);
    }
    for &(time, sketch) in points {
        message.message(7, |dogsketch| {
            dogsketch.int64(1, time);
            dogsketch.int64(2, sketch.count() as i64);
            dogsketch.double(3, sketch.min());
            dogsketch.double(4, sketch.max());
            dogsketch.double(5, sketch.avg());
            dogsketch.double(6, sketch.sum());
            dogsketch.packed_sint32(7, sketch.bins().map(|(key, _)| i32::from(key)));
            dogsketch.packed_uint32(8, sketch.bins().map(|(_, count)| count));
        });
    }
    metadata(message, 8, context.source());
}
