"""Classes of a classifier's answer: which column of its probabilities is that of the click.

The labels are read from the graph, never guessed from the place of a column: a classifier of `buy` and `skip` has P(skip) last.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, helper, numpy_helper

from pipeline.errors import BundleError

__all__ = ["Label", "labels_of", "positive_column"]

Label = bool | int | str
_ATTRIBUTES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
_PLAIN = ({"0", "1"}, {"False", "True"}, {"false", "true"})
"""Pairs of labels of which the second is the click without a word."""


def labels_of(graph: onnx.GraphProto, answer: str) -> list[Label]:
    """Labels of the classes of an output, in the order of its columns; empty where the graph names none.

    Args:
        answer: the output with the probabilities.
    """
    producers = {name: node for node in graph.node for name in node.output}
    pending, seen = [answer], set[str]()
    while pending:
        name = pending.pop(0)
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if found := _said(node):
            return found
        pending.extend(node.input)
    # Converters of scikit-learn look the label up by the best column.
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "ArrayFeatureExtractor" and node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]]).reshape(-1).tolist()
            if all(isinstance(value, bool | int | str | bytes) for value in values):
                return [value.decode() if isinstance(value, bytes) else value for value in values]
    return []


def positive_column(labels: list[Label], positive: Label | None) -> int | None:
    """The column of the click; None where the graph names no classes and the caller none.

    Args:
        labels: of the columns; empty: the two columns are classes 0 and 1 by their place.
        positive: the class that is the click.

    Raises:
        BundleError: there are not two classes, or it cannot be told which of them is the click.
    """
    texts = [_text(label) for label in labels] or (["0", "1"] if positive is not None else [])
    if not texts:
        return None
    named = ", ".join(map(repr, labels or (0, 1)))
    if len(texts) != 2:
        raise BundleError(
            f"the model has {len(texts)} classes ({named}); a click has two. Train it on the click alone", "positive"
        )
    if positive is not None:
        for column, text in enumerate(texts):
            if text == _text(positive):
                return column
        raise BundleError(f"positive: {positive!r} is no class of the model; its classes are {named}", "positive")
    if set(texts) in _PLAIN:
        return next(column for column, text in enumerate(texts) if text in ("1", "True", "true"))
    raise BundleError(
        f"the model's classes are {named}; say which of them is the click, with `positive: {labels[0]}` in the schema file",
        "positive",
    )


def _said(node: onnx.NodeProto) -> list[Label]:
    for attribute in node.attribute:
        if attribute.name in _ATTRIBUTES:
            found = list(_values(attribute))
            if found:
                return found
    return []


def _values(attribute: AttributeProto) -> Iterator[Label]:
    for value in helper.get_attribute_value(attribute):
        yield value.decode() if isinstance(value, bytes) else int(value)


def _text(label: Label) -> str:
    return str(label)
