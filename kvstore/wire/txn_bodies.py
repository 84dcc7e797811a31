"""The body of a transaction, in JSON and in MessagePack.

    {"if": [{"key": "a", "revision": {"eq": 0}}, {"key": "b", "value": {"ne": "x"}}],
     "then": [ops], "else": [ops]}

A compare names a key and tests one or more of its fields, each with one or more operators; all must hold.
Bytes are carried as in batches: in JSON as text or as base64 under `key_b64`, `value_b64`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvstore.errors import InvalidArgument
from kvstore.wire.api import INT64_MAX, HeaderLookup
from kvstore.wire.bodies import BatchOp, JsonOp, PackedOp, bytes_of, decoded, is_msgpack

OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge")
EQUALITY = ("eq", "ne")
NUMBERS = ("revision", "version", "create_revision")


class NumberTest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    eq: int | None = None
    ne: int | None = None
    lt: int | None = None
    le: int | None = None
    gt: int | None = None
    ge: int | None = None


class BytesTest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Operands are text, or in MessagePack bytes; under `value_b64` they are base64."""

    eq: Any = None
    ne: Any = None
    lt: Any = None
    le: Any = None
    gt: Any = None
    ge: Any = None


class LeaseTest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The empty text stands for no lease."""

    eq: str | None = None
    ne: str | None = None


class _Compare(msgspec.Struct, forbid_unknown_fields=True):
    key: Any = None
    key_b64: Any = None
    revision: NumberTest | None = None
    version: NumberTest | None = None
    create_revision: NumberTest | None = None
    value: BytesTest | None = None
    value_b64: BytesTest | None = None
    lease: LeaseTest | None = None


class JsonTxn(msgspec.Struct, forbid_unknown_fields=True):
    compares: list[_Compare] = msgspec.field(name="if", default_factory=list)
    then: list[JsonOp] = []
    otherwise: list[JsonOp] = msgspec.field(name="else", default_factory=list)


class PackedTxn(msgspec.Struct, forbid_unknown_fields=True):
    compares: list[_Compare] = msgspec.field(name="if", default_factory=list)
    then: list[PackedOp] = []
    otherwise: list[PackedOp] = msgspec.field(name="else", default_factory=list)


class Test(msgspec.Struct, frozen=True):
    """One comparison: `operand` is a number, bytes, or None for no lease."""

    key: bytes
    field: str
    operator: str
    operand: int | bytes | None


class Txn(msgspec.Struct, frozen=True):
    tests: list[Test]
    then: list[BatchOp]
    otherwise: list[BatchOp]


_json_txn = msgspec.json.Decoder(JsonTxn)
_packed_txn = msgspec.msgpack.Decoder(PackedTxn)


def txn_body(headers: HeaderLookup, body: bytes) -> Txn:
    decoder: Any = _packed_txn if is_msgpack(headers) else _json_txn
    parsed: JsonTxn | PackedTxn = decoded(decoder, body, 'an object with lists "if", "then", "else"')
    tests: list[Test] = []
    for number, compare in enumerate(parsed.compares):
        found = _tests_of(compare, f"$.if[{number}]")
        if not found:
            expected = ", ".join((*NUMBERS, "value", "lease"))
            raise InvalidArgument(f"$.if[{number}] compares nothing; expected one of {expected}")
        tests += found
    return Txn(tests, list(parsed.then), list(parsed.otherwise))


def _tests_of(compare: _Compare, where: str) -> list[Test]:
    key = bytes_of(compare.key, compare.key_b64, "key", where)
    tests = []
    for field in NUMBERS:
        numbers = getattr(compare, field)
        for operator in OPERATORS if numbers is not None else ():
            operand = getattr(numbers, operator)
            if operand is not None:
                if not 0 <= operand <= INT64_MAX:
                    raise InvalidArgument(f"{where}.{field}.{operator} must be from 0 to {INT64_MAX}")
                tests.append(Test(key, field, operator, operand))
    for name, is_base64 in (("value", False), ("value_b64", True)):
        values = getattr(compare, name)
        for operator in OPERATORS if values is not None else ():
            given = getattr(values, operator)
            if given is not None:
                plain, encoded = (None, given) if is_base64 else (given, None)
                operand = bytes_of(plain, encoded, operator, f"{where}.{name}")
                tests.append(Test(key, "value", operator, operand))
    for operator in EQUALITY if compare.lease is not None else ():
        lease = getattr(compare.lease, operator)
        if lease is not None:
            tests.append(Test(key, "lease", operator, lease.encode() or None))
    return tests
