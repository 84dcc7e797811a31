"""cluster.yaml as frozen structs: every limit, timeout and default of a node, with its unit and reason.

`parse_config` is a function of a text and a mapping of environment variables; reading files and the
environment is the caller's part. A mistake in either becomes one `ConfigError` that names the file, the
path inside it, what was expected and what was found. Every setting has bounds, so that a node never
starts with one that cannot work.

`KVSTORE_<NAME>` or `KVSTORE_<SECTION>_<NAME>` overrides a single value (`KVSTORE_SHARDS=64`,
`KVSTORE_TIMEOUTS_REQUEST_S=2`). Other variables with that prefix belong to someone else and are left
alone, but a misspelt name within a section is refused.
"""

from kvstore.config.addresses import split_address
from kvstore.config.agreement import agreed_facts, config_hash
from kvstore.config.errors import ConfigError
from kvstore.config.reading import ENVIRONMENT_PREFIX, parse_config
from kvstore.config.settings import (
    SECTIONS,
    Config,
    History,
    Limits,
    NodeConfig,
    Sessions,
    Snapshot,
    Storage,
    Timeouts,
    describe_settings,
)

__all__ = [
    "ENVIRONMENT_PREFIX",
    "SECTIONS",
    "Config",
    "ConfigError",
    "History",
    "Limits",
    "NodeConfig",
    "Sessions",
    "Snapshot",
    "Storage",
    "Timeouts",
    "agreed_facts",
    "config_hash",
    "describe_settings",
    "parse_config",
    "split_address",
]
