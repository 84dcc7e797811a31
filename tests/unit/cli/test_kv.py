"""put, get, del, ls, incr."""

import json
from pathlib import Path

import pytest

from tests.support.fake_cluster import FakeCluster, problem
from tests.unit.cli.conftest import Run


def test_what_is_put_is_printed_byte_for_byte(run: Run) -> None:
    assert run("put", "a", "1").stdout == ""
    got = run("get", "a")
    assert (got.exit_code, got.stdout_bytes, got.stderr) == (0, b"1", "")


def test_a_value_can_come_from_stdin_or_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"\x00\xff\n")
    run("put", "a", "-", stdin=b"from\nstdin\xff")
    run("put", "b", f"@{tmp_path / 'v'}")
    run("put", "c", "@@home")
    assert run("get", "a").stdout_bytes == b"from\nstdin\xff"
    assert run("get", "b").stdout_bytes == b"\x00\xff\n"
    assert run("get", "c").stdout_bytes == b"@home"


def test_a_file_that_is_not_there_is_wrong_usage(run: Run, cluster: FakeCluster) -> None:
    refused = run("put", "a", "@/nowhere/at/all")
    assert refused.exit_code == 2
    assert "No such file" in refused.stderr
    assert not cluster.seen


def test_an_absent_key_exits_3_and_prints_nothing(run: Run) -> None:
    got = run("get", "nope")
    assert (got.exit_code, got.stdout) == (3, "")
    assert "key not found: nope" in got.stderr


def test_a_condition_that_fails_exits_4(run: Run) -> None:
    run("put", "a", "1")
    assert run("put", "a", "2", "--if-absent").exit_code == 4
    assert run("put", "a", "2", "--if-revision", "9").exit_code == 4
    assert run("put", "a", "2", "--if-revision", "1").exit_code == 0
    assert run("del", "a", "--if-revision", "1").exit_code == 4


def test_json_describes_an_item_and_a_write(run: Run) -> None:
    written = json.loads(run("put", "a", "x", "-o", "json", "--content-type", "text/plain").stdout)
    assert written == {"revision": 1, "version": 1, "created": True}
    item = json.loads(run("-o", "json", "get", "a").stdout)
    assert item == {
        "key": "a",
        "value": "x",
        "revision": 1,
        "create_revision": 1,
        "version": 1,
        "lease": None,
        "content_type": "text/plain",
    }


def test_values_that_are_no_text_are_base64_in_json(run: Run) -> None:
    run("put", "a", "-", stdin=b"\xff")
    assert json.loads(run("get", "a", "-o", "jsonl").stdout)["value_b64"] == "/w=="


def test_the_value_before_is_printed_when_asked_for(run: Run) -> None:
    run("put", "a", "old")
    assert run("put", "a", "new", "--prev").stdout == "old"
    assert json.loads(run("del", "a", "--prev", "-o", "json").stdout)["prev"]["value"] == "new"


def test_deleting_what_is_absent_is_no_error_and_says_so_in_json(run: Run) -> None:
    gone = run("del", "nope", "-o", "json")
    assert gone.exit_code == 0
    assert json.loads(gone.stdout)["deleted"] == 0


def test_a_prefix_delete_from_a_script_needs_yes(run: Run, cluster: FakeCluster) -> None:
    for name in ("p/1", "p/2", "q"):
        run("put", name, "1")
    refused = run("del", "--prefix", "p/")
    assert refused.exit_code == 2
    assert "2 key(s)" in refused.stderr
    assert "--yes" in refused.stderr
    assert run("del", "--prefix", "p/", "--yes").exit_code == 0
    assert sorted(cluster.keys) == [b"q"]


@pytest.mark.parametrize(
    "arguments",
    [("del",), ("del", "a", "--prefix", "b"), ("del", "--prefix", "p", "--prev"), ("put", "a"), ("get",)],
)
def test_calls_that_make_no_sense_are_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_lists_are_tables_of_shortened_values(run: Run) -> None:
    run("put", "a", "x" * 100)
    run("put", "b", "-", stdin=b"two\nlines\xff")
    lines = run("ls").stdout.splitlines()
    assert lines[0].split() == ["KEY", "REVISION", "VERSION", "VALUE"]
    assert lines[1].endswith("x…")
    assert lines[2].endswith(r"two\nlines\xff")


def test_lists_have_forms_for_programs(run: Run) -> None:
    for name in ("user/2", "user/1", "other"):
        run("put", name, name.upper())
    assert run("ls", "user/", "-o", "raw").stdout == "user/1\nuser/2\n"
    assert [json.loads(line)["value"] for line in run("ls", "-o", "jsonl").stdout.splitlines()] == [
        "OTHER",
        "USER/1",
        "USER/2",
    ]
    document = json.loads(run("ls", "user/", "-o", "json", "--keys-only", "--reverse", "--limit", "1").stdout)
    assert document["count"] == 1
    assert document["items"][0]["key"] == "user/2"
    assert "value" not in document["items"][0]
    assert run("ls", "--start", "p", "--count").stdout == "2\n"


def test_an_empty_list_is_an_empty_table(run: Run) -> None:
    assert run("ls").stdout.splitlines() == ["KEY  REVISION  VERSION  VALUE"]
    assert run("ls", "-o", "jsonl").stdout == ""


def test_counters_print_their_value(run: Run) -> None:
    assert run("incr", "n").stdout == "1\n"
    assert run("incr", "n", "--by", "-3", "-o", "jsonl").stdout == '{"value": -2, "revision": 2}\n'
    assert run("incr", "n", "--max", "0", "--by", "5").exit_code == 1
    run("put", "t", "x")
    refused = run("incr", "t")
    assert refused.exit_code == 1
    assert "not-a-number" in refused.stderr


def test_keys_are_bytes_whatever_the_terminal_thinks(run: Run, cluster: FakeCluster) -> None:
    run("put", "\udcff/ü", "1")
    assert list(cluster.keys) == ["\udcff/ü".encode("utf-8", "surrogateescape")]
    assert run("get", "\udcff/ü").stdout == "1"


def test_refusals_name_the_request(run: Run, cluster: FakeCluster) -> None:
    cluster.before = lambda seen: problem(403, "denied", detail="not yours")
    refused = run("get", "a")
    assert refused.exit_code == 5
    assert "not yours [request r-1]" in refused.stderr


def test_an_unknown_outcome_exits_6_and_says_what_to_do(run: Run, cluster: FakeCluster) -> None:
    cluster.before = lambda seen: problem(504, "outcome-unknown")
    unknown = run("put", "a", "1", "--timeout", "300ms")
    assert unknown.exit_code == 6
    assert "may have happened" in unknown.stderr
    assert "next: read the key back" in unknown.stderr
    assert unknown.stdout == ""
