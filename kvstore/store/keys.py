"""Where things lie in a tablet. All keys are ordered bytes; the first byte says what a record is.

| key | record |
|---|---|
| `m` | counters and the applied position, rewritten by every apply (`records.Meta`) |
| `mc` | the Raft configuration in force at the applied index |
| `ml` | the replicated limits (`limits.StoreLimits`) |
| `h` key | the key's head: its newest version (`records.pack_head`) |
| `c` first revision | what one entry changed, with what it replaced (`records.pack_change`) |
| `o` revision, key | a replaced version that is too large for its change record |
| `v` escaped key, complement of revision | empty; marks a revision at which to enter the key's past |
| `s` session | a session (`records.SessionHeader`) |
| `r` length of session, session, sequence | kept results of one request |
| `e` due clock, session | when to look whether the session has expired |
| `d` due clock, kind, subject | empty; a deadline (`deadlines`) |
| `q` length of name, name[, order] | a lock's queue, and its entries (`lock_queue`) |
| `u` length of name, name, claim | what became of a claim on a lock (`lock_queue`) |
| `p` txid | a transaction that was prepared, committed or refused here (`intents`) |
| `f` txid | transactions whose records go together (`intents`) |
| `l`, `k`, `n` | leases, the keys of their grants, and end marks (`leases`) |

Numbers are 8 bytes big-endian, so that they sort. Marks of a key follow each other newest first. In `v`
keys a key's 0x00 bytes become 0x00 0xff and the key ends with 0x00 0x00, so that no key's marks lie among
those of a key that it is a prefix of, and the order is that of the keys.
"""

from __future__ import annotations

from typing import Final

META: Final = b"m"
CONFIGURATION: Final = b"mc"
LIMITS: Final = b"ml"

HEAD: Final = b"h"
HEAD_END: Final = b"i"
MARK: Final = b"v"
MARK_END: Final = b"w"
OLD: Final = b"o"
CHANGE: Final = b"c"
CHANGE_END: Final = b"d"
SESSION: Final = b"s"
SESSION_END: Final = b"t"
RESULT: Final = b"r"
DEADLINE: Final = b"d"
DEADLINE_END: Final = b"e"
EXPIRY: Final = b"e"
EXPIRY_END: Final = b"f"

TXN: Final = b"p"
TXN_END: Final = b"q"
FINISHED: Final = b"f"
FINISHED_END: Final = b"g"
LEASE: Final = b"l\x00"
LEASE_END: Final = b"l\x01"
LEASE_GENERATION: Final = b"l\x02"
ENDED_GRANT: Final = b"l\x03"
ENDED_GRANT_END: Final = b"l\x04"
LEASED_KEY: Final = b"k"
LEASE_MARK: Final = b"n"
HOME_SHARD: Final = (1 << 32) - 1
"""In registrations: the home shard itself, whose number its tablet does not know."""

REVISION_MAX: Final = (1 << 63) - 1
_ALL_ONES: Final = (1 << 64) - 1


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def escaped(key: bytes) -> bytes:
    return key.replace(b"\x00", b"\x00\xff") + b"\x00\x00"


def unescaped(escaped_key: bytes) -> bytes:
    return escaped_key[:-2].replace(b"\x00\xff", b"\x00")


def mark(key: bytes, revision: int) -> bytes:
    return b"v%b\x00\x00%b" % (key.replace(b"\x00", b"\x00\xff"), (_ALL_ONES - revision).to_bytes(8, "big"))


def marks_of(key: bytes) -> bytes:
    """Prefix, and lower end, of all marks of `key`."""
    return MARK + escaped(key)


def marks_end(key: bytes) -> bytes:
    return MARK + key.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def mark_parts(record_key: bytes) -> tuple[bytes, int]:
    """The key and revision of a mark."""
    return unescaped(record_key[1:-8]), _ALL_ONES - int.from_bytes(record_key[-8:], "big")


def old(revision: int, key: bytes) -> bytes:
    """Where the version of `key` lies that the change at `revision` replaced."""
    return OLD + number(revision) + key


def change(first_revision: int) -> bytes:
    return CHANGE + number(first_revision)


def session(session_id: bytes) -> bytes:
    return SESSION + session_id


def results_of(session_id: bytes) -> bytes:
    """Prefix of all kept results of a session."""
    return b"r%c%b" % (len(session_id), session_id)


def result(session_id: bytes, sequence: int) -> bytes:
    return results_of(session_id) + number(sequence)


def expiry(due_ms: int, session_id: bytes) -> bytes:
    return EXPIRY + number(due_ms) + session_id


def expiry_parts(record_key: bytes) -> tuple[int, bytes]:
    return int.from_bytes(record_key[1:9], "big"), record_key[9:]


def queue_subject(name: bytes, rest: bytes) -> bytes:
    """A lock's name and what follows it, so that no name runs into another."""
    return b"%b%b%b" % (len(name).to_bytes(2, "big"), name, rest)


def queue_subject_parts(subject: bytes) -> tuple[bytes, bytes]:
    end = 2 + int.from_bytes(subject[:2], "big")
    return subject[2:end], subject[end:]


def queue(name: bytes) -> bytes:
    """Head of a lock's queue, and prefix of its entries."""
    return b"q" + queue_subject(name, b"")


def claim_mark(name: bytes, claim: bytes) -> bytes:
    return b"u" + queue_subject(name, claim)


def lease(lease_id: bytes) -> bytes:
    return LEASE + lease_id


def lease_shards_of(generation: int) -> bytes:
    """Prefix of the shards that are registered for a grant."""
    return b"l\x01" + number(generation)


def lease_shard(generation: int, shard: int) -> bytes:
    return b"l\x01%b%b" % (number(generation), shard.to_bytes(4, "big"))


def ended_grant(generation: int) -> bytes:
    return ENDED_GRANT + number(generation)


def leased_keys_of(lease_id: bytes, generation: int) -> bytes:
    """Prefix, and lower end, of all keys of a grant."""
    return b"k%c%b%b" % (len(lease_id), lease_id, number(generation))


def leased_key(lease_id: bytes, generation: bytes, key: bytes) -> bytes:
    return b"k%c%b%b%b" % (len(lease_id), lease_id, generation, key)


def lease_mark(lease_id: bytes, generation: int) -> bytes:
    return b"n%c%b%b" % (len(lease_id), lease_id, number(generation))
