//! Closing a bucket. An iteration is one series with ten samples, so times are per series; they
//! include sorting the samples of histograms and sketches, not the freeing of the batch.

mod lines;
mod rig;

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

use rig::Rig;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("flush (time is per series)");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
    for series in [1_000, 10_000, 100_000] {
        let mut rig = None;
        group.bench_function(format!("{series} series"), |b| {
            let rig = rig.get_or_insert_with(|| Rig::new(series, 8192));
            b.iter_custom(|n| rig.time_flush(n));
        });
    }
    group.finish();
    // What the thread of the flush does for a page at which nobody looks: history, what clients count,
    // and the figures of the last flush.
    let mut group = c.benchmark_group("after a flush (time is per series)");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
    for series in [1_000, 100_000, 1_000_000] {
        let mut rig = None;
        group.bench_function(format!("{series} series"), |b| {
            let rig = rig.get_or_insert_with(|| Rig::new(series, 8192));
            b.iter_custom(|n| rig.time_record(n));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(benches);
