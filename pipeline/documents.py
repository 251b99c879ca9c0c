"""JSON and YAML from elsewhere: whatever the text, a document or a ValueError.

Both parsers call themselves for each level, so a few thousand brackets end them with a RecursionError, which nobody expects
of a parser. What writes a document again bears fewer levels than what reads it, so JSON is bounded far below either. Sizes
are bounded where the text is read.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

__all__ = ["parse_json", "parse_yaml"]

_DEEP = "it is nested too deeply"
_LEVEL_COUNT = 100


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested more than 100 levels deep.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    level = [found]
    for _ in range(_LEVEL_COUNT + 1):
        inner = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        if not inner:
            return found
        level = [value for values in inner for value in values]
    raise ValueError(_DEEP)


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a YAML text; `loader` is a safe one.

    Raises:
        yaml.YAMLError: it is no YAML, or nested too deeply.
    """
    try:
        return yaml.load(text, Loader=loader)
    except RecursionError:
        raise yaml.YAMLError(_DEEP) from None
    except (ValueError, KeyError, TypeError) as error:  # of a value such as 2001-02-30, or of an unhashable key
        raise yaml.YAMLError(str(error)) from None
