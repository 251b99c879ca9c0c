"""Text that nests beyond what a parser can follow is an error like any other."""

from __future__ import annotations

import pytest
import yaml

from pipeline.documents import parse_json, parse_yaml


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 5_000 + "]" * 5_000, "[" * 101 + "]" * 101, "[", b"\xff", "1" * 5_000],
)
def test_json_that_cannot_be_read_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["- " * 3_000, "{a: " * 3_000, "a: *b", "{[1]: 2}", "on: 2001-02-30", "a: !!int x", "a: !!python/name:os.system"],
)
def test_yaml_that_cannot_be_read_is_a_yaml_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_what_is_nested_as_people_nest_is_read() -> None:
    assert parse_json("[" * 50 + "]" * 50)
    assert parse_json('{"a":' * 99 + "[1]" + "}" * 99)
    assert parse_yaml("a: {b: [1, on]}") == {"a": {"b": [1, True]}}
