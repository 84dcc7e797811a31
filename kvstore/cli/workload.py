"""What `bench` asks of the load generator, and what it gets back."""

from __future__ import annotations

from typing import NamedTuple

from kvstore.cli.histogram import Histogram


class Load(NamedTuple):
    """What to do how often."""

    operation: str
    connections: int
    value_bytes: int
    key_count: int
    batch_count: int
    duration_s: float | None
    request_count: int | None
    is_direct: bool
    seed: int
    timeout_s: float


class Measured(NamedTuple):
    latencies: Histogram
    """Microseconds of each request that was answered with success."""
    seconds: float
    operations: int
    errors: dict[str, int]
