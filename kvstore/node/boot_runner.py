"""Drives `Boot` on a runtime: ticks, makes its state durable before anything is said, ends in one callback.

After the node has become a member it goes on answering, because a member's word promotes seeds that
come late and stops those that came back with an empty disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvstore.errors import Fatal
from kvstore.node.boot import Boot
from kvstore.node.identity import DataDirectory, Identity
from kvstore.node.runtime import Runtime
from kvstore.types import NodeId
from kvstore.wire.boot_messages import BootState

log = logging.getLogger(__name__)


class BootRunner:
    """`on_member` is called once, on the loop, when membership is durable; at once from `start` if it
    already was. `on_fatal` when this node must stop instead: refused, or its disk failed.
    `prepare(identity, go_on)` makes durable whatever must be there before that identity is."""

    def __init__(
        self,
        boot: Boot,
        directory: DataDirectory,
        runtime: Runtime,
        send: Callable[[NodeId, BootState], None],
        on_member: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
        *,
        prepare: Callable[[Identity, Callable[[], None]], None] = lambda identity, go_on: go_on(),
        tick_s: float = 0.2,
    ) -> None:
        self._boot = boot
        self._directory = directory
        self._runtime = runtime
        self._send = send
        self._on_member = on_member
        self._on_fatal = on_fatal
        self._prepare = prepare
        self._tick_s = tick_s
        self._is_stopped = False
        self._was_told = False
        self._said: list[str] = []

    def start(self) -> None:
        if self._boot.is_member:
            self._drain()
        else:
            self._tick()

    def stop(self) -> None:
        self._is_stopped = True

    def on_message(self, node: NodeId, state: BootState) -> None:
        if not self._is_stopped:
            self._boot.on_message(node, state)
            self._drain()

    def greet(self, node: NodeId) -> None:
        """The link to `node` came up."""
        if not self._is_stopped:
            self._boot.greet(node)
            self._drain()

    def _tick(self) -> None:
        if self._is_stopped or self._boot.is_member:
            return
        self._boot.tick()
        self._drain()
        waiting_for = self._boot.waiting_for()
        if waiting_for != self._said:
            self._said = waiting_for
            log.info("first boot waits for: %s", "; ".join(waiting_for) or "nothing")
        self._runtime.call_later(self._tick_s, self._tick)

    def _drain(self) -> None:
        while self._boot.has_ready():
            ready = self._boot.take_ready()
            for node, state in ready.messages:
                self._send(node, state)
            if (identity := ready.persist) is not None:
                self._persist(identity)
        if self._boot.refusal is not None:
            self._fail(self._boot.refusal)
        elif self._boot.is_member and not self._was_told:
            self._was_told = True
            log.info("member: %s", self._boot.identity.describe())
            self._on_member()

    def _persist(self, identity: Identity) -> None:
        def done(_result: object, error: BaseException | None) -> None:
            if self._is_stopped:
                return
            if error is not None:
                self._fail(Fatal(f"identity of {self._directory.path} could not be written: {error}"))
                return
            self._boot.persisted(identity)
            self._drain()

        def save() -> None:
            if not self._is_stopped:
                self._runtime.in_thread(lambda: self._directory.save(identity), done, lane="files")

        self._prepare(identity, save)

    def _fail(self, error: BaseException) -> None:
        self._is_stopped = True
        self._on_fatal(error)
