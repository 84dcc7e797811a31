import msgspec
import pytest

from kvstore.config import Config, ConfigError, parse_config
from kvstore.config.checks import contradictions
from tests.unit.config.test_reading import TEXT


def problem_of(old: str, new: str) -> str:
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT.replace(old, new))
    return f"{caught.value.path}: {caught.value.problem}"


def test_defaults_contradict_nothing() -> None:
    assert list(contradictions(parse_config(TEXT))) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("replication: 3", "replication: 2", "replication: expected an odd number, found 2"),
        ("replication: 3", "replication: 5", "replication: expected at most the 3 nodes there are"),
        ("shards: 16", "shards: 12", "shards: expected a power of two, found 12"),
        ("id: n2", "id: n1", "nodes[1].id: expected an id of its own, found 'n1' as in nodes[0]"),
        (
            "7402",
            "7401",
            "nodes[1].client: expected an address of its own, found '127.0.0.1:7401' as in nodes[0]",
        ),
        (
            "7503",
            "7403",
            "nodes[2].peer: expected an address of its own, found '127.0.0.1:7403' as in nodes[2]",
        ),
        ("weight: 1", "weight: 1000", "nodes[0].weight: expected at most 20000 points"),
        ("weight: 1", "bind: 'example.org'", "nodes[0].bind: expected an IP address"),
    ],
)
def test_a_contradiction_in_the_cluster_is_named(old: str, new: str, told: str) -> None:
    assert problem_of(old, new).startswith(told)


@pytest.mark.parametrize(
    ("section", "setting", "value", "told"),
    [
        ("timeouts", "election_ms_max", 1000, "expected more than election_ms_min (1000)"),
        ("timeouts", "election_ms_min", 1010, "expected a multiple of tick_ms (50)"),
        ("timeouts", "heartbeat_ms", 500, "expected at most a third of election_ms_min (1000)"),
        ("timeouts", "lease_ms", 950, "expected at most 9/10 of election_ms_min (1000)"),
        ("limits", "batch_bytes_max", 1000, "expected at least value_bytes_max (1048576)"),
        ("limits", "shard_queue_bytes_max", 1000, "expected room for one whole batch: at least 8392704"),
        ("limits", "header_bytes_max", 4096, "expected at least 3 x key_bytes_max + 1024"),
    ],
)
def test_settings_that_cannot_work_together_are_named(
    section: str, setting: str, value: int, told: str
) -> None:
    config: Config = parse_config(TEXT)
    changed = msgspec.structs.replace(getattr(config, section), **{setting: value})
    found = dict(contradictions(msgspec.structs.replace(config, **{section: changed})))
    assert found[f"{section}.{setting}"].startswith(told)
