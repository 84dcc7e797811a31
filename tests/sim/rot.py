"""Where in a log a flipped bit is rot: bytes that were surely synced."""

from __future__ import annotations

from random import Random

from kvstore.files import join
from kvstore.wal.batch import nonce_of, starts
from kvstore.wal.segment import HEADER_BYTES, number_of
from tests.sim.cluster import DATA
from tests.support.sim_files import SimFiles

WAL = join(DATA, "wal")


def rot_place(files: SimFiles, dice: Random) -> tuple[str, int] | None:
    """Any byte of any batch but the last two of the log: what follows proves that it was whole once."""
    if not files.exists(WAL):
        return None
    found: list[tuple[str, int]] = []
    for name in files.list(WAL):
        number = number_of(name)
        if number is None:
            continue
        path = join(WAL, name)
        content = files.read(path)
        begun = list(starts(content, HEADER_BYTES, nonce_of(content, HEADER_BYTES)))
        found += [(path, offset) for offset in begun]
    if len(found) < 4:
        return None
    path, offset = dice.choice(found[:-2])
    later = [each for where, each in found if where == path and each > offset]
    end = later[0] if later else offset + 64
    return path, dice.randrange(offset, end)
