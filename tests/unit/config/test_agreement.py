from kvstore.config import Config, agreed_facts, config_hash, parse_config
from tests.unit.config.test_reading import TEXT


def changed(old: str, new: str) -> Config:
    assert old in TEXT
    return parse_config(TEXT.replace(old, new))


def test_hash_is_the_same_whatever_the_order_and_layout_of_the_file() -> None:
    lines = TEXT.strip().splitlines()
    turned = "\n".join([*lines[4:5], *reversed(lines[5:]), *reversed(lines[:4])])
    assert config_hash(parse_config(turned)) == config_hash(parse_config(TEXT))


def test_hash_differs_when_anything_agreed_on_does() -> None:
    hashes = [
        config_hash(each)
        for each in (
            changed("cluster: demo", "cluster: other"),
            changed("replication: 3", "replication: 1"),
            changed("shards: 16", "shards: 32"),
            changed("virtual_nodes: 64", "virtual_nodes: 65"),
            changed("id: n2", "id: n4"),
            changed("host: h2", "host: h4"),
            changed("zone: b", "zone: c"),
            changed("weight: 1", "weight: 1.5"),
            parse_config(f"{TEXT}timeouts: {{election_ms_min: 1500}}"),
            parse_config(f"{TEXT}history: {{revisions: 5}}"),
            parse_config(f"{TEXT}sessions: {{lifetime_s: 60}}"),
            parse_config(TEXT),
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert {len(each) for each in hashes} == {16}


def test_addresses_and_local_settings_need_no_agreement() -> None:
    elsewhere = changed("127.0.0.1:7402", "10.0.0.2:80")
    tuned = parse_config(f"{TEXT}limits: {{connections_max: 9000}}")
    assert config_hash(elsewhere) == config_hash(tuned) == config_hash(parse_config(TEXT))


def test_facts_name_what_differs() -> None:
    ours, theirs = agreed_facts(parse_config(TEXT)), agreed_facts(changed("host: h2", "host: h4"))
    assert {path for path in ours if ours[path] != theirs[path]} == {"nodes.n2"}
