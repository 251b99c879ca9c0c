"""Messages to and from another server of the Open Inference Protocol: ModelInfer as its client, and model metadata.

Answers come from elsewhere, so their size, form and shape are checked before they are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from pipeline.bundle.remote_spec import DTYPES, RemoteSpec
from pipeline.errors import RemoteFault
from pipeline.model.remote_inputs import Tensor
from protos.inference import message
from serving.wire.tensors import CONTENTS

__all__ = ["ANSWER_BYTES", "InferCall", "differences"]

ANSWER_BYTES = 16 << 20
"""Largest answer that is read."""
MOST_OUTPUTS_COUNT = 64
_Request, _Response = message("ModelInferRequest"), message("ModelInferResponse")


class InferCall:
    """Writer of requests and reader of answers for one spec."""

    def __init__(self, spec: RemoteSpec) -> None:
        self._output = spec.output.name
        head = _Request(model_name=spec.remote.model, model_version=spec.remote.version)
        head.outputs.add(name=self._output)
        self._head: bytes = head.SerializeToString()

    def request(self, tensors: Sequence[Tensor]) -> bytes:
        """A ModelInferRequest with raw contents."""
        request = _Request()
        for tensor in tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.content)
        return self._head + bytes(request.SerializeToString())

    def answer(self, data: bytes) -> Tensor:
        """The output of the spec, raw.

        Raises:
            RemoteFault: it is not there, or not of a form that can be read.
        """
        try:
            response = _Response.FromString(data)
        except DecodeError:
            raise RemoteFault("the remote model's answer is no ModelInferResponse") from None
        if len(response.outputs) > MOST_OUTPUTS_COUNT:
            raise RemoteFault(
                f"the remote model's answer has {len(response.outputs)} outputs; at most {MOST_OUTPUTS_COUNT} are read"
            )
        for place, output in enumerate(response.outputs):
            if output.name == self._output:
                return Tensor(output.name, output.datatype, tuple(output.shape), self._content(response, place, output))
        names = [output.name[:80] for output in response.outputs]
        raise RemoteFault(f"the remote model's answer has no output {self._output!r}; it has {names}")

    def _content(self, response: Any, place: int, output: Any) -> bytes:
        if any(size < 0 for size in output.shape) or "shared_memory_region" in output.parameters:
            raise RemoteFault(
                f"output {self._output!r} of the remote model has shape {list(output.shape)[:8]}, or is elsewhere"
            )
        if response.raw_output_contents:
            if len(response.raw_output_contents) != len(response.outputs):
                raise RemoteFault(
                    f"the remote model's answer has {len(response.raw_output_contents)} raw contents for "
                    f"{len(response.outputs)} outputs"
                )
            return bytes(response.raw_output_contents[place])
        dtype = DTYPES.get(output.datatype)
        values = getattr(output.contents, CONTENTS[output.datatype]) if output.datatype in CONTENTS else ()
        if dtype is None or len(values) != math.prod(output.shape):
            raise RemoteFault(
                f"output {self._output!r} of the remote model is {output.datatype[:20]} {list(output.shape)[:8]} and holds "
                f"{len(values)} values"
            )
        try:
            return np.fromiter(values, dtype, len(values)).tobytes()
        except OverflowError:
            raise RemoteFault(
                f"output {self._output!r} of the remote model holds values outside {output.datatype}"
            ) from None


def differences(spec: RemoteSpec, metadata: Any) -> list[str]:
    """What a model's metadata say otherwise than a spec; nothing where they name no tensors.

    Args:
        metadata: ModelMetadataResponse.
    """
    return [*_inputs_that_differ(spec, metadata), *_outputs_that_differ(spec, metadata)]


def _inputs_that_differ(spec: RemoteSpec, metadata: Any) -> Iterator[str]:
    there = {tensor.name: tensor for tensor in metadata.inputs}
    if not there:
        return
    for name, put in spec.inputs.items():
        tensor = there.get(name)
        if tensor is None:
            yield f"input {name!r} is unknown there; its inputs are {sorted(there)}"
            continue
        if tensor.datatype != put.dtype:
            yield f"input {name!r} is {tensor.datatype} there and {put.dtype} here"
        shape, mine = list(tensor.shape), put.shape
        if len(shape) != len(mine) or any(
            size >= 0 and own not in ("n", size) for own, size in zip(mine, shape, strict=True)
        ):
            yield f"input {name!r} has shape {shape} there and [{', '.join(map(str, mine))}] here"
    for name in there.keys() - spec.inputs.keys():
        yield f"input {name!r} is needed there and has no fields here"


def _outputs_that_differ(spec: RemoteSpec, metadata: Any) -> Iterator[str]:
    there = {tensor.name: tensor for tensor in metadata.outputs}
    output = spec.output
    if not there:
        return
    tensor = there.get(output.name)
    if tensor is None:
        yield f"output {output.name!r} is unknown there; its outputs are {sorted(there)}"
        return
    if tensor.datatype not in DTYPES:
        yield f"output {output.name!r} is {tensor.datatype} there, which is no number"
    widths = [size for size in tensor.shape[1:] if size >= 0]
    if len(widths) == len(tensor.shape) - 1 and output.column >= math.prod(widths):
        yield f"output {output.name!r} has {math.prod(widths)} columns there, and column {output.column} is wanted"
