"""Sends a fixed program with `datadog` from PyPI: TRANSPORT ADDRESS."""

import random
import sys

from datadog.dogstatsd.base import DogStatsd

transport, address = sys.argv[1:]
if transport == "udp":
    host, port = address.rsplit(":", 1)
    place = {"host": host, "port": int(port)}
else:
    place = {"socket_path": {"uds": "unix://", "udsstream": "unixstream://"}[transport] + address}


def program(client):
    client.increment("jobs", 3, tags=["env:dev", "team:core"])
    client.decrement("jobs", tags=["team:core", "env:dev"])
    client.increment("floats", 0.5)
    client.gauge("depth", 12.5)
    client.gauge("depth", -4, tags=["naïve:é", "bare"])
    for size in (1, 2, 3, 10):
        client.histogram("size", size)
    for lag in (1, 2.5, 4):
        client.distribution("lag", lag)
    client.timing("took", 320)
    for user in ("alice", "bob", "alice", 17):
        client.set("users", user)
    random.seed(7)
    for _ in range(100):
        client.increment("sampled", sample_rate=0.5)
    client.gauge_with_timestamp("backfill", 7, 1700000000)
    client.count_with_timestamp("backfilled", 9, 1700000000)
    client.event(
        "Déployé 🚀",
        "line one\nline two",
        alert_type="error",
        aggregation_key="key",
        source_type_name="source",
        priority="low",
        hostname="web-9",
        tags=["a:b"],
    )
    client.service_check("db", client.CRITICAL, tags=["a:b"], hostname="web-9", message="m:down")


def client(mode, **options):
    tags = ["via:%s-%s" % (transport, mode)]
    # Without the timeout it throws away what does not fit into the socket's queue at once.
    return DogStatsd(
        namespace="py",
        constant_tags=tags,
        disable_telemetry=True,
        socket_timeout=5,
        **place,
        **options
    )


program(client("plain"))

with client("buffered", disable_buffering=False) as buffered:
    program(buffered)

aggregating = client("aggregated", disable_buffering=False, disable_aggregation=False)
for _ in range(10):
    aggregating.increment("jobs")
    aggregating.gauge("depth", 3)
    aggregating.histogram("size", 2)
aggregating.flush_aggregated_metrics()
aggregating.flush_buffered_metrics()
