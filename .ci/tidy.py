"""Gate on what no linter checks: length of files and functions, and notes left behind in the code.

Prints `path:line: what is wrong` for every finding; exit status 1 if there is any.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("kvstore", "chaos", "tests", ".ci")
LEFTOVER = re.compile(r"\b(FIX" + r"ME|XX" + r"X)\b")
UNOWNED_NOTE = re.compile(r"\bTO" + r"DO\b(?!\s*\(?(?:issue\s*)?#\d+)")


def main() -> int:
    findings = [
        finding
        for folder in CHECKED
        for path in sorted((ROOT / folder).rglob("*.py"))
        for finding in check(path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    ]
    for finding in findings:
        print(finding)
    print(f"tidy: {len(findings)} findings" if findings else "tidy: clean")
    return 1 if findings else 0


def check(path: Path, text: str) -> Iterator[str]:
    lines = text.splitlines()
    if len(lines) > FILE_LINES_MAX:
        yield f"{path}:1: {len(lines)} lines, at most {FILE_LINES_MAX}: split it by subject"
    for number, line in enumerate(lines, 1):
        if LEFTOVER.search(line):
            yield f"{path}:{number}: leftover note: repair it now"
        if UNOWNED_NOTE.search(line):
            yield f"{path}:{number}: note without an issue number, as in #12"
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = function_lines(node)
            if length > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES_MAX}"


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert node.end_lineno is not None, "parsed from source"
    length = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        assert first.end_lineno is not None, "parsed from source"
        length -= first.end_lineno - first.lineno + 1
    return length


if __name__ == "__main__":
    sys.exit(main())
