//! Series as the protobuf `MetricPayload`: POST /api/v2/series.

use super::pack::{Frame, Gatherer, Output};
use super::series::{Series, expand};
use super::{device, metadata, plain_tags, resources};
use crate::batch::Batch;
use crate::encode::protobuf::Message;

/// `MetricType` of the intake.
const RATE: i64 = 2;
const GAUGE: i64 = 3;

pub fn encode(batch: &Batch, output: Output<'_>) {
    let points_max = output.limits().points;
    let mut gatherer = Gatherer::new(output, Frame::default());
    let dropped = expand(batch, points_max, |series| {
        gatherer.item(series.points.len(), |bytes| {
            Message(bytes).message(1, |message| write(message, series));
        });
    });
    gatherer.finish().drop_points(dropped);
}

/// Writes a `MetricSeries`. The host is always the first resource, even when it is empty.
fn write(message: &mut Message<'_>, series: &Series<'_>) {
    let context = series.context;
    let host = std::iter::once(("host", context.host()));
    let device = device(context).map(|device| ("device", device));
    for (kind, name) in host.chain(device).chain(resources(context)) {
        message.message(1, |resource| {
            resource.string(1, kind);
            resource.string(2, name);
        });
    }
    message.string(2, series.name);
    for tag in plain_tags(context) {
        message.string(3, tag);
    }
    for &(time, value) in series.points {
        message.message(4, |point| {
            point.double(1, value);
            point.int64(2, time);
        });
    }
    message.int64(5, if series.rate { RATE } else { GAUGE });
    message.string(6, series.unit);
    message.int64(8, i64::from(series.interval));
    metadata(message, 9, context.source());
}
