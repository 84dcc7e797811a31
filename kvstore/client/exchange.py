"""One HTTP exchange as values: what a plan asks a driver to send, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    target: str
    """Path and query, percent-encoded: goes on the wire as it is."""
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Case-insensitive, or with lower-case names."""
    body: bytes


class Fault(Enum):
    """How an exchange without a reply ended, by what the server may have done."""

    NOT_SENT = "not sent"
    """No connection: the server surely saw nothing."""
    LOST = "connection lost"
    TIMED_OUT = "no answer in time"
    GARBLED = "answer not understood"


class Failure(NamedTuple):
    fault: Fault
    detail: str


class Send(NamedTuple):
    """Effect: send `request` to the node at `address` ("host:port") and wait at most `timeout_s`."""

    address: str
    request: Request
    timeout_s: float


class Open(NamedTuple):
    """Effect: like Send, but the body of an answer with status 200 is a stream, read by Receive. A plan has
    one stream: opening another closes the one before."""

    address: str
    request: Request
    timeout_s: float


class Receive(NamedTuple):
    """Effect: wait for more of the open stream, at most `timeout_s`. The event has `chunk`, or a failure,
    after which the stream is gone."""

    timeout_s: float


class Sleep(NamedTuple):
    """Effect: wait."""

    seconds: float


class Event(NamedTuple):
    """What a driver hands back for an effect. A Send is answered by a reply or a failure."""

    now: float
    """Seconds on any clock that never goes back."""
    dice: float
    """Fresh random number in [0, 1)."""
    reply: Reply | None = None
    failure: Failure | None = None
    chunk: bytes | None = None
    """Some bytes of a stream; empty at its end."""
