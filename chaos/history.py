"""Operations with the times between which they took effect, in memory and as JSON lines on disk.

An operation is what one client asked once, however often it was sent: retries under the same identity
belong to the same operation. `invoked` and `returned` are seconds on one monotonic clock, read before
the first byte leaves and after the last byte has arrived.

| kind | argument | result |
|--------|---|---|
| put | `{"value", "if_revision"?, "if_absent"?}` | `{"revision", "version", "created"}` |
| get | `None` | `None` when absent, else `{"value", "revision"}` |
| delete | `None` or `{"if_revision"}` | `{"deleted": 0 or 1, "revision"}` |
| incr | `{"by"}` | `{"value", "revision"}` |
| cas | `{"expected", "value"}` (by value) | `{"revision"}` |
| scan | `{"keys": [all keys it covers]}` | `{"items": {key: {"value", "revision"}}}` |
| txn | `{"if": [compare], "then": [step], "else": []}` | `{"succeeded", "results": [one for each step]}` |

A step is `{"kind", "key", "argument"}`, a compare `{"key", "field": "value" | "revision", "eq": x}`.
Results may lack revisions; a checker then knows less and works harder.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

Outcome = Literal["ok", "conflict", "refused", "unknown"]
"""ok: took effect and answered. conflict: a precondition did not hold (`result["current_revision"]` if told).
refused: surely had no effect. unknown: may take effect at any time after `invoked`, or never."""


class Operation(msgspec.Struct, omit_defaults=True):
    """What one client asked, and what became of it."""

    process: int
    kind: str
    key: str
    argument: Any = None
    invoked: float = 0.0
    returned: float | None = None
    """None while unknown: no answer bounds when it took effect."""
    outcome: Outcome = "unknown"
    result: Any = None
    node: str = ""
    """The node that was asked last."""
    error: str = ""
    """Code of the error that ended it."""

    def touched(self) -> list[str]:
        """All keys that it may read or write."""
        if self.kind == "scan":
            return list(self.argument["keys"])
        if self.kind != "txn":
            return [self.key]
        parts = [*self.argument.get("if", ()), *self.argument.get("then", ()), *self.argument.get("else", ())]
        return sorted({part["key"] for part in parts})


class History:
    """Collects operations; each is written to `path` when it is complete, the open ones at `close`."""

    def __init__(self, path: Path | None = None) -> None:
        self.operations: list[Operation] = []
        self._encoder = msgspec.json.Encoder()
        self._file: IO[bytes] | None = path.open("wb") if path else None

    def invoke(
        self, process: int, kind: str, key: str, argument: Any, now_s: float, node: str = ""
    ) -> Operation:
        operation = Operation(process, kind, key, argument, now_s, node=node)
        self.operations.append(operation)
        return operation

    def complete(
        self, operation: Operation, outcome: Outcome, now_s: float, result: Any = None, error: str = ""
    ) -> None:
        operation.outcome, operation.result = outcome, result
        operation.error = error or ("no answer" if outcome == "unknown" else "")
        operation.returned = None if outcome == "unknown" else now_s
        self._write(operation)

    def close(self) -> None:
        """Write what never came back as unknown, and close the file."""
        for operation in self.operations:
            if operation.returned is None and not operation.error:
                operation.error = "open at the end"
                self._write(operation)
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, operation: Operation) -> None:
        if self._file:
            self._file.write(self._encoder.encode(operation) + b"\n")


def load(path: Path) -> list[Operation]:
    """Read a history; a torn last line is ignored, any other damage raises."""
    return list(_decoded(path.read_bytes().split(b"\n")))


def save(path: Path, operations: Iterable[Operation]) -> None:
    encode = msgspec.json.encode
    path.write_bytes(b"".join(encode(operation) + b"\n" for operation in operations))


def _decoded(lines: list[bytes]) -> Iterator[Operation]:
    decode = msgspec.json.Decoder(Operation).decode
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            yield decode(line)
        except msgspec.DecodeError:
            if number == len(lines) - 1:
                return
            raise
