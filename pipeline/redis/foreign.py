"""Content of a Redis, which others may have written: a value of another form is an error that its reader expects.

Who may write to a Redis can put anything there. Every reader checks form and size, and raises NotReady for what Baton did
not write, so that no thread ends from it and no value goes on unchecked.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from pipeline.errors import NotReady

__all__ = ["ODD", "cause_of", "load_json", "load_typed", "parsing", "whole_number"]

T = TypeVar("T")

_NUMBER_LETTERS = 20
MOST_LETTERS = 200
"""Of the cause in a message."""
_INTEGER_MASK = (1 << 63) - 1  # the largest of 64 bits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""Errors that reading content of another form raises."""


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Context, or decorator, of a reader: what cannot be parsed becomes NotReady. `what`: was read, for the message."""
    try:
        yield
    except ODD as error:
        raise NotReady(f"{what} holds what Baton did not write ({cause_of(error)!r}); mend or remove it") from error


def cause_of(error: Exception) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {error}"[:MOST_LETTERS]


def load_json(raw: bytes | str) -> Any:
    """JSON of which each number fits 64 bits and each text can be written again.

    Raises:
        ValueError or RecursionError: it is something else.
    """
    text = raw if isinstance(raw, str) else raw.decode()
    found = json.loads(text, parse_int=_integer)
    if _SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def load_typed(kind: type[T], raw: bytes | str) -> T:
    """JSON as an instance of a dataclass, whose fields have their types. Raises: as `load_json`."""
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    return adapter.validate_python(load_json(raw))


def whole_number(raw: bytes | str | None, default: int = 0) -> int:
    """A decimal number of 64 bits; `default` where there is none. Raises: ValueError."""
    if raw is None:
        return default
    return _integer(raw if isinstance(raw, str) else raw.decode())


def _integer(text: str) -> int:
    if len(text) > _NUMBER_LETTERS or abs(number := int(text)) > _INTEGER_MASK:
        raise ValueError(f"{text[:_NUMBER_LETTERS]}... does not fit 64 bits")
    return number


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
