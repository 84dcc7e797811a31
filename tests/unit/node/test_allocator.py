"""The allocator setting takes effect in a process of its own."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys
from kvstore.node.allocator import keep_large_blocks
if len(sys.argv) > 1 and not keep_large_blocks():
    print(-1)
    raise SystemExit
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    block = bytearray(600_000)
    block = bytes(block)
    block = None
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True, timeout=100
    )
    return int(done.stdout)


def test_large_blocks_are_not_faulted_in_again_at_every_use() -> None:
    faults = page_faults("keep")
    if faults < 0:
        pytest.skip("not glibc")
    assert faults < 2000, "600 KB are 147 pages; 200 rounds must not touch fresh ones each time"
