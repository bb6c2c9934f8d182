//! The books of the sinks, as `/metrics` shows them.

use std::sync::atomic::Ordering::Relaxed;

use tallyd::telemetry::Endpoint;

use super::process::Tallyd;

/// The sum of a figure over the endpoints of a sink.
pub fn figure(tallyd: &Tallyd, sink: &str, name: &str) -> f64 {
    tallyd.figure(&format!("tallyd_sink_{name}"), &format!("sink=\"{sink}\""))
}

/// Points of one page by endpoint: what came in or was found, and what became of it.
fn accounts(page: &str, sink: &str) -> Vec<(String, f64, f64)> {
    let came = ["offered_points_total", "spool_found_points_total"];
    let went = ["delivered_points_total", "spooled_points", "held_points", "dropped_points_total"];
    let figure = |line: &str| -> Option<(String, String, f64)> {
        let (series, value) = line.strip_prefix("tallyd_sink_")?.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{')?;
        let endpoint = labels.split("endpoint=\"").nth(1)?.split('"').next()?;
        let of_sink = labels.contains(&format!("sink=\"{sink}\""));
        of_sink.then(|| (name.to_owned(), endpoint.to_owned(), value.parse().unwrap()))
    };
    let figures: Vec<_> = page.lines().filter_map(figure).collect();
    let mut endpoints: Vec<_> = figures.iter().map(|(_, endpoint, _)| endpoint.clone()).collect();
    endpoints.sort();
    endpoints.dedup();
    let sum = |endpoint: &str, names: &[&str]| {
        let chosen =
            figures.iter().filter(|(name, of, _)| of == endpoint && names.contains(&name.as_str()));
        chosen.map(|(.., value)| value).sum::<f64>()
    };
    let account =
        |endpoint: String| (endpoint.clone(), sum(&endpoint, &came), sum(&endpoint, &went));
    endpoints.into_iter().map(account).collect()
}

/// At each endpoint of a sink every point that came in, or was found, is delivered, spooled, held,
/// or dropped for a cause. While a payload changes from one to the other it may be seen in both, so
/// this waits a moment for the books to balance.
pub fn assert_conserved(tallyd: &Tallyd, sink: &str) {
    let balanced = |page: &str| accounts(page, sink).iter().all(|(_, came, went)| came == went);
    tallyd.wait_until(&format!("the books of {sink} balance"), |tallyd| {
        let page = tallyd.page("/metrics");
        assert!(!accounts(&page, sink).is_empty(), "{page}");
        balanced(&page)
    });
}

/// The same of an endpoint within this process. What is offered counts once it is encoded, and is
/// held until then: so this is true only while no batch is on that way.
pub fn balance(endpoint: &Endpoint) -> bool {
    let came = endpoint.offered.get() + endpoint.found.get();
    let dropped: u64 = endpoint.drops().iter().map(|(_, points)| points).sum();
    let waits = endpoint.spooled.points.load(Relaxed) + endpoint.held.load(Relaxed);
    came == endpoint.delivered.get() + waits + dropped
}

#[test]
fn books_that_do_not_balance_are_seen() {
    let page = "tallyd_sink_offered_points_total{sink=\"s\",endpoint=\"a\"} 5\n\
                tallyd_sink_offered_points_total{sink=\"s\",endpoint=\"b\"} 2\n\
                tallyd_sink_offered_points_total{sink=\"t\",endpoint=\"a\"} 9\n\
                tallyd_sink_spool_found_points_total{sink=\"s\",endpoint=\"b\"} 3\n\
                tallyd_sink_delivered_points_total{sink=\"s\",endpoint=\"a\"} 1\n\
                tallyd_sink_spooled_points{sink=\"s\",endpoint=\"a\"} 1\n\
                tallyd_sink_held_points{sink=\"s\",endpoint=\"a\"} 1\n\
                tallyd_sink_dropped_points_total{sink=\"s\",endpoint=\"a\",cause=\"x\"} 1\n\
                tallyd_sink_dropped_points_total{sink=\"s\",endpoint=\"a\",cause=\"y\"} 1\n\
                tallyd_sink_retries_total{sink=\"s\",endpoint=\"a\"} 7\n";
    let expected = [("a".to_owned(), 5.0, 5.0), ("b".to_owned(), 5.0, 0.0)];
    assert_eq!(accounts(page, "s"), expected);
}
