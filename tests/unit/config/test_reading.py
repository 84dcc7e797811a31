import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.config import Config, ConfigError, parse_config

TEXT = """
cluster: demo
replication: 3
shards: 16
virtual_nodes: 64
nodes:
  - {id: n1, client: "127.0.0.1:7401", peer: "127.0.0.1:7501", host: h1, zone: a, weight: 1}
  - {id: n2, client: "127.0.0.1:7402", peer: "127.0.0.1:7502", host: h2, zone: b}
  - {id: n3, client: "127.0.0.1:7403", peer: "127.0.0.1:7503"}
"""


def parse(text: str = TEXT, **environment: str) -> Config:
    return parse_config(text, environment=environment)


def problem_of(text: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, **environment)
    return str(caught.value)


def test_a_minimal_file_gets_every_default() -> None:
    config = parse()
    assert config.node_ids() == ("n1", "n2", "n3")
    assert (config.timeouts.election_ms_min, config.limits.key_bytes_max) == (1000, 4096)
    assert config.storage.engine == "rocksdb"


def test_host_defaults_to_the_host_of_the_peer_address() -> None:
    assert [node.host for node in parse().nodes] == ["h1", "h2", "127.0.0.1"]


def test_a_section_with_all_its_lines_commented_out_is_empty() -> None:
    assert parse(f"{TEXT}limits:\n  # key_bytes_max: 4096\n") == parse()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("", "cluster.yaml: expected a mapping with cluster and nodes, found nothing"),
        ("[1, 2]", "cluster.yaml: expected a mapping with cluster and nodes, found a list"),
        ("a: [", "cluster.yaml: expected YAML: line 1, column 5: "),
        ("a: &a [*a]", "cluster.yaml: expected YAML: line 1, column 4: "),
        ("a: 2001-99-99", "cluster.yaml: expected YAML: month must be in 1..12"),
        ("? [a]\n: b", "cluster.yaml: expected YAML: "),
        ("a: !!python/object:os.system x", "cluster.yaml: expected YAML: "),
        ("cluster: demo", "cluster.yaml: expected 'nodes', which is missing"),
        ("cluster: demo\nnodes: 5", "cluster.yaml: nodes: expected a list, found 5"),
        ("cluster: demo\nnodes: [5]", "cluster.yaml: nodes[0]: expected a mapping, found 5"),
        ("cluster: demo\nnodes: []", "cluster.yaml: nodes: expected at least one node"),
        (f"{TEXT}shards: 4", "cluster.yaml: expected YAML: line 10: 'shards' is given twice"),
        (f"{TEXT}1: 2", "cluster.yaml: expected names as keys, found 1"),
        (f"{TEXT}file: x", "cluster.yaml: file: no such setting"),
        (f"{TEXT}shard: 4", "cluster.yaml: no such setting 'shard': did you mean 'shards'?"),
        (f"{TEXT}limits: 3", "cluster.yaml: limits: expected a mapping, found 3"),
        (
            f"{TEXT}limits: {{key_bytes_max: x}}",
            "cluster.yaml: limits.key_bytes_max: expected an integer, found 'x'",
        ),
        (
            f"{TEXT}limits: {{key_bytes_max: 0}}",
            "cluster.yaml: limits.key_bytes_max: expected an integer >= 1, found 0",
        ),
        (
            f"{TEXT}limits: {{key_bytes: 1}}",
            "cluster.yaml: limits: no such setting 'key_bytes': did you mean 'key_bytes_max'?",
        ),
        (
            f"{TEXT}timeouts: {{request_s: .nan}}",
            "cluster.yaml: timeouts.request_s: expected a finite number, found nan",
        ),
        (
            f"{TEXT}storage: {{engine: leveldb}}",
            "cluster.yaml: storage.engine: expected one of 'rocksdb', 'memory', found 'leveldb'",
        ),
    ],
)
def test_a_mistake_is_named_with_file_path_and_what_was_expected(broken: str, told: str) -> None:
    assert problem_of(broken).startswith(told)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("cluster: demo", "cluster: 7", "cluster: expected a string, found 7: put it in quotes"),
        ("cluster: demo", "cluster: ''", "cluster: expected a name of at most 64 "),
        ("id: n2", "id: no", "nodes[1].id: expected a string, found False: put it in quotes"),
        ("id: n2", "id: n/2", "nodes[1].id: expected a name of at most 64 "),
        ("id: n2, ", "", "nodes[1]: expected 'id', which is missing"),
        ("zone: b", "zones: b", "nodes[1]: no such setting 'zones': did you mean 'zone'?"),
        ("weight: 1", "weight: 0", "nodes[0].weight: expected a number > 0.0, found 0"),
        ("weight: 1", "weight: heavy", "nodes[0].weight: expected a number, found 'heavy'"),
        ("replication: 3", "replication: three", "replication: expected an integer, found 'three'"),
        ('"127.0.0.1:7402"', "localhost", 'nodes[1].client: expected "host:port"'),
        ("7402", "74020", "nodes[1].client: expected a port from 1 to 65535, found 74020"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(old: str, new: str, told: str) -> None:
    assert problem_of(TEXT.replace(old, new)).startswith(f"cluster.yaml: {told}")


@pytest.mark.parametrize("section", ["tls", "auth"])
def test_protection_that_this_version_lacks_is_refused_not_ignored(section: str) -> None:
    assert "this version has no such protection" in problem_of(f"{TEXT}{section}: {{ca: ca.pem}}")


def test_environment_overrides_single_values() -> None:
    config = parse(
        KVSTORE_CLUSTER="9",
        KVSTORE_SHARDS="64",
        KVSTORE_TIMEOUTS_REQUEST_S="2",
        KVSTORE_STORAGE_ENGINE="memory",
    )
    assert (config.cluster, config.shards, config.timeouts.request_s) == ("9", 64, 2.0)
    assert config.storage.engine == "memory"


def test_environment_wins_over_the_file_and_leaves_its_neighbours() -> None:
    config = parse(
        f"{TEXT}limits: {{key_bytes_max: 100, scan_page_items: 7}}", KVSTORE_LIMITS_KEY_BYTES_MAX="200"
    )
    assert (config.limits.key_bytes_max, config.limits.scan_page_items) == (200, 7)


def test_variables_of_others_are_left_alone() -> None:
    # Kubernetes sets the first two in every pod beside a service called kvstore.
    assert (
        parse(KVSTORE_PORT="tcp://10.0.0.1:80", KVSTORE_SERVICE_HOST="10.0.0.1", KVSTORE_RAFT_TRACE="x")
        == parse()
    )


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("KVSTORE_SHARDS", "many", "expected an integer, found 'many'"),
        ("KVSTORE_TIMEOUTS_REQUEST_S", "0", "expected a number > 0.0, found '0'"),
        ("KVSTORE_TIMEOUTS_REQUEST_S", "inf", "expected a"),
        ("KVSTORE_LIMITS_KEY_BYTES", "1", "no such setting 'key_bytes': did you mean 'key_bytes_max'?"),
        ("KVSTORE_STORAGE_ENGINE", "x", "expected one of 'rocksdb', 'memory', found 'x'"),
        ("KVSTORE_NODES", "[]", "nodes can only be set in cluster.yaml"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, told: str) -> None:
    assert problem_of(TEXT, **{variable: value}).startswith(f"environment variable {variable}: {told}")


def test_values_of_the_environment_are_checked_together_with_the_file() -> None:
    assert "shards: expected a power of two, found 6" in problem_of(TEXT, KVSTORE_SHARDS="6")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
PLACES = ("cluster", "shards", "nodes", "limits", "timeouts", "tls", "x")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PLACES),
    st.none() | st.sampled_from(["id", "peer", "lease_ms", "scan_page_items", "x"]),
    VALUES,
)
def test_any_value_anywhere_is_either_fine_or_a_config_error(
    outer: str, inner: str | None, value: object
) -> None:
    tree = yaml.safe_load(TEXT)
    if inner is None:
        tree[outer] = value
    elif outer == "nodes":
        tree[outer][1][inner] = value
    else:
        tree[outer] = {inner: value}
    try:
        config = parse_config(yaml.safe_dump(tree))
    except ConfigError as error:
        told = str(error)
    else:
        told = f"cluster.yaml: {config.cluster}"
    assert told.startswith("cluster.yaml: ")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abc: \n-[]{}&*!?|>'\"#%@`,0.\t", max_size=40))
def test_any_text_is_either_fine_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text)


def test_deep_nesting_is_an_error_like_any_other() -> None:
    assert "expected YAML" in problem_of("[" * 20_000)
