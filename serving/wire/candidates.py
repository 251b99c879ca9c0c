"""Candidate ids of a ModelInferRequest: an input beside those of the model, so that labels may name candidates by them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pipeline.errors import InvalidInput
from protos.inference import message
from serving.wire.tensors import tensors_of

__all__ = ["CANDIDATE_IDS", "take_candidate_ids"]

CANDIDATE_IDS = "candidate_ids"
"""Name of the input: BYTES or INT64 `[n]`, all different."""
_Request = message("ModelInferRequest")


def take_candidate_ids(
    request: Any, raw: list[bytes] | None, fields: Container[str], max_rows: int
) -> tuple[list[str], list[bytes] | None]:
    """The candidate ids of a request, none where it has no such input, and its raw tensors without them.

    The input is taken out of the request. A field of that name is an input of the model like any other.

    Raises:
        InvalidInput: they are no texts or integers, not one per candidate, or not unique.
    """
    at = next((i for i, tensor in enumerate(request.inputs) if tensor.name == CANDIDATE_IDS), -1)
    if at < 0 or CANDIDATE_IDS in fields:
        return [], raw
    contents = request.raw_input_contents if raw is None else raw
    if len(contents) and len(contents) != len(request.inputs):
        return [], raw  # refused where all inputs are read
    alone = _Request(inputs=[request.inputs[at]])
    tensor = tensors_of(alone, [contents[at]] if len(contents) else (), max_rows)[CANDIDATE_IDS]
    if tensor.datatype not in ("BYTES", "INT64"):
        raise InvalidInput(f"input {CANDIDATE_IDS!r} is BYTES or INT64, not {tensor.datatype}", CANDIDATE_IDS)
    try:
        ids = [value.decode() if isinstance(value, bytes) else str(int(value)) for value in tensor.column()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {CANDIDATE_IDS!r} holds text that is not UTF-8: {error}", CANDIDATE_IDS) from None
    del request.inputs[at]
    if raw is not None:
        raw = [*raw[:at], *raw[at + 1 :]]
    elif len(contents):
        del request.raw_input_contents[at]
    first = request.inputs[0].shape if request.inputs else ()
    if first and first[0] != len(ids):
        raise InvalidInput(f"input {CANDIDATE_IDS!r} has {len(ids)} ids for {first[0]} candidates", CANDIDATE_IDS)
    if len(set(ids)) != len(ids):
        raise InvalidInput(f"input {CANDIDATE_IDS!r}: the ids of one request must all be different", CANDIDATE_IDS)
    return ids, raw
