"""`host:port` as text and as a pair."""

import re


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ValueError saying what was expected."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]:(\d{1,5})", address)
    match = bracketed or re.fullmatch(r"([A-Za-z0-9._-]+):(\d{1,5})", address)
    if match is None:
        raise ValueError(f'expected "host:port" or "[v6]:port", found {address!r}')
    port = int(match[2])
    if not 1 <= port <= 65535:
        raise ValueError(f"expected a port from 1 to 65535, found {port}")
    return match[1], port
