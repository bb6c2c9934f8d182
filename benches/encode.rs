//! From a batch to what the sinks send. An iteration is one series, so times are per series: of all
//! but distributions for the series payloads, of distributions for the sketches, else of all.

mod lines;
mod rig;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tallyd::encode::datadog::{self, Compression, Limits, Options, Route};
use tallyd::encode::table::{self, Layout};
use tallyd::sample::Kind;
use tallyd::sinks::{Sink, prometheus};

use rig::{Part, Rig};

const SERIES: u64 = 10_000;

fn bench(c: &mut Criterion) {
    let mut rig = Rig::new(SERIES, 8192);
    rig.fill();
    let batch = Arc::new(rig.close());
    let sketches = batch.rows.iter().filter(|row| row.context.kind() == Kind::Distribution);
    let sketches = sketches.count() as u64;

    let mut group = c.benchmark_group("encode (time is per series)");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
    let mut each = |name: &str, series: u64, work: &mut dyn FnMut()| {
        group.bench_function(name, |b| b.iter_custom(|n| time(series, n, &mut *work)));
    };
    let datadog = |route, compression| {
        let options = options(route, compression);
        let batch = &batch;
        move || drop(black_box(datadog::encode(black_box(batch), &options)))
    };
    let zstd = Compression::Zstd(1);
    let series = SERIES - sketches;
    each("datadog series v2, zstd", series, &mut datadog(Route::SeriesV2, zstd));
    each("datadog series v2, plain", series, &mut datadog(Route::SeriesV2, Compression::None));
    each("datadog sketches, zstd", sketches, &mut datadog(Route::Sketches, zstd));
    each("datadog sketches, plain", sketches, &mut datadog(Route::Sketches, Compression::None));

    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let page = prometheus::Prometheus::new(&prometheus::Config::default(), "", Arc::default())
        .expect("a page");
    let payload = page.encode(&batch).payloads.remove(0);
    each("page, taking in a batch", SERIES, &mut || {
        runtime.block_on(page.send(0, &payload));
    });
    let mut text = String::new();
    each("page, written", SERIES, &mut || {
        text.clear();
        page.snapshot().write(&mut text, usize::MAX);
        black_box(&text);
    });
    let layout = Layout { width: 100, rows: 40, hostname: String::new() };
    each("table of 40 rows", SERIES, &mut || _ = black_box(table::table(&batch, &layout)));
}

fn options(route: Route, compression: Compression) -> Options {
    // The intake's.
    let series = Limits { compressed: 512_000, raw: 5_242_880, points: 10_000 };
    let other = Limits { compressed: 2_621_440, raw: 4_194_304, points: usize::MAX };
    Options { routes: vec![route], hostname: "bench-1".to_owned(), compression, series, other }
}

fn time(per_call: u64, series: u64, work: &mut dyn FnMut()) -> Duration {
    let mut whole = Part::default();
    while whole.done < series {
        whole.time(|| {
            work();
            per_call
        });
    }
    whole.of(series)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = bench
}
criterion_main!(benches);
