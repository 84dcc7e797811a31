import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

TIDY = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "tidy.py"))
check: Callable[[Path, str], Iterator[str]] = TIDY["check"]
HERE = Path("a.py")


def test_clean_code_has_no_findings() -> None:
    assert list(check(HERE, '"""Doc."""\n\n\ndef f() -> None:\n    pass\n')) == []


def test_a_file_over_600_lines_is_found() -> None:
    assert list(check(HERE, "x = 1\n" * 600)) == []
    assert list(check(HERE, "x = 1\n" * 601)) == ["a.py:1: 601 lines, at most 600: split it by subject"]


def test_a_function_over_60_lines_is_found_and_its_docstring_not_counted() -> None:
    def function(lines: int, docstring_lines: int) -> str:
        docstring = '    """' + "word\n" * docstring_lines + '    """\n'
        return "def f() -> None:\n" + docstring + "    x = 1\n" * (lines - 1)

    assert list(check(HERE, function(60, 30))) == []
    assert list(check(HERE, function(61, 30))) == ["a.py:1: f has 61 lines, at most 60"]


def test_notes_need_an_issue_and_leftovers_are_refused() -> None:
    note, leftover = "TO" + "DO", "FIX" + "ME"
    assert list(check(HERE, f"# {note}(#12): split\n")) == []
    assert list(check(HERE, f"# {note}: split\n")) == ["a.py:1: note without an issue number, as in #12"]
    assert list(check(HERE, f"# {leftover}: split\n")) == ["a.py:1: leftover note: repair it now"]
