import pytest

from kvstore.config import split_address


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("127.0.0.1:7401", ("127.0.0.1", 7401)),
        ("kv-1.example.org:80", ("kv-1.example.org", 80)),
        ("kv_1:65535", ("kv_1", 65535)),
        ("[::1]:7401", ("::1", 7401)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, pair: tuple[str, int]) -> None:
    assert split_address(text) == pair


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "host:",
        "host:http",
        "host:0",
        "host:65536",
        "::1:80",
        "http://h:80",
        "h:80/x",
        "a b:80",
        "h:80\n",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        split_address(text)
