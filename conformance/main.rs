//! The library and the binary against judges that are not part of them.

mod prometheus_scrape;
