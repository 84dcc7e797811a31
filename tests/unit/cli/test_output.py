"""Forms of output."""

import json

import pytest

from kvstore.cli import output


def test_bytes_that_are_no_text_are_base64_under_their_own_name() -> None:
    assert output.named_bytes("key", b"a") == {"key": "a"}
    assert output.named_bytes("key", b"\xff") == {"key_b64": "/w=="}


@pytest.mark.parametrize(
    ("value", "cell"),
    [(b"plain", "plain"), (b"tab\there", r"tab\there"), (b"\x1b[31m", r"\x1b[31m"), (b"\xff", r"\xff"),
     ("grün".encode(), "grün"), (b"", "")],
)  # fmt: skip
def test_cells_never_carry_control_characters(value: bytes, cell: str) -> None:
    assert output.printable(value) == cell


def test_long_cells_are_cut() -> None:
    assert output.printable(b"x" * 100, 10) == "xxxxxxxxx…"
    assert output.printable(b"x" * 10, 10) == "x" * 10


def test_cells_of_all_kinds_of_values_are_readable() -> None:
    assert [output.cell(each) for each in (None, True, [], [1, 2], {"a": 1}, 3.5)] == [
        "-",
        "yes",
        "-",
        "1, 2",
        "a=1",
        "3.5",
    ]


def test_columns_are_aligned_and_lines_have_no_blanks_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["key", "value"], iter([["a", ""], ["long key", "v"]]))
    assert capsys.readouterr().out == "KEY       VALUE\na\nlong key  v\n"


def test_columns_that_no_row_has_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows("table", "things", [{"id": 1, "b": None}], ("id", "a", "b"))
    assert capsys.readouterr().out == "ID  B\n1   -\n"


def test_rows_are_one_document_or_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows("json", "things", [{"id": 1}, {"id": 2}], ("id",))
    assert json.loads(capsys.readouterr().out) == {"things": [{"id": 1}, {"id": 2}]}
    output.show_rows("jsonl", "things", [{"id": 1}, {"id": 2}], ("id",))
    assert capsys.readouterr().out == '{"id": 1}\n{"id": 2}\n'
