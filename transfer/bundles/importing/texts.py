"""Texts that an ONNX model reads: the categories that its graph names, which become the codes of an id field."""

from __future__ import annotations

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

__all__ = ["UNKNOWN_TEXT", "texts_read"]

UNKNOWN_TEXT = "\x01unknown"
"""What the network reads for a value that it has no category of."""
_TEXT_IN_TEXT_OUT = {"Concat", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "ArrayFeatureExtractor", "Gather", "Split", "Slice", "Cast", "StringNormalizer", "StringConcat", "Where", "FeatureVectorizer"}  # fmt: skip
"""Operations through which a text may pass before it is compared with categories."""


def texts_read(graph: onnx.GraphProto, name: str) -> tuple[str, ...]:
    """The texts that an input of texts is compared with, sorted; empty where the graph names none."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pending, seen, found = [name], {name}, set[str]()
    while pending:
        at = pending.pop()
        for node in graph.node:
            if at not in node.input:
                continue
            for attribute in node.attribute:
                found.update(_texts(attribute))
            for other in node.input:
                if other in weights and weights[other].data_type == TensorProto.STRING:
                    found.update(_decoded(numpy_helper.to_array(weights[other]).reshape(-1).tolist()))
            if node.op_type in _TEXT_IN_TEXT_OUT:
                pending += [name for name in node.output if name not in seen]
                seen.update(node.output)
    return tuple(sorted(found - {UNKNOWN_TEXT}))


def _texts(attribute: AttributeProto) -> list[str]:
    if attribute.type == AttributeProto.STRINGS and attribute.name in (
        "cats_strings",
        "keys_strings",
        "classes_strings",
    ):
        return _decoded(list(attribute.strings))
    if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.STRING:
        return _decoded(numpy_helper.to_array(attribute.t).reshape(-1).tolist())
    return []


def _decoded(values: list[bytes | str]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else value for value in values]
