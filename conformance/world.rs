//! A tallyd without sockets, threads and clock: datagrams and the time go in, batches come out.

use std::sync::Arc;

use tallyd::batch::Batch;
use tallyd::config::Config;
use tallyd::flush::Flush;
use tallyd::reader::{Reader, Shared};
use tallyd::rules::Rules;
use tallyd::sample::Dialect;
use tallyd::shard::Shards;
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tallyd::value::Plan;

pub(crate) const HOST: &str = "agent-host";

pub(crate) struct World {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) flush: Arc<Flush>,
    datadog: Reader,
    statsd: Reader,
}

impl World {
    pub(crate) fn new(config: &Config, now: Time) -> Self {
        Self::several(config, now, 1).remove(0)
    }

    /// Several readers of one aggregate.
    pub(crate) fn several(config: &Config, now: Time, count: usize) -> Vec<Self> {
        let telemetry = Arc::new(Telemetry::default());
        let rules = Arc::new(Rules::new(&config.rules, HOST).expect("rules"));
        let plan = Plan::from_config(&config.value);
        let aggregates = Arc::clone(&plan.aggregates);
        let shards = Arc::new(Shards::new(
            config.shard.clone(),
            plan,
            config.flush.interval,
            HOST.to_owned(),
            Arc::clone(&telemetry),
            now,
        ));
        let shared = Shared {
            rules: Arc::clone(&rules),
            shards: Arc::clone(&shards),
            origins: Arc::default(),
            telemetry: Arc::clone(&telemetry),
            distribution_prefix: config
                .value
                .histogram_copy_to_distribution
                .then(|| config.value.histogram_copy_to_distribution_prefix.clone()),
            log_rejects: false,
            line_max: config.intake.buffer_size,
            spellings_max: 1000,
            journal: None,
        };
        let reader = |dialect| {
            let listener = telemetry.listener(format!("{dialect:?}"));
            Reader::new(shared.clone(), listener, config.intake.options(dialect), false)
        };
        let flush = Arc::new(Flush {
            shards,
            telemetry: Arc::clone(&telemetry),
            aggregates,
            blocklist: rules.blocklist(),
        });
        let world = |_| Self {
            telemetry: Arc::clone(&telemetry),
            flush: Arc::clone(&flush),
            datadog: reader(Dialect::Datadog),
            statsd: reader(Dialect::Statsd),
        };
        (0..count).map(world).collect()
    }

    pub(crate) fn send(&mut self, dialect: Dialect, datagram: &[u8], now: Time) {
        match dialect {
            Dialect::Datadog => self.datadog.datagram(datagram, false, now),
            Dialect::Statsd => self.statsd.datagram(datagram, false, now),
        }
    }

    pub(crate) fn flush(&self, now: Time) -> Batch {
        self.flush.batch(now, false)
    }
}
