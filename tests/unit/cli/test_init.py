"""init: what it writes is what a node reads."""

from pathlib import Path

import pytest

from kvstore.cli.init import render
from kvstore.config import Config, describe_settings, parse_config
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize(("node_count", "replication"), [(1, 1), (3, 3), (5, 3), (7, 5)])
def test_what_it_writes_is_a_configuration(node_count: int, replication: int) -> None:
    text = render(name="demo", host="127.0.0.1", node_count=node_count, shards=16, replication=replication)
    config = parse_config(text)
    assert [node.id for node in config.nodes] == [f"n{number + 1}" for number in range(node_count)]
    assert (config.cluster, config.shards, config.replication) == ("demo", 16, replication)
    assert not config.warnings()


def test_every_setting_is_there_with_its_default_and_reason() -> None:
    text = render(name="demo", host="h", node_count=3, shards=16, replication=3)
    for path, _, description in describe_settings():
        assert f"# {path.partition('.')[2]}:" in text
        assert description in text


def test_a_comment_removed_is_the_default_set() -> None:
    text = render(name="demo", host="h", node_count=3, shards=16, replication=3)
    uncommented = "\n".join(line.replace("  # ", "  ", 1) if line.startswith("  # ") else line
                            for line in text.splitlines())  # fmt: skip
    plain, full = parse_config(text), parse_config(uncommented)
    assert plain == full
    assert plain.limits == Config.__struct_defaults__[-9] or plain.limits == full.limits


@pytest.mark.parametrize("name", ["null", "on", "007", "A.b-c_d"])
def test_names_that_yaml_would_take_for_something_else_are_quoted(name: str) -> None:
    text = render(name=name, host="127.0.0.1", node_count=3, shards=16, replication=3)
    assert parse_config(text).cluster == name


def test_the_file_is_written_once_and_replaced_only_by_force(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    assert run("init", str(file)).exit_code == 0
    file.write_text("mine")
    refused = run("init", str(file))
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert file.read_text() == "mine"
    assert run("init", str(file), "--force", "--nodes", "5").exit_code == 0
    assert len(parse_config(file.read_text()).nodes) == 5


def test_it_can_go_to_stdout(run: Run) -> None:
    assert parse_config(run("init", "-").stdout).cluster == "demo"


@pytest.mark.parametrize(
    "wrong", [("--shards", "12"), ("--replication", "2"), ("--nodes", "1", "--replication", "3")]
)
def test_options_that_make_no_cluster_are_wrong_usage(
    run: Run, tmp_path: Path, wrong: tuple[str, ...]
) -> None:
    file = tmp_path / "c.yaml"
    refused = run("init", str(file), *wrong)
    assert refused.exit_code == 2
    assert "expected" in refused.stderr
    assert not file.exists()
