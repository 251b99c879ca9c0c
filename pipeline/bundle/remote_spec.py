"""Remote spec: which server answers for a bundle, how fields become its input tensors, and which output is the score.

It is the file remote.json of a bundle whose architecture is `remote`; such a bundle has no network and no tables. Files
`codes/<field>.safetensors` hold the codes of a field's values. It knows nothing of gRPC. Next stop: `pipeline.model.remote`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.documents import parse_json
from pipeline.errors import BundleError
from pipeline.faults import faults_of, fields_of, told
from pipeline.schema import FieldSpec, Name, Schema

__all__ = [
    "CODES", "DTYPES", "REMOTE", "REMOTE_SPEC", "SPEC_BYTES", "RemoteInput", "RemoteOutput", "RemoteServer", "RemoteSpec",
    "codes_file", "parse_remote_spec",
]  # fmt: skip

REMOTE = "remote"
"""Architecture of such a bundle."""
REMOTE_SPEC = "remote.json"
CODES = "codes/"
SPEC_BYTES = 4 << 20
MOST_COLUMNS = 1 << 16
"""Values that one input has per row."""

Datatype = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BYTES"
]  # fmt: skip
DTYPES = {
    "BOOL": np.dtype("?"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""Datatypes of the Open Inference Protocol that are arrays; BYTES is a list of texts."""
Tensor = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class RemoteServer(BaseModel):
    """Server of the Open Inference Protocol, and the model to ask there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    address: Annotated[
        str, StringConstraints(pattern=r"^grpc://([A-Za-z0-9_.\-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$", max_length=300)
    ] = Field(description="grpc://HOST:PORT")
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    version: Annotated[str, StringConstraints(max_length=64)] = Field("", description="empty: the server's choice")
    timeout_ms: float = Field(100.0, gt=0, le=600_000, description="longest time of one call")
    tls: bool = Field(False, description="encrypt; roots and client certificate are in section `remote` of baton.yaml")
    max_rows: int = Field(512, ge=1, le=65_536, description="most rows of one call; more are asked in several")

    @property
    def target(self) -> str:
        """HOST:PORT."""
        return self.address.removeprefix("grpc://")


class RemoteInput(BaseModel):
    """One input tensor: the values of some fields, side by side, a row per candidate.

    Attributes:
        shape: `n` stands for the rows of the call; the other dimensions hold `columns` values.
        pad_to: elements of a bag, of which later ones are kept; shorter bags end with `pad`.
        per_request: one row for the whole request, of context fields alone; such a call carries one request.
        hashed: ids travel as Baton's hashes (docs/client.md), not as codes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fields: tuple[Name, ...] = Field(min_length=1)
    dtype: Datatype
    shape: tuple[Annotated[int, Field(ge=1, le=MOST_COLUMNS)] | Literal["n"], ...] = Field(min_length=1, max_length=8)
    pad_to: int | None = Field(None, ge=1, le=MOST_COLUMNS)
    pad: int | float | str = 0
    per_request: bool = False
    hashed: bool = False

    @property
    def columns(self) -> int:
        """Values per row."""
        return self.pad_to or len(self.fields)

    def dimensions(self, rows: int) -> tuple[int, ...]:
        """The shape for so many rows."""
        return tuple(rows if size == "n" else size for size in self.shape)


class RemoteOutput(BaseModel):
    """Output tensor that holds a head. `column`: of its columns, where it has several; `kind`: what the numbers are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Tensor
    column: int = Field(0, ge=0, le=MOST_COLUMNS)
    kind: Literal["probability", "logit"] = "probability"


class RemoteSpec(BaseModel):
    """Content of remote.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    remote: RemoteServer
    inputs: dict[Tensor, RemoteInput] = Field(min_length=1, max_length=4096)
    outputs: dict[Name, RemoteOutput] = Field(min_length=1, max_length=64, description="by head, in the order of heads")
    unknown: dict[Name, int | float | str] = Field({}, description="by field: code of values without one")
    fill: dict[Name, float] = Field({}, description="by number field: what is sent where it is missing; else NaN")

    @model_validator(mode="after")
    def _one_head(self) -> RemoteSpec:
        if len(self.outputs) > 1:
            raise ValueError(f"outputs: one head is served; name one of {', '.join(self.outputs)}")
        return self

    @property
    def output(self) -> RemoteOutput:
        """The head that is served."""
        return next(iter(self.outputs.values()))

    @property
    def coded(self) -> tuple[str, ...]:
        """Fields whose values travel as codes: ids and bags of inputs that do not take hashes. Numbers are among them."""
        return tuple(dict.fromkeys(name for put in self.inputs.values() if not put.hashed for name in put.fields))

    def faults(self, schema: Schema) -> list[str]:
        """All that contradicts a bundle's schema, each naming the input or field; empty where nothing does."""
        fields = {field.name: field for field in schema.fields}
        found = [fault for name, put in self.inputs.items() for fault in _input_faults(name, put, fields)]
        for key, named, kinds in (("unknown", self.unknown, ("id", "bag")), ("fill", self.fill, ("number",))):
            for name in named:
                if name not in fields or fields[name].kind not in kinds:
                    found.append(f"{key}: {name!r} is not a field of kind {' or '.join(kinds)}")
        return found


def _input_faults(name: str, put: RemoteInput, fields: dict[str, FieldSpec]) -> Iterator[str]:
    strange = [field for field in put.fields if field not in fields]
    if strange:
        yield f"inputs.{name}: {strange[0]!r} is not among the fields"
        return
    kinds = [fields[field].kind for field in put.fields]
    if "bag" in kinds and (len(kinds) > 1 or put.pad_to is None):
        yield f"inputs.{name}: a bag has a tensor of its own and needs pad_to, the number of elements to send"
    if put.pad_to is not None and kinds != ["bag"]:
        yield f"inputs.{name}: pad_to belongs to a single bag"
    if put.hashed and ("number" in kinds or put.dtype not in ("INT64", "UINT64")):
        yield f"inputs.{name}: hashed is for ids and bags as INT64 or UINT64"
    if put.dtype == "BYTES" and "number" in kinds:
        yield f"inputs.{name}: {put.fields[kinds.index('number')]!r} is a number, which cannot be sent as BYTES"
    if (put.dtype == "BYTES") != isinstance(put.pad, str) and put.pad_to is not None:
        yield f"inputs.{name}: pad {put.pad!r} does not fit {put.dtype}"
    rows = [place for place, size in enumerate(put.shape) if size == "n"]
    if put.per_request:
        alone = [field for field in put.fields if fields[field].role != "context"]
        if alone:
            yield f"inputs.{name}: per_request takes context fields alone, and {alone[0]!r} is a candidate's"
        if rows:
            yield f"inputs.{name}: per_request has one row, so write 1 in place of n in its shape"
    elif rows != [0]:
        yield f"inputs.{name}: the first dimension of its shape is n, and no other"
    if math.prod(size for size in put.shape if size != "n") != put.columns:
        shape = ", ".join(map(str, put.shape))
        yield f"inputs.{name}: shape [{shape}] does not hold {put.columns} values a row, which its fields have"


def codes_file(field: str) -> str:
    """Name of the file of a field's codes in a bundle."""
    return f"{CODES}{field}.safetensors"


def parse_remote_spec(raw: bytes, place: str, schema: Schema) -> RemoteSpec:
    """The spec in a file's bytes. `place`: path of the file, for messages.

    Raises:
        BundleError: naming the fault.
    """
    if len(raw) > SPEC_BYTES:
        raise BundleError(f"{place} has {len(raw):,} bytes; at most {SPEC_BYTES:,} are read", REMOTE_SPEC)
    try:
        spec = RemoteSpec.model_validate(parse_json(raw))
    except ValidationError as error:
        raise BundleError(told(place, faults_of(error, REMOTE_SPEC)), fields_of(error, REMOTE_SPEC)) from None
    except ValueError as error:
        raise BundleError(f"{place} cannot be read as JSON: {error}", REMOTE_SPEC) from None
    if faults := spec.faults(schema):
        raise BundleError(told(place, faults), REMOTE_SPEC)
    return spec
