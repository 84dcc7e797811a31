"""Transactions of the blocking client."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from kvstore.client import codec, operations, transactions
from kvstore.client.plan import LAST_ATTEMPT_S_MIN
from kvstore.client.results import Item
from kvstore.client.sync_driver import Driver
from kvstore.client.transactions import Draft
from kvstore.errors import Conflict, NotApplied

T = TypeVar("T")


class Transaction(Draft):
    """Reads are answered at once and remembered, writes are kept until the block ends and then done
    together, if nothing that was read has changed. Made by `kv.txn()`, or given by `kv.transact`."""

    def __init__(self, driver: Driver, deadline: float) -> None:
        super().__init__()
        self._driver = driver
        self._deadline = deadline

    def get(self, key: str | bytes) -> Item | None:
        """Read a key, or what this transaction has done to it."""
        encoded = codec.key_bytes(key)
        known = self._known(encoded)
        if known is None:
            self._remember(encoded, self._driver.call(operations.get(encoded), self._left_s()))
            known = self._known(encoded)
            assert known is not None, "just remembered"
        return known[0]

    def get_all(self, *keys: str | bytes) -> list[Item | None]:
        """Read several keys at one moment, over shards."""
        missing = self._unknown(keys)
        if missing:
            found = self._driver.call(transactions.read_all(missing), self._left_s())
            for key, item in zip(missing, found, strict=True):
                self._remember(key, item)
        return [self.get(key) for key in keys]

    def commit(self) -> None:
        """Done by the end of the block. Raises Conflict if something that was read has changed."""
        call = self._call()
        if call is not None:
            self._settle(self._driver.call(call, self._left_s()))

    def _left_s(self) -> float:
        return max(LAST_ATTEMPT_S_MIN, self._deadline - time.monotonic())

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.commit()


def transact(driver: Driver, body: Callable[[Transaction], T], timeout_s: float | None) -> T:
    deadline = time.monotonic() + driver.limit(timeout_s)
    run_count, conflict = 0, None
    while True:
        transaction, begun_at = Transaction(driver, deadline), time.monotonic()
        try:
            result = body(transaction)
        except NotApplied as error:
            # The deadline came in the middle of a run. What has used it up is said by the runs before.
            if conflict is None or not error.retryable or time.monotonic() < deadline - LAST_ATTEMPT_S_MIN:
                raise
            raise conflict from error
        try:
            transaction.commit()
        except Conflict as met:
            conflict = met
            run_count += 1
            conflict.fields["run_count"] = run_count
            pause_s = transactions.rerun_s(run_count, random.random())
            # A run that cannot be expected to end in time would only end in an unknown outcome.
            took_s = time.monotonic() - begun_at
            if time.monotonic() + pause_s + took_s >= deadline:
                raise
            time.sleep(pause_s)
            continue
        return result
