//! The page in a real browser. A screenshot is left in `target/page.png`.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::process::{Launch, UDP};
use super::real_clients::{node_packages, run, say};

const LINES: &str = "shop.requests:1|c|#user:1,code:200\nshop.requests:2|c|#user:2,code:500\n\
                     shop.latency:12.5|ms|#route:/a\nshop.load:0.25|g\nbad line\n\
                     <img src=x onerror=alert(1)>:1|c";

/// What starts a browser without a window.
fn chromium() -> Option<&'static str> {
    ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .into_iter()
        .find(|path| Path::new(path).exists())
}

#[test]
fn a_browser_shows_losses_series_plots_and_flames() {
    let Some(chromium) = chromium() else {
        return say("SKIP page: there is no chromium");
    };
    let packages = match node_packages("browser", "browser/package.json") {
        Ok(folder) => folder,
        Err(reason) => return say(&format!("SKIP page: {reason}")),
    };
    let tallyd = Launch::new().listen(&[UDP]).set("self_profile.period", "1").start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/clients/browser/page.mjs");
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("page.png");
    let over = AtomicBool::new(false);
    let looked = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                for _ in 0..50 {
                    tallyd.send([LINES]);
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        let mut node = Command::new("node");
        node.arg(script).arg(format!("http://{}/", tallyd.server(0)));
        node.arg(chromium).arg(screenshot).arg(packages);
        let looked = run(&mut node, Duration::from_secs(60));
        over.store(true, Ordering::Release);
        looked
    });
    looked.unwrap();
    assert_eq!(tallyd.stop().code(), 0);
}
