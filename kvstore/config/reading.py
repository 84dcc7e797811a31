"""From a text and environment variables to a `Config`, or to a `ConfigError` that can be acted on."""

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

import msgspec
import yaml

from kvstore.config.addresses import split_address
from kvstore.config.checks import contradictions
from kvstore.config.errors import ConfigError
from kvstore.config.settings import SECTIONS, SINGLE_VALUES, Config, NodeConfig, Section

ENVIRONMENT_PREFIX = "KVSTORE_"
_REFUSED = ("tls", "auth")


def parse_config(
    text: str, *, file: str = "cluster.yaml", environment: Mapping[str, str] | None = None
) -> Config:
    """Read a configuration. `file` is only named in messages. Raises `ConfigError`."""
    tree = _load_yaml(text, file)
    if not isinstance(tree, dict):
        raise ConfigError(file, "", f"expected a mapping with cluster and nodes, found {_shown(tree)}")
    for name in _REFUSED:
        if tree.get(name) is not None:
            raise ConfigError(file, name, "this version has no such protection: expected it to be left out")
    if "file" in tree:
        raise ConfigError(file, "file", "no such setting")
    # A section whose lines are all commented out is an empty value in YAML.
    tree = {name: value for name, value in tree.items() if name not in SECTIONS or value is not None}
    _refuse_non_finite(tree, file, "")
    tree = _override(tree, environment or {}, file)
    try:
        config = msgspec.convert(tree | {"file": file}, Config)
    except msgspec.ValidationError as error:
        raise _explained(error, tree, file) from None
    config = _with_default_hosts(config)
    for path, problem in contradictions(config):
        raise ConfigError(file, path, problem)
    return config


def _with_default_hosts(config: Config) -> Config:
    nodes = []
    for number, node in enumerate(config.nodes):
        hosts = {}
        for name in ("client", "peer", "resp"):
            address = getattr(node, name)
            if address is None:
                continue
            try:
                hosts[name], _ = split_address(address)
            except ValueError as error:
                raise ConfigError(config.file, f"nodes[{number}].{name}", str(error)) from None
        nodes.append(msgspec.structs.replace(node, host=node.host or hosts["peer"]))
    return msgspec.structs.replace(config, nodes=tuple(nodes))


def _override(tree: dict[str, Any], environment: Mapping[str, str], file: str) -> dict[str, Any]:
    """The tree with the values that the environment sets, converted to the types of their fields."""
    for variable in sorted(environment):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name == variable.lower():
            continue
        section, _, key = name.partition("_")
        if name in SINGLE_VALUES:
            tree = tree | {name: _converted(Config, name, variable, environment[variable])}
        elif section in SECTIONS:
            if key not in SECTIONS[section].__struct_fields__:
                raise ConfigError(f"environment variable {variable}", "", _unknown(key, SECTIONS[section]))
            value = _converted(SECTIONS[section], key, variable, environment[variable])
            present = tree.get(section)
            if present is not None and not isinstance(present, dict):
                raise ConfigError(file, section, f"expected a mapping, found {_shown(present)}")
            tree = tree | {section: (present or {}) | {key: value}}
        elif name in ("nodes", *_REFUSED):
            raise ConfigError(f"environment variable {variable}", "", f"{name} can only be set in {file}")
    return tree


def _converted(struct: type[Section], name: str, variable: str, text: str) -> Any:
    wanted = get_type_hints(struct, include_extras=True)[name]
    try:
        value = msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError as error:
        problem = f"{_friendly(str(error), wanted)}, found {text!r}"
        raise ConfigError(f"environment variable {variable}", "", problem) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"environment variable {variable}", "", f"expected a finite number, found {text!r}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML that refuses a repeated key, which PyYAML would settle silently by the last one."""


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key in seen and key != "<<":
            line = key_node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(problem=f"line {line}: {key!r} is given twice")
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def _load_yaml(text: str, file: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise ConfigError(file, "", f"expected YAML: {where}{problem}") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(file, "", f"expected YAML: {error}") from None


def _refuse_non_finite(value: Any, file: str, path: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise ConfigError(file, path, f"expected names as keys, found {_shown(key)}")
            _refuse_non_finite(each, file, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _refuse_non_finite(each, file, f"{path}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(file, path, f"expected a finite number, found {value}")


def _explained(error: msgspec.ValidationError, tree: dict[str, Any], file: str) -> ConfigError:
    """msgspec's message with our path, our words, and the value that was found."""
    message, _, quoted = str(error).partition(" - at ")
    path = quoted.strip("`").removeprefix("$").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL)
    if unknown:
        return ConfigError(file, path, _unknown(unknown[1], _struct_at(path)))
    missing = re.fullmatch(r"Object missing required field `(.*)`", message)
    if missing:
        return ConfigError(file, path, f"expected {missing[1]!r}, which is missing")
    found: Any = tree
    for step in re.findall(r"[^.\[\]]+", path):
        found = found[int(step)] if isinstance(found, list | tuple) else found[step]
    wanted = get_type_hints(_struct_at(path), include_extras=True).get(path.rpartition(".")[2])
    expected = _friendly(message, wanted)
    is_unquoted = "a string" in expected and isinstance(found, bool | int | float)
    hint = ": put it in quotes" if is_unquoted else ""
    return ConfigError(file, path, f"{expected}, found {_shown(found)}{hint}")


def _struct_at(path: str) -> type[Section]:
    head = re.split(r"[.\[]", path)[0]
    return NodeConfig if head == "nodes" else SECTIONS.get(head, Config)


def _unknown(name: str, struct: type[Section]) -> str:
    known = [field for field in struct.__struct_fields__ if field != "file"]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    return f"no such setting {name!r}: {hint}"


_WORDS = {
    "`int`": "an integer",
    "`float`": "a number",
    "`str`": "a string",
    "`str | null`": "a string",
    "`bool`": "true or false",
    "`object`": "a mapping",
    "`array`": "a list",
}


def _friendly(message: str, wanted: Any) -> str:
    """What msgspec expected, in our words; `wanted` is the type of the field."""
    if message.startswith("Invalid enum value"):
        choices = get_args(get_args(wanted)[0])
        return f"expected one of {', '.join(map(repr, choices))}"
    if "matching regex" in message:
        return "expected a name of at most 64 letters, digits, '.', '_' or '-' that starts with no sign"
    message = message.partition(", got ")[0].replace("Expected", "expected", 1)
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
