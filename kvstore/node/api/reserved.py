"""Keys that only the store itself writes: the holders of locks and elections. Anybody may read them."""

from __future__ import annotations

from typing import Final

from kvstore.errors import InvalidArgument

LOCKS: Final = b"_locks/"
ELECTIONS: Final = b"_elections/"

_OWNERS: Final = {LOCKS: "/v1/locks", ELECTIONS: "/v1/elections"}
_RANGES: Final = sorted((prefix, prefix[:-1] + bytes((prefix[-1] + 1,))) for prefix in _OWNERS)


def check_writable(key: bytes, where: str = "the key") -> None:
    """Refuse to write a reserved key.

    Raises: InvalidArgument.
    """
    if key[:1] == b"_":
        for prefix, owner in _OWNERS.items():
            if key.startswith(prefix):
                raise InvalidArgument(
                    f"{where} begins with {prefix.decode()!r}: such keys show who holds a lock or an office, "
                    f"and are written through {owner} only",
                    reserved=prefix.decode(),
                )


def writable_parts(start: bytes, end: bytes | None) -> list[tuple[bytes, bytes | None]]:
    """What of the range [start, end) is not reserved, in order; `end` None: to the last key."""
    parts: list[tuple[bytes, bytes | None]] = []
    for low, high in _RANGES:
        until = low if end is None else min(low, end)
        if start < until:
            parts.append((start, until))
        start = max(start, high)
    if end is None or start < end:
        parts.append((start, end))
    return parts
