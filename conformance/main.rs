//! The library and the binary against judges that are not part of them: recorded vectors and
//! captures, real clients, real servers, decoders written from the protocol's tables.

mod aggregate_model;
mod aggregate_vectors;
mod captures;
mod cgroups;
mod collectors;
mod config_examples;
mod corpora;
mod datadog_payload;
mod docker_check;
mod end_to_end;
mod fake_engine;
mod layers;
mod origin;
mod outage;
mod parse_vectors;
mod process;
mod prometheus_scrape;
mod real_clients;
mod real_docker;
mod received;
mod running;
mod scenarios;
mod start;
mod test_intake;
mod world;
