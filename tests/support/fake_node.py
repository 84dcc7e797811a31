"""Run as a process in a node's place: listens, is ready at once, stops on SIGTERM. Takes a node's options.

FAKE_NODE=crash ends with a message, FAKE_NODE=never is never ready, FAKE_NODE=stubborn ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_NODE", "")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_ready = self.path == "/readyz" and MODE != "never"
        self.send_response(200 if is_ready else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--config", "--node", "--data"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    print(f"node {options.node} starts", flush=True)
    if MODE == "crash":
        print("the disk is upside down", flush=True)
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if MODE == "stubborn" else lambda *_: os._exit(0))
    config = Path(options.config).read_text()
    found = re.search(rf'id: {options.node}, client: "127\.0\.0\.1:(\d+)"', config)
    assert found is not None
    Path(options.data).mkdir()
    ThreadingHTTPServer(("127.0.0.1", int(found[1])), Handler).serve_forever()


main()
