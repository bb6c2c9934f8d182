//! A link that is cut in the middle of a request: the peer is gone without a word.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::books;
use super::namespace::{Namespace, ip};
use super::process::{DEADLINE, KEY, Launch, UDP};
use super::received::Received;
use super::test_intake::{Intake, Response};

/// How soon a peer that is gone must be noticed.
const NOTICED: Duration = Duration::from_secs(6);

const DAEMON: &str = "10.231.7.1";
const INTAKE: &str = "10.231.7.2";

/// Two namespaces and the link between them.
struct Link {
    daemon: Namespace,
    intake: Namespace,
}

impl Link {
    fn new() -> Result<Self, String> {
        let link = Self { daemon: Namespace::new()?, intake: Namespace::new()? };
        let (daemon, intake) = (&link.daemon.name, &link.intake.name);
        ip(&format!("-n {daemon} link add near type veth peer name far netns {intake}"))?;
        for (namespace, device, address) in [(daemon, "near", DAEMON), (intake, "far", INTAKE)] {
            ip(&format!("-n {namespace} address add {address}/24 dev {device}"))?;
            ip(&format!("-n {namespace} link set {device} up"))?;
        }
        Ok(link)
    }

    /// The device of the other end goes down: nothing that is sent comes back, not even an error.
    fn set(&self, state: &str) {
        ip(&format!("-n {} link set far {state}", self.intake.name)).unwrap();
    }
}

#[test]
fn a_dead_link_is_noticed_and_the_payload_is_sent_again() {
    let link = match Link::new() {
        Ok(link) => link,
        Err(reason) => {
            println!("SKIP a_dead_link_is_noticed_and_the_payload_is_sent_again: {reason}");
            return;
        }
    };
    let address = SocketAddr::new(INTAKE.parse().unwrap(), 0);
    let intake = link.intake.enter(|| Intake::on(TcpListener::bind(address).unwrap())).unwrap();
    // The first answer takes longer than the link lives.
    let mut waits = true;
    intake.respond_with(move |_| {
        let delay = if std::mem::take(&mut waits) { DEADLINE } else { Duration::ZERO };
        Response { delay, ..Response::status(202) }
    });
    let noticed = link.daemon.enter(|| {
        let tallyd = Launch::new()
            .env("DD_API_KEY", KEY)
            .env("DD_DD_URL", &intake.url)
            .set("sinks.datadog.validate_key", "false")
            .set("sinks.spool.max_disk_ratio", "1")
            .listen(&[UDP])
            .start();
        tallyd.send(["g0:1|g\ng1:2|g"]);
        intake.wait_for(DEADLINE, |requests| requests.len() == 1);
        let cut = Instant::now();
        link.set("down");
        tallyd.wait_for_stderr("fails: ");
        let noticed = cut.elapsed();
        books::assert_conserved(&tallyd, "datadog");
        link.set("up");
        tallyd.wait_until("it is delivered", |tallyd| {
            books::figure(tallyd, "datadog", "delivered_points_total") == 2.0
        });
        books::assert_conserved(&tallyd, "datadog");
        tallyd.stop();
        noticed
    });
    let noticed = noticed.unwrap();
    println!("a dead link was noticed after {:.1} s", noticed.as_secs_f64());
    assert!(noticed < NOTICED, "{noticed:?}");
    let requests = intake.requests();
    let names = |at: usize| -> Vec<String> {
        let points = Received::of(&requests[at..=at]).points.into_iter();
        points.map(|point| point.name).collect()
    };
    assert_eq!(names(0), names(requests.len() - 1), "the same payload");
}
