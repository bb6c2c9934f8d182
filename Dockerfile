# Only what every builder understands: no frontend is fetched, and BuildKit is not needed.
# BUILD_IMAGE has cargo and a Debian package manager, RUN_IMAGE has the latter.
ARG BUILD_IMAGE=rust:1.95-slim-bookworm
ARG RUN_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
# zstd and ring are compiled from C.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /build
# Names of functions stay in the program, for backtraces and for the profile of itself; line tables
# are four fifths of its size.
ENV CARGO_PROFILE_RELEASE_DEBUG=none
# The dependencies are a layer of their own, built with an empty program.
COPY Cargo.toml Cargo.lock ./
# The profile walks frame pointers: they are asked for there.
COPY .cargo .cargo
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin tallyd
COPY src src
# Cargo goes by times, and the sources are older than the empty program. Relative relocations are packed,
# 0.8 MB of 15.5, which a loader before glibc 2.36 (Debian 12) refuses.
RUN touch src/main.rs src/lib.rs \
    && cargo rustc --release --locked --bin tallyd -- -C link-arg=-Wl,-z,pack-relative-relocs

FROM ${RUN_IMAGE}
# The intake's certificate is checked against the system's roots.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && install -d -o 65532 -g 65532 -m 0755 /var/run/datadog \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/tallyd
COPY --from=build /build/target/release/tallyd /usr/local/bin/tallyd
# New volumes at these places belong to the user below. The second holds payloads that wait for an
# intake: mount one that outlives the container.
VOLUME ["/var/run/datadog", "/var/lib/tallyd"]
USER 65532:65532
# As in the Agent's image: a container's clients are never local to it, and probes ask port 5555.
# Each can be set otherwise by the same variable.
ENV DD_DOGSTATSD_NON_LOCAL_TRAFFIC=true \
    DD_HEALTH_PORT=5555 \
    TALLYD_STATUS__LISTEN=0.0.0.0:8127
EXPOSE 8125/udp 8127/tcp 5555/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=5s --retries=3 CMD ["tallyd", "health"]
ENTRYPOINT ["tallyd"]
# Last, as a new revision must not build the layers above anew.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tallyd" \
      org.opencontainers.image.description="A statsd and DogStatsD compatible aggregation server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
