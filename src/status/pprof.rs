//! The profile of tallyd's own CPU time, at the paths that `go tool pprof` and pprof-server ask.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;

use crate::profile::Profile;
use crate::profile::window::Window;

/// Profiles on demand and drawings under way at once. One more gets a 503.
const UNDER_WAY_MAX: usize = 8;

/// Seconds of a profile on demand: unless told otherwise, and at most.
const SECONDS: u64 = 30;
const SECONDS_MAX: u64 = 300;

/// Addresses in one request for their names.
const ADDRESSES_MAX: usize = 1000;

const XML: &str = "image/svg+xml";

#[derive(Clone)]
struct Pages {
    profile: Arc<Profile>,
    under_way: Arc<Semaphore>,
}

/// The pages below `/debug/pprof/`; without a profile each says that it is off.
pub(super) fn router<S: Clone + Send + Sync + 'static>(profile: Option<Arc<Profile>>) -> Router<S> {
    let Some(profile) = profile else {
        let off = || async { (StatusCode::NOT_FOUND, "self_profile.enabled is off\n") };
        return Router::new()
            .route("/debug/pprof/", get(off))
            .route("/debug/pprof/{*any}", get(off));
    };
    let pages = Pages { profile, under_way: Arc::new(Semaphore::new(UNDER_WAY_MAX)) };
    Router::new()
        .route("/debug/pprof/", get(index))
        .route("/debug/pprof/profile", get(on_demand))
        .route("/debug/pprof/minute/{number}", get(minute))
        .route("/debug/pprof/flame/{number}", get(flame))
        .route("/debug/pprof/cmdline", get(command_line))
        .route("/debug/pprof/symbol", get(symbols).post(symbols_of_body))
        .with_state(pages)
}

/// Links to everything here. Programs take the text of a link for the name of a profile.
async fn index(State(pages): State<Pages>) -> Html<String> {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>/debug/pprof/</title>\n<style>body{font:14px sans-serif;margin:2em;\
         color-scheme:light dark}td{padding-right:1.5em}</style></head><body>\n\
         <h1>/debug/pprof/</h1>\n<p>Where tallyd's own CPU time went. For a profile of the next \
         seconds: <code>go tool pprof http://.../debug/pprof/profile?seconds=5</code></p>\n\
         <ul><li><a href=\"profile?seconds=5\">profile</a></li>\n\
         <li><a href=\"cmdline\">cmdline</a></li>\n<li><a href=\"symbol\">symbol</a></li></ul>\n\
         <table><tr><th>begun</th><th>samples</th><th>profile</th><th>drawing</th></tr>\n",
    );
    for (number, (begun, samples)) in pages.profile.list().into_iter().enumerate() {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{samples}</td><td><a href=\"minute/{number}\">minute/{number}</a>\
             </td><td><a href=\"flame/{number}\">flame/{number}</a></td></tr>",
            time_of_day(begun.seconds())
        );
    }
    // Whoever has to send a token sends it on.
    page.push_str(
        "</table><script>for (const a of document.links) if (location.search) \
         a.search += (a.search ? '&' : '?') + location.search.slice(1)</script></body></html>\n",
    );
    Html(page)
}

fn time_of_day(seconds: i64) -> String {
    let seconds = seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A profile of the next seconds. Several at once see the same samples.
async fn on_demand(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    let seconds = match seconds(&query.unwrap_or_default()) {
        Ok(seconds) => seconds,
        Err(problem) => return (StatusCode::BAD_REQUEST, problem).into_response(),
    };
    let Ok(permit) = Arc::clone(&pages.under_way).try_acquire_owned() else {
        return super::busy();
    };
    let recording = pages.profile.record();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    super::elsewhere(permit, move || profile(&pages.profile, &recording.finish())).await
}

/// The length that a query asks for. Other parts of it are for other servers.
fn seconds(query: &str) -> Result<u64, String> {
    let asked = query.split('&').find_map(|part| part.strip_prefix("seconds="));
    let Some(asked) = asked else { return Ok(SECONDS) };
    match asked.parse() {
        Ok(seconds) if (1..=SECONDS_MAX).contains(&seconds) => Ok(seconds),
        _ => Err(format!("seconds: expected 1 to {SECONDS_MAX}\n")),
    }
}

async fn minute(State(pages): State<Pages>, number: Path<String>) -> Response {
    kept(pages, &number, profile).await
}

async fn flame(State(pages): State<Pages>, number: Path<String>) -> Response {
    let drawing = |profile: &Profile, window: &Window| {
        ([(header::CONTENT_TYPE, XML)], profile.draw(window)).into_response()
    };
    kept(pages, &number, drawing).await
}

/// Shows one of the windows kept.
async fn kept(
    pages: Pages,
    number: &str,
    show: impl FnOnce(&Profile, &Window) -> Response + Send + 'static,
) -> Response {
    let Some(window) = number.parse().ok().and_then(|number| pages.profile.kept(number)) else {
        let problem = "no such minute: 0 is the last full one, /debug/pprof/ lists all\n";
        return (StatusCode::NOT_FOUND, problem).into_response();
    };
    let Ok(permit) = pages.under_way.try_acquire_owned() else { return super::busy() };
    super::elsewhere(permit, move || show(&pages.profile, &window)).await
}

fn profile(profile: &Profile, window: &Window) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"profile\""),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    match profile.encode(window) {
        Ok(body) => (headers, body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The arguments with zero bytes between them. A setting's value may be a key, and is not shown.
async fn command_line() -> String {
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let shown: Vec<_> = arguments.map(without_value).collect();
    shown.join("\0")
}

fn without_value(argument: String) -> String {
    match argument.split_once('=') {
        Some((name, _)) => format!("{name}=***"),
        None => argument,
    }
}

/// Names of functions, for programs that have only addresses: `0x55d0c8a0+0x55d0c8b4`.
async fn symbols(State(pages): State<Pages>, RawQuery(query): RawQuery) -> Response {
    names(pages, query.unwrap_or_default()).await
}

async fn symbols_of_body(State(pages): State<Pages>, body: String) -> Response {
    names(pages, body).await
}

async fn names(pages: Pages, addresses: String) -> Response {
    let Ok(permit) = pages.under_way.try_acquire_owned() else { return super::busy() };
    super::elsewhere(permit, move || {
        // That there are any is all that the number says.
        let mut answer = String::from("num_symbols: 1\n");
        for word in addresses.split('+').take(ADDRESSES_MAX) {
            let digits = word.trim().trim_start_matches("0x");
            if let Ok(address) = usize::from_str_radix(digits, 16) {
                let _ = writeln!(answer, "{address:#x} {}", pages.profile.function(address));
            }
        }
        answer.into_response()
    })
    .await
}
