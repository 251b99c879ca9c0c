"""Messages of `baton.admin.v1` against the classes of `serving.admin`: the same fields of the same kinds at every level."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import pytest
from doors import METHODS
from pydantic import BaseModel

from serving.admin import VERBS

OPEN = {"google.protobuf.Struct": dict, "google.protobuf.Value": object}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_the_same_fields_over_grpc_and_rest(verb: str) -> None:
    _, method = METHODS[verb]
    assert method.server_streaming is VERBS[verb].streams
    wrong = [
        *differences(VERBS[verb].request, method.input_type, "request"),
        *differences(VERBS[verb].answer, method.output_type, "answer"),
    ]
    assert wrong == []


def differences(shape: type[BaseModel], message: Any, path: str) -> Iterator[str]:
    """Differences between the two."""
    mine, theirs = set(shape.model_fields), set(message.fields_by_name)
    if mine != theirs:
        yield f"{path}: only one has {sorted(mine ^ theirs)}"
    for name in mine & theirs:
        yield from _field(shape.model_fields[name].annotation, message.fields_by_name[name], f"{path}.{name}")


def _field(annotation: Any, field: Any, path: str) -> Iterator[str]:
    kind, optional = _without_none(annotation)
    if get_origin(kind) is list:
        if not field.is_repeated:
            yield f"{path}: a list here, one there"
        kind, _ = _without_none(get_args(kind)[0])
    elif field.is_repeated and not field.message_type.GetOptions().map_entry:
        yield f"{path}: one here, a list there"
    kind = get_origin(kind) or kind
    part = field.message_type
    if part is None:
        wanted = {"str": "STRING", "bool": "BOOL", "float": "DOUBLE", "int": "INT", "bytes": "BYTES"}.get(
            getattr(kind, "__name__", "")
        )
        found = {9: "STRING", 8: "BOOL", 1: "DOUBLE", 3: "INT", 5: "INT", 12: "BYTES"}.get(field.type)
        if wanted != found:
            yield f"{path}: {kind} here, type {field.type} there"
        if optional and not field.has_presence:
            yield f"{path}: may be absent here, and there nothing tells"
    elif part.full_name in OPEN or part.GetOptions().map_entry:
        if part.full_name != "google.protobuf.Value" and kind is not dict:
            yield f"{path}: {kind} here, an open object there"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from differences(kind, part, path)
    else:
        yield f"{path}: {kind} here, {part.full_name} there"


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The kind alone, and whether it may be none."""
    if hasattr(annotation, "__metadata__"):
        return _without_none(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _without_none(parts[0])[0], len(parts) < len(get_args(annotation))
    return annotation, False
