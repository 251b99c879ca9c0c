"""All faults of a file at once, in words: what pydantic found of a descriptor, a schema file or settings.

Someone who corrects a file corrects it once. Each fault names the field and says what to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

__all__ = ["fault_text", "faults_of", "fields_of", "refuse", "told"]

MOST_SHOWN_COUNT = 100
"""Faults of a file that a message shows: whoever wrote it may not be a friend."""
_TEXTS = {
    "missing": "Field required: add it",
    "extra_forbidden": "unknown key; remove it or correct its spelling",
}


def fault_text(problem: Any) -> str:
    """What is wrong, of one entry of `ValidationError.errors`, without its place."""
    return _TEXTS.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")


def faults_of(error: ValidationError, whole: str = "") -> list[str]:
    """All faults, each as `field: what is wrong`, in the order of the fields.

    Args:
        whole: name of a fault that is no single field's; empty: none.
    """
    found = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in problem["loc"]) or whole
        # A check of several fields may find several things; each of its lines is one.
        found += [f"{place}: {text}" if place else text for text in fault_text(problem).split("\n")]
    return found


def refuse(faults: Sequence[str]) -> None:
    """End a check of several fields with all that it has found; nothing where there is nothing.

    Raises:
        ValueError: with a line for each fault, as `faults_of` takes it.
    """
    if faults:
        raise ValueError("\n".join(faults))


def fields_of(error: ValidationError, whole: str = "") -> str:
    """The first field at fault, for `InvalidInput.field`."""
    return ".".join(str(part) for part in error.errors()[0]["loc"]) or whole


def told(place: str, faults: Sequence[str]) -> str:
    """A message of all faults of a file: one on its line, several on a line each.

    >>> told("a.yaml", ["label: Field required: add it"])
    'a.yaml: label: Field required: add it'
    >>> print(told("a.yaml", ["x: unknown key; remove it", "label: Field required: add it"]))
    a.yaml: 2 things to correct:
      x: unknown key; remove it
      label: Field required: add it
    """
    if len(faults) == 1:
        return f"{place}: {faults[0]}"
    shown = list(faults[:MOST_SHOWN_COUNT])
    if len(faults) > MOST_SHOWN_COUNT:
        shown.append(f"and {len(faults) - MOST_SHOWN_COUNT:,} more")
    return "\n  ".join([f"{place}: {len(faults):,} things to correct:", *shown])
