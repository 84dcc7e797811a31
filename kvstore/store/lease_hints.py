"""Whether leases have ended whose keys must still go: what a leader looks at before it looks closer."""

from __future__ import annotations

from kvstore.store import keys
from kvstore.store.engine import Engine


class Ends:
    """Mirror: how many ended grants still have shards to tell. It steers drivers, never apply."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        """Count them in the tablet."""
        self.open_count = sum(1 for _ in self._engine.scan(keys.ENDED_GRANT, keys.ENDED_GRANT_END))
