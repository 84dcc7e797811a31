"""`kvstored`: run one node of a cluster."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from kvstore import __version__
from kvstore.config import ConfigError, parse_config
from kvstore.types import NodeId

FAILURE, USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Parse the command line, run the node, return the exit code."""
    parser = argparse.ArgumentParser(prog="kvstored", description="Run one node of a kvstore cluster.")
    parser.add_argument("--config", required=True, metavar="FILE", help="cluster.yaml")
    parser.add_argument("--node", required=True, metavar="ID", help="which node of the file this is")
    parser.add_argument("--data", metavar="DIR", help="data directory (default: data/ID)")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--version", action="version", version=f"kvstored {__version__}")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if not __debug__:
        print("kvstored: refuses to run without assertions (python -O)", file=sys.stderr)  # noqa: T201
        return USAGE
    try:
        with open(options.config, encoding="utf-8") as file:
            text = file.read()
        config = parse_config(text, file=options.config, environment=os.environ)
        config.node(options.node)
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        print(f"kvstored: {error}", file=sys.stderr)  # noqa: T201
        return USAGE
    for warning in config.warnings():
        logging.getLogger("kvstore").warning("%s", warning)
    from kvstore.node import server

    me = NodeId(options.node)
    return server.run(config, me, options.data or server.default_data(me))


if __name__ == "__main__":
    main()
