"""Import of a model that stays on its server (`baton bundle import-remote`): a bundle that says how to ask it.

The spec file is YAML: which server (`remote`), what callers send (`fields`, as in dataset.yaml), how it becomes tensors
(`inputs`, `codes`, `unknown`, `fill`) and where the score is (`outputs`). What is not said is taken from the server's own
metadata. Nothing here knows gRPC. Next stop: `pipeline.bundle.remote_spec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.bundle.bundle import Bundle, BundleWriter, Manifest
from pipeline.bundle.remote_spec import (
    DTYPES,
    REMOTE,
    REMOTE_SPEC,
    Datatype,
    RemoteInput,
    RemoteOutput,
    RemoteServer,
    RemoteSpec,
    codes_file,
)
from pipeline.bundle.versions import Repository
from pipeline.documents import parse_yaml
from pipeline.errors import DataError
from pipeline.faults import faults_of, fields_of, told
from pipeline.schema import MISSING_TEXTS, FieldSpec, Name, Schema
from transfer.bundles.remote.codes import (
    MOST_INTEGER_VALUES,
    Code,
    arrays_of,
    code_faults,
    needed_codes,
    read_csv,
    unknown_of,
)

__all__ = ["RemoteFile", "TensorThere", "import_remote", "load_remote_file"]


@dataclass(frozen=True, slots=True)
class TensorThere:
    """A tensor as the server describes it; -1 stands for any size."""

    datatype: str
    shape: tuple[int, ...]


class InputFile(BaseModel):
    """One input of the spec file; what is not said has a default by its fields or by the server."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    field: Name | None = None
    fields: tuple[Name, ...] | None = Field(None, min_length=1)
    dtype: Datatype | None = None
    shape: tuple[int | Literal["n"], ...] | None = None
    pad_to: int | None = Field(None, ge=1)
    pad: int | float | str | None = None
    per_request: bool = False
    hashed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return self.fields or ((self.field,) if self.field else ())


class OutputFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    column: int | None = Field(None, ge=0)
    kind: Literal["probability", "logit"] = "probability"


class RemoteFile(BaseModel):
    """The spec file of `import-remote`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    remote: RemoteServer
    fields: tuple[FieldSpec, ...] = Field(min_length=1, description="as in dataset.yaml, or the path of one")
    inputs: dict[str, InputFile] | Literal["named", "packed"] = Field(
        description="by tensor; named: one for each field, named like it; packed: those of another Baton"
    )
    outputs: dict[Name, str | OutputFile] = Field(min_length=1, description="the tensor that holds a head")
    codes: dict[Name, dict[str, Code] | str] = Field({}, description="value to code, or a CSV file of value,code")
    integers: dict[Name, Annotated[int, Field(ge=1, le=MOST_INTEGER_VALUES)]] = Field(
        {}, description="fields whose values are 0 to N-1 and travel as themselves"
    )
    unknown: Code | dict[Name, Code] = Field({}, description="code of values without one; -1 or an empty text")
    fill: dict[Name, float] = {}


def load_remote_file(path: Path) -> RemoteFile:
    """Read a spec file, with the files that it names relative to it.

    Raises:
        DataError: a file or a part of one is absent or wrong; all faults of the spec file at once.
    """
    raw = _yaml(path)
    if isinstance(raw, dict) and isinstance(raw.get("fields"), str):
        described = _yaml(path.parent / raw["fields"])
        raw = {**raw, "fields": described.get("fields") if isinstance(described, dict) else None}
    try:
        found = RemoteFile.model_validate(raw)
    except ValidationError as error:
        raise DataError(told(str(path), faults_of(error)), fields_of(error)) from None
    both = sorted(found.codes.keys() & found.integers.keys())
    if both:
        said = [f"{name!r} is under codes and under integers; keep one" for name in both]
        raise DataError(told(str(path), said), both[0])
    read = {
        name: read_csv(path.parent / codes) if isinstance(codes, str) else codes for name, codes in found.codes.items()
    }
    return found.model_copy(update={"codes": read})


def import_remote(
    file: RemoteFile,
    target: Path | Repository,
    *,
    name: str,
    number: str = "1",
    inputs: Mapping[str, TensorThere] | None = None,
    outputs: Mapping[str, TensorThere] | None = None,
) -> Bundle:
    """Write the bundle of a model on another server.

    Args:
        target: the bundle's directory, or a repository, which gives it its number.
        number: version in a directory.
        inputs, outputs: tensors as the server describes them, which complete the file; None: it was not asked.

    Raises:
        DataError: the file contradicts itself or cannot be sent; all faults at once.
        BundleError: the place is taken.
    """
    schema = _schema(file)
    put = _inputs(file, schema, inputs)
    taken = _outputs(file, outputs)
    codes = needed_codes(put, schema, _mappings(file), file.integers)
    said = file.unknown if isinstance(file.unknown, dict) else dict.fromkeys(codes, file.unknown)
    unknown = {field: unknown_of(said.get(field), mine) for field, mine in codes.items()}
    spec = RemoteSpec(remote=file.remote, inputs=put, outputs=taken, unknown=unknown, fill=file.fill)
    faults = [*spec.faults(schema), *code_faults(spec, codes)]
    if faults:
        raise DataError("; ".join(faults), "inputs")
    version = target.reserve(name) if isinstance(target, Repository) else number
    place = target.path(name, version) if isinstance(target, Repository) else target
    manifest = Manifest(name=name, version=version, architecture=REMOTE, schema=schema)
    with BundleWriter(place) as writer:
        writer.path(REMOTE_SPEC).write_text(spec.model_dump_json(indent=1))
        for field in schema.fields:
            if field.name in codes:
                writer.tensors(codes_file(field.name), arrays_of(field, codes[field.name]))
        return writer.finish(manifest, target.publish if isinstance(target, Repository) else None)


def _schema(file: RemoteFile) -> Schema:
    fields = tuple(
        f if f.kind == "number" or "missing" in f.model_fields_set else f.model_copy(update={"missing": MISSING_TEXTS})
        for f in file.fields
    )
    try:
        return Schema(fields=fields)
    except ValidationError as error:
        raise DataError(told("fields", faults_of(error)), "fields") from None


def _inputs(file: RemoteFile, schema: Schema, there: Mapping[str, TensorThere] | None) -> dict[str, RemoteInput]:
    if file.inputs == "packed":
        said = _packed(schema, there)
    elif file.inputs == "named":
        named = [f for f in schema.fields if there is None or not there or f.name in there]
        bags = [f.name for f in named if f.kind == "bag"]
        if bags:
            raise DataError(
                f"inputs: named cannot send the bag {bags[0]!r}: write the inputs one by one, with pad_to for each bag",
                "inputs",
            )
        said = {f.name: InputFile(field=f.name) for f in named}
    else:
        said = dict(file.inputs)
    kinds = {f.name: f.kind for f in schema.fields}
    faults = [f"inputs.{name}: name its field or its fields" for name, put in said.items() if not put.names]
    faults += [
        f"inputs.{name}: {field!r} is not among the fields"
        for name, put in said.items()
        for field in put.names
        if field not in kinds
    ]
    if faults:
        raise DataError("; ".join(faults), "inputs")
    return {name: _input(file, name, put, kinds, (there or {}).get(name)) for name, put in said.items()}


def _packed(schema: Schema, there: Mapping[str, TensorThere] | None) -> dict[str, InputFile]:
    """The inputs of another Baton whose fields are these, in this order. Bags are padded as said there, else refused."""
    if schema.bags:
        raise DataError(
            f"inputs: packed cannot send the bag {schema.bags[0].name!r}: write the inputs one by one, this one as "
            f"`'bag:{schema.bags[0].name}': {{field: {schema.bags[0].name}, hashed: true, pad_to: N}}`",
            "inputs",
        )
    packed = {}
    if schema.ids:
        packed["ids"] = InputFile(fields=tuple(f.name for f in schema.ids), hashed=True)
    if schema.numbers:
        packed["numbers"] = InputFile(fields=tuple(f.name for f in schema.numbers))
    return packed


def _input(
    file: RemoteFile, name: str, put: InputFile, kinds: Mapping[str, str], there: TensorThere | None
) -> RemoteInput:
    columns = put.pad_to or len(put.names)
    dtype = put.dtype or (there.datatype if there else "") or _datatype(file, put, kinds)
    if dtype not in (*DTYPES, "BYTES"):
        raise DataError(f"inputs.{name}: the server takes {dtype}, which cannot be sent", name)
    flat = there is not None and len(there.shape) == 1 and columns == 1
    shape: tuple[int | str, ...] = (1, columns) if put.per_request else ("n",) if flat else ("n", columns)
    pad = put.pad if put.pad is not None else "" if dtype == "BYTES" else 0
    try:
        return RemoteInput.model_validate(
            {
                "fields": put.names, "dtype": dtype, "shape": put.shape or shape, "pad_to": put.pad_to, "pad": pad,
                "per_request": put.per_request, "hashed": put.hashed,
            }
        )  # fmt: skip
    except ValidationError as error:
        raise DataError(told(f"inputs.{name}", faults_of(error)), name) from None


def _datatype(file: RemoteFile, put: InputFile, kinds: Mapping[str, str]) -> str:
    """The datatype that fits fields, where neither file nor server says one."""
    if put.hashed:
        return "INT64"
    values = [v for field in put.names for v in _mappings(file).get(field, {}).values()]
    if any(isinstance(value, str) for value in values):
        return "BYTES"
    whole = all(isinstance(value, int) for value in values)
    return "INT64" if whole and all(kinds[field] != "number" for field in put.names) else "FP32"


def _mappings(file: RemoteFile) -> dict[str, Mapping[str, Code]]:
    """Codes of the file by field, once its CSV files are read."""
    return {field: codes for field, codes in file.codes.items() if not isinstance(codes, str)}


def _outputs(file: RemoteFile, there: Mapping[str, TensorThere] | None) -> dict[str, RemoteOutput]:
    made = {}
    for head, said in file.outputs.items():
        output = OutputFile(name=said) if isinstance(said, str) else said
        tensor = (there or {}).get(output.name)
        width = 1 if tensor is None else _width(tensor.shape[1:])
        if output.column is None and width != 1:
            raise DataError(
                f"outputs.{head}: {output.name!r} has {width} columns there: say which one, as "
                f"{{name: {output.name}, column: 1}}",
                head,
            )
        made[head] = RemoteOutput(name=output.name, column=output.column or 0, kind=output.kind)
    if len(made) > 1:
        raise DataError(f"outputs: one head is served; keep one of {', '.join(made)}", "outputs")
    return made


def _width(shape: Sequence[int]) -> int:
    width = 1
    for size in shape:
        width *= size
    return width


def _yaml(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not YAML: {error}") from None
