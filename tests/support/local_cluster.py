"""Real node processes for tests; see `chaos/targets.py`, which the chaos scripts share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos.cluster import TargetError
from chaos.targets import LocalCluster

__all__ = ["LocalCluster", "StartCluster", "TargetError", "served_cluster"]

StartCluster = Callable[..., LocalCluster]


@contextmanager
def served_cluster(directory: Path, timeout_s: float = 120.0, **options: Any) -> Iterator[LocalCluster]:
    """A cluster whose shards all have leaders; killed at the end."""
    with LocalCluster(directory, **options) as cluster:
        cluster.start()
        cluster.wait_until_served(timeout_s)
        yield cluster
