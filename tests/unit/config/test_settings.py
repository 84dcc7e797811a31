from pathlib import Path

import pytest

from kvstore.config import SECTIONS, ConfigError, describe_settings, parse_config
from tests.unit.config.test_reading import TEXT

UNITS = {
    "bytes": "byte",
    "ms": "millisecond",
    "s": "second",
    "minutes": "minute",
}


def test_every_setting_is_described_with_its_unit() -> None:
    described = {path: text for path, _, text in describe_settings()}
    for section, struct in SECTIONS.items():
        for name in struct.__struct_fields__:
            text = described[f"{section}.{name}"]
            unit = next((unit for word, unit in UNITS.items() if word in name.split("_")), "")
            assert unit in text, f"{section}.{name}: {text}"


def test_a_file_with_every_default_written_out_means_the_same() -> None:
    lines: dict[str, list[str]] = {}
    for path, default, _ in describe_settings():
        section, _, name = path.partition(".")
        lines.setdefault(section, []).append(f"  {name}: {default}")
    text = "\n".join(f"{section}:\n" + "\n".join(rows) for section, rows in lines.items())
    assert parse_config(f"{TEXT}{text}\n") == parse_config(TEXT)


def test_an_unknown_node_is_told_who_is_known() -> None:
    config = parse_config(TEXT)
    assert config.node("n2").zone == "b"
    with pytest.raises(ConfigError, match="'n9', found n1, n2, n3"):
        config.node("n9")


def test_nodes_on_one_host_are_warned_about() -> None:
    laptop = TEXT.replace("host: h1, ", "").replace("host: h2, ", "")
    assert "1 host(s) for replication 3" in parse_config(laptop).warnings()[0]
    assert parse_config(TEXT).warnings() == []


def test_a_resp_address_is_warned_about_while_nothing_listens_there() -> None:
    config = parse_config(TEXT.replace("zone: b", "zone: b, resp: '127.0.0.1:6402'"))
    assert "nodes[1].resp" in config.warnings()[0]


def test_the_example_in_the_repository_is_valid_and_warns_of_nothing() -> None:
    text = (Path(__file__).parents[3] / "cluster.yaml").read_text(encoding="utf-8")
    assert parse_config(text).warnings() == []
