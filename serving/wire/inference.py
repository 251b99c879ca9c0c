"""Conversion of ModelInferRequest to features and of scores to ModelInferResponse, and a model's metadata.

Two forms of one row. Packed: `ids` INT64 [n, F], `numbers` FP32 [n, M], `bag:NAME` INT64 [n, L] with 0 as padding.
Named: one tensor per field with raw values. Context that is the same in all rows is kept once. It knows nothing of
endpoints, arms or engines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError

from pipeline.arrays import F32
from pipeline.context import context_once
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, Rows, refuse_infinite
from pipeline.hashing import hash_bag_column, hash_column
from pipeline.reading import Reading
from pipeline.schema import FieldSpec, Schema
from protos.inference import data_type, message
from serving.wire.delimited import detach, field
from serving.wire.tensors import Tensor, tensors_of

__all__ = ["OUTPUT", "InferCodec", "parameters_of", "read_request"]

OUTPUT = "score"
BAG = "bag:"
_FLOATS = ("FP32", "FP64")

# Cutting tensors out pays where parsing would copy more than this.
_CUT_FROM_BYTES = 4096
_KEPT_LAYOUTS = 64
_RAW_INPUTS_FIELD = 7
_RAW_OUTPUTS_FIELD = 6
_OUTPUTS_FIELD = 5
_CONTENTS_FIELD = 5
_FP32_FIELD = 6

_Request = message("ModelInferRequest")
_Response = message("ModelInferResponse")
_Output = message("ModelInferResponse").InferOutputTensor
_Metadata = message("ModelMetadataResponse")
_Config = message("ModelConfig")


def read_request(data: bytes) -> tuple[Any, list[bytes] | None]:
    """A ModelInferRequest, and its raw tensors apart if they are large; None: they are in the message.

    Raises:
        InvalidInput: the bytes are not one.
    """
    rest, raw = (data, None) if len(data) < _CUT_FROM_BYTES else detach(data, _RAW_INPUTS_FIELD)
    try:
        return _Request.FromString(rest), raw
    except DecodeError:
        raise InvalidInput("the request is not an inference.ModelInferRequest: it cannot be parsed") from None


def parameters_of(message: Any) -> dict[str, Any]:
    """The parameters of a request by name; those without a value are left out."""
    return {
        name: getattr(value, choice)
        for name, value in message.parameters.items()
        for choice in [value.WhichOneof("parameter_choice")]
        if choice is not None
    }


class InferCodec:
    """Decoder and encoder of requests for one schema.

    Args:
        schema: of the requests: the fields of the model that will answer, or of both arms of an endpoint.
        max_candidates: most rows of one request.
        optional: names of fields that a request may leave out, last of their kind; they are missing then. Packed tensors
            have the columns of all fields, or of those alone that are not optional.
    """

    def __init__(self, schema: Schema, max_candidates: int, optional: Collection[str] = ()) -> None:
        self.schema = schema
        self._optional = frozenset(optional)
        self._without: dict[frozenset[str], tuple[InferCodec, Reading]] = {}
        self.max_candidates = max_candidates
        self._names = {f.name for f in schema.fields}
        self._packed = [
            *(["ids"] if schema.ids else []),
            *(["numbers"] if schema.numbers else []),
            *(BAG + f.name for f in schema.bags),
        ]

    @property
    def fields(self) -> Set[str]:
        """Names of the fields."""
        return self._names

    def decode(self, request: Any, raw: Sequence[bytes] | None = None) -> tuple[Features, bool]:
        """Features of a request, and whether its tensors are raw (then the answer is raw, too).

        Args:
            request: ModelInferRequest.
            raw: its raw tensors, if they are not in it.

        Raises:
            InvalidInput: an input or output is missing, unknown, sent twice, of the wrong datatype or shape, or infinite;
                the error names it.
        """
        for output in request.outputs:
            if output.name != OUTPUT:
                raise InvalidInput(f"output {output.name!r} is not known; the only one is {OUTPUT!r}", output.name)
            if "classification" in output.parameters or "shared_memory_region" in output.parameters:
                raise InvalidInput(f"output {OUTPUT!r}: classification and shared memory are not supported", OUTPUT)
        contents = request.raw_input_contents if raw is None else raw
        tensors = tensors_of(request, contents, self.max_candidates)
        if not tensors:
            raise InvalidInput(f"a request needs inputs: {self._packed}, or one for each field by name", "inputs")
        return self._features(tensors), len(contents) > 0

    def _features(self, tensors: dict[str, Tensor]) -> Features:
        named = not any(name in self._packed for name in tensors) or tensors.keys() <= self._names
        expected = [f.name for f in self.schema.fields] if named else self._packed
        unknown = [name for name in tensors if name not in expected]
        if unknown:
            raise InvalidInput(f"input {unknown[0]!r} is not known; the inputs are {expected}", unknown[0])
        if self._optional and (absent := self._left_out(tensors, named)):
            codec, reading = self._without_fields(absent)
            return reading(codec._features(tensors))
        for name in expected:
            if name not in tensors:
                raise InvalidInput(f"input {name!r} is missing; the inputs are {expected}", name)
        n = self._rows(tensors)
        rows = self._named(tensors) if named else self._packed_rows(tensors, n)
        return context_once(Features.from_rows(rows), self.schema, whole=True)

    def _left_out(self, tensors: Mapping[str, Tensor], named: bool) -> frozenset[str]:
        """Names of the optional fields that a request leaves out."""
        schema, optional = self.schema, self._optional
        if named:
            return frozenset(optional - tensors.keys())
        absent = {f.name for f in schema.bags if f.name in optional and BAG + f.name not in tensors}
        for name, fields in (("ids", schema.ids), ("numbers", schema.numbers)):
            own = {f.name for f in fields if f.name in optional}
            shape = tensors[name].shape if name in tensors else (0, 0)
            if len(shape) == 2 and shape[1] == len(fields) - len(own):
                absent |= own
        return frozenset(absent)

    def _without_fields(self, absent: frozenset[str]) -> tuple[InferCodec, Reading]:
        """The codec of requests without these fields, and how its features become those of all fields."""
        known = self._without.get(absent)
        if known is None:
            sent = [f for f in self.schema.fields if f.name not in absent]
            if not sent:
                raise InvalidInput(f"a request needs inputs: {self._packed}, or one for each field by name", "inputs")
            schema = Schema(fields=tuple(sent))
            known = InferCodec(schema, self.max_candidates), Reading(schema.columns, self.schema)
            if len(self._without) < _KEPT_LAYOUTS:
                self._without[absent] = known
        return known

    def encode(
        self,
        request: Any,
        scores: F32,
        *,
        raw: bool,
        version: str,
        parameters: Mapping[str, str],
    ) -> bytes:
        """A ModelInferResponse as bytes: `score` FP32 [n], raw or typed, with string parameters."""
        response = _Response(model_name=request.model_name, model_version=version, id=request.id)
        for key, value in parameters.items():
            response.parameters[key].string_param = value
        content = np.ascontiguousarray(scores, "<f4").tobytes()
        output: bytes = _Output(name=OUTPUT, datatype="FP32", shape=(len(scores),)).SerializeToString()
        if not raw:  # packed floats are encoded as they are in memory
            output += field(_CONTENTS_FIELD, field(_FP32_FIELD, content))
        head: bytes = response.SerializeToString()
        return head + field(_OUTPUTS_FIELD, output) + (field(_RAW_OUTPUTS_FIELD, content) if raw else b"")

    def metadata(self, name: str, versions: list[str]) -> Any:
        """ModelMetadataResponse: the packed form's inputs with their full shapes."""
        response = _Metadata(name=name, versions=versions, platform="onnxruntime_onnx")
        for input_name, datatype, columns in self._inputs():
            response.inputs.add(name=input_name, datatype=datatype, shape=[-1, columns])
        response.outputs.add(name=OUTPUT, datatype="FP32", shape=[-1])
        return response

    def config(self, name: str) -> Any:
        """ModelConfig in Triton's terms: dims without the batch dimension, which may be up to `max_candidates`."""
        config = _Config(
            name=name, platform="onnxruntime_onnx", backend="onnxruntime", max_batch_size=self.max_candidates
        )
        for input_name, datatype, columns in self._inputs():
            config.input.add(name=input_name, data_type=data_type(f"TYPE_{datatype}"), dims=[columns])
        config.output.add(name=OUTPUT, data_type=data_type("TYPE_FP32"), dims=[1])
        return config

    def _inputs(self) -> list[tuple[str, str, int]]:
        schema = self.schema
        return [
            *([("ids", "INT64", len(schema.ids))] if schema.ids else []),
            *([("numbers", "FP32", len(schema.numbers))] if schema.numbers else []),
            *((BAG + f.name, "INT64", -1) for f in schema.bags),
        ]

    def _rows(self, tensors: dict[str, Tensor]) -> int:
        first, *others = tensors.values()
        n = first.shape[0]
        if n == 0:
            raise InvalidInput(f"input {first.name!r} has no rows; send at least one", first.name)
        for tensor in others:
            if tensor.shape[0] != n:
                raise InvalidInput(
                    f"input {tensor.name!r} has {tensor.shape[0]} rows where {first.name!r} has {n}", tensor.name
                )
        return n

    def _packed_rows(self, tensors: dict[str, Tensor], n: int) -> Rows:
        schema = self.schema
        ids = tensors["ids"].matrix("INT64", len(schema.ids)) if schema.ids else np.empty((n, 0), np.int64)
        numbers = np.empty((n, 0), np.float32)
        if schema.numbers:
            numbers = tensors["numbers"].matrix("FP32", len(schema.numbers))
            refuse_infinite(numbers, schema.numbers, range(len(schema.numbers)))
        bags = []
        for column, spec in enumerate(schema.bags):
            padded = tensors[BAG + spec.name].matrix("INT64", None)
            present = padded != 0
            offsets = np.zeros(n + 1, np.int32)
            np.cumsum(present.sum(axis=1), out=offsets[1:])
            bags.append(Bag(column, offsets, padded[present]))
        return Rows(ids, numbers, tuple(bags))

    def _named(self, tensors: dict[str, Tensor]) -> Rows:
        schema = self.schema
        n = next(iter(tensors.values())).shape[0]
        ids = np.empty((n, len(schema.ids)), np.int64)
        for column, spec in enumerate(schema.ids):
            ids[:, column] = hash_column(spec.name, _raw_values(tensors[spec.name]), spec.missing_texts, spec.index)
        numbers = np.empty((n, len(schema.numbers)), np.float32)
        for column, spec in enumerate(schema.numbers):
            numbers[:, column] = _number(spec, tensors[spec.name])
        bags = []
        for column, spec in enumerate(schema.bags):
            tensor = tensors[spec.name]
            if tensor.datatype != "BYTES":
                raise InvalidInput(
                    f"input {spec.name!r} is a bag: send BYTES with its elements separated by {spec.separator!r}, "
                    f"not {tensor.datatype}",
                    spec.name,
                )
            values = _raw_values(tensor)
            bags.append(
                Bag(column, *hash_bag_column(spec.name, values, spec.separator or "", spec.missing_texts, spec.index))
            )
        return Rows(ids, numbers, tuple(bags))


def _raw_values(tensor: Tensor) -> Any:
    values = tensor.column()
    if not isinstance(values, list):
        return values
    try:
        return pa.array([v.decode() for v in values], pa.string())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {tensor.name!r} holds text that is not UTF-8: {error}", tensor.name) from None


def _number(spec: FieldSpec, tensor: Tensor) -> F32:
    if tensor.datatype not in _FLOATS:
        raise InvalidInput(f"input {spec.name!r} is a number: send FP32, not {tensor.datatype}", spec.name)
    with np.errstate(over="ignore"):
        values = np.asarray(tensor.column(), np.float32)
    if np.isinf(values).any():
        raise InvalidInput(
            f"number {spec.name!r} is infinite (or too large for FP32); send NaN where a value is missing", spec.name
        )
    return values
