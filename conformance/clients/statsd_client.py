"""Sends a fixed program with `statsd` from PyPI: TRANSPORT ADDRESS."""

import random
import sys
from datetime import timedelta

from statsd import StatsClient, TCPStatsClient, UnixSocketStatsClient

transport, address = sys.argv[1:]
prefix = "statsd." + transport
if transport == "udsstream":
    client = UnixSocketStatsClient(socket_path=address, prefix=prefix)
else:
    host, port = address.rsplit(":", 1)
    kind = {"udp": StatsClient, "tcp": TCPStatsClient}[transport]
    client = kind(host=host, port=int(port), prefix=prefix)


def program(client, name):
    client.incr(name + ".jobs", 3)
    client.decr(name + ".jobs")
    client.gauge(name + ".depth", 12.5)
    client.gauge(name + ".depth", 2, delta=True)
    client.gauge(name + ".depth", -0.5, delta=True)
    client.gauge(name + ".below", -7)
    client.timing(name + ".took", 320)
    client.timing(name + ".took", timedelta(milliseconds=80))
    for user in ("alice", "bob", "alice"):
        client.set(name + ".users", user)
    random.seed(7)
    for _ in range(100):
        client.incr(name + ".sampled", rate=0.5)


program(client, "plain")
with client.pipeline() as pipeline:
    program(pipeline, "pipe")
if transport != "udp":
    client.close()
