//! The library and the binary against judges that are not part of them: recorded vectors and
//! captures, real clients, real servers, decoders written from the protocol's tables.

mod activation;
mod aggregate_model;
mod aggregate_vectors;
mod captures;
mod cgroups;
mod clock;
mod collectors;
mod config_examples;
mod corpora;
mod datadog_payload;
mod dead_link;
mod end_to_end;
mod layers;
mod ledger;
mod ledger_page;
mod namespace;
mod origin;
mod outage;
mod outage_disk;
mod outage_faults;
mod parse_vectors;
mod process;
mod prometheus_scrape;
mod real_clients;
mod received;
mod running;
mod scenarios;
mod secrets;
mod start;
mod supervision;
mod terminal;
mod test_intake;
mod tls;
mod world;
