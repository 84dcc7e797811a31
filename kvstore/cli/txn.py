"""txn: compare, then do one of two lists of operations, as one step."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Quiet
from kvstore.cli.kv import item_fields, key_of, value_of
from kvstore.cli.settings import DURATION, Settings
from kvstore.client import op
from kvstore.client.op import Operation
from kvstore.client.results import DeleteResult, IncrResult, Item, PutResult
from kvstore.client.transactions import Committed, Compare, when
from kvstore.errors import InvalidArgument

_COMPARE = re.compile(
    r"(?P<key>.+)\.(?P<subject>value|revision|create_revision|version)\s*"
    r"(?P<relation>==|!=|<=|>=|=|<|>)\s*(?P<operand>.*)",
    re.DOTALL,
)
_PRESENCE = re.compile(r"(?P<key>.+)\s+(?P<what>absent|exists)", re.DOTALL)
_RELATIONS = {"==": "eq", "=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_NUMBERS = ("revision", "create_revision", "version")


@click.command(cls=Command, short_help="Compare, then do one of two lists of operations.")
@click.argument("source", required=False, metavar="[- | @FILE]")
@click.option("--if", "compares", multiple=True, metavar="COMPARE", help="May be repeated: all must hold.")
@click.option("--then", "then", multiple=True, metavar="OP", help="Done if they all hold.")
@click.option("--else", "otherwise", multiple=True, metavar="OP", help="Done if one doesn't.")
@pass_settings
def txn(
    settings: Settings,
    source: str | None,
    compares: tuple[str, ...],
    then: tuple[str, ...],
    otherwise: tuple[str, ...],
) -> None:
    """Do all --then operations if every --if holds, else all --else operations; as one step over all keys
    and shards. Exits 0 if the compares held, and 4 if not.

    \b
    COMPARE is one of
      KEY.value == TEXT     also != < <= > >=; of an absent key's value only != holds
      KEY.revision == 7     also .version and .create_revision; an absent key has 0
      KEY absent            KEY exists

    \b
    OP is one of
      put KEY VALUE [--ttl 30s] [--lease ID]      del KEY
      get KEY                                     incr KEY [BY]
    with quotes as in a shell. VALUE may be - or @FILE, as in `kvctl put`.

    \b
    Instead, "-" (stdin) or @FILE is a JSON document as POST /v1/txn takes it, for example
      {"if":[{"key":"a","revision":{"eq":0}}],"then":[{"op":"put","key":"a","value":"1"}],"else":[]}

    \b
    Output: raw, the default, has what every get and incr found, one on a line; json has everything.

    \b
    Examples:
      kvctl txn --if 'job absent' --then 'put job me' || echo taken
      kvctl txn --then 'incr account/ann -5' --then 'incr account/bob 5'
      id=$(kvctl lease grant 30s) && kvctl txn --then "put worker/7 here --lease $id"
      kvctl txn --if 'cfg.version >= 2' --then 'get cfg' --else 'put cfg new' -o json || true
      echo '{"then":[{"op":"get","key":"cfg"},{"op":"get","key":"job"}]}' | kvctl txn -
    """
    if source is not None:
        if compares or then or otherwise:
            raise click.UsageError("give either a document, or --if, --then and --else")
        parts = _of_document(value_of(source if source == "-" or source.startswith("@") else f"@{source}"))
    else:
        if not compares and not then:
            raise click.UsageError("give --if and --then, or a document: -, @FILE")
        parts = ([_compare(each) for each in compares], [_op(each) for each in then],
                 [_op(each) for each in otherwise])  # fmt: skip
    with settings.client() as client:
        done = client.commit(*parts)
    _show(settings.form("raw"), done, parts[1] if done.succeeded else parts[2])
    if not done.succeeded:
        output.hint("the compares do not hold", is_quiet=settings.is_quiet)
        raise Quiet(exit_codes.PRECONDITION_FAILED)


def _compare(text: str) -> Compare:
    text = text.strip()
    if found := _PRESENCE.fullmatch(text):
        about = when(key_of(found["key"]))
        return about.absent() if found["what"] == "absent" else about.exists()
    found = _COMPARE.fullmatch(text)
    if found is None:
        raise click.UsageError(
            f"--if {text!r}: expected KEY.value == TEXT, KEY.revision == N, KEY absent or KEY exists"
        )
    operand: int | bytes = key_of(found["operand"])
    if found["subject"] in _NUMBERS:
        try:
            operand = int(found["operand"])
        except ValueError:
            raise click.UsageError(f"--if {text!r}: expected a number after {found['relation']}") from None
    return Compare(key_of(found["key"]), found["subject"], _RELATIONS[found["relation"]], operand)


def _op(text: str) -> Operation[Any]:
    try:
        words = shlex.split(text)
        return _op_of_words(words)
    except (ValueError, IndexError):
        raise click.UsageError(
            f"{text!r}: expected put KEY VALUE [--ttl D] [--lease ID], get KEY, del KEY or incr KEY [BY]"
        ) from None


def _op_of_words(words: list[str]) -> Operation[Any]:
    """Raises ValueError or IndexError where they are not an operation."""
    match words:
        case ["put", key, value, *options]:
            given = dict(zip(options[::2], options[1::2], strict=True))
            ttl, lease = given.pop("--ttl", None), given.pop("--lease", None)
            if given:
                raise ValueError("unknown option")
            ttl_s = None if ttl is None else DURATION.convert(ttl, None, None)
            return op.put(key_of(key), value_of(value), ttl=ttl_s, lease=lease)
        case ["get", key]:
            return op.get(key_of(key))
        case ["del" | "delete", key]:
            return op.delete(key_of(key))
        case ["incr", key]:
            return op.incr(key_of(key))
        case ["incr", key, by]:
            return op.incr(key_of(key), int(by))
    raise ValueError("no operation")


def _of_document(content: bytes) -> tuple[list[Compare], list[Operation[Any]], list[Operation[Any]]]:
    try:
        found = json.loads(content)
        unknown = set(found) - {"if", "then", "else"}
        if unknown:
            raise ValueError(f"unknown members: {', '.join(sorted(unknown))}")
        return (
            [compare for each in found.get("if") or [] for compare in _document_compares(each)],
            [_document_op(each) for each in found.get("then") or []],
            [_document_op(each) for each in found.get("else") or []],
        )
    except (ValueError, TypeError, AttributeError, KeyError, InvalidArgument) as error:
        raise click.UsageError(f"the document: {error}") from error


def _document_compares(fields: dict[str, Any]) -> list[Compare]:
    rest = dict(fields)
    key = _octets(rest, "key")
    found = []
    for subject, relations in rest.items():
        if subject not in (*_NUMBERS, "lease", "value", "value_b64"):
            raise ValueError(f"no compare: {fields}")
        for operator, operand in relations.items():
            if operator not in _RELATIONS.values():
                raise ValueError(f"no compare: {fields}")
            if subject == "value_b64":
                found.append(Compare(key, "value", operator, b64decode(operand)))
            else:
                value = operand.encode() if subject == "value" else operand
                found.append(Compare(key, subject, operator, value))
    return found


def _document_op(fields: dict[str, Any]) -> Operation[Any]:
    rest = dict(fields)
    name, key = rest.pop("op"), _octets(rest, "key")
    if name not in ("put", "get", "delete", "incr"):
        raise ValueError(f"no operation: {fields}")
    if name == "put":
        rest["value"] = _octets(rest, "value")
    return Operation(name, key, rest)


def _octets(fields: dict[str, Any], name: str) -> bytes:
    encoded = fields.pop(f"{name}_b64", None)
    return b64decode(encoded, validate=True) if encoded is not None else str(fields.pop(name)).encode()


def _show(form: str, done: Committed, operations: Sequence[Operation[Any]]) -> None:
    if form == "raw":
        for result in done.results:
            if isinstance(result, Item | IncrResult):
                click.echo(result.value)
            elif result is None:
                click.echo()
        return
    rows = [_row(each, result) for each, result in zip(operations, done.results, strict=True)]
    if form == "table":
        output.show_rows(form, "results", rows, ("op", "key", "value", "revision", "created", "deleted"))
    else:
        revisions = {str(shard): revision for shard, revision in done.revisions.items()}
        output.show(form, {"succeeded": done.succeeded, "results": rows, "revisions": revisions})


def _row(operation: Operation[Any], result: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"op": operation.name, **output.named_bytes("key", operation.key)}
    match result:
        case Item():
            return row | {name: value for name, value in item_fields(result).items() if name[:3] != "key"}
        case PutResult(revision, version, created):
            return row | {"revision": revision, "version": version, "created": created}
        case DeleteResult(deleted, revision):
            return row | {"deleted": deleted, "revision": revision}
        case IncrResult(value, revision):
            return row | {"value": value, "revision": revision}
        case _:
            return row | {"value": None}
