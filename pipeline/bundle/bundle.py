"""Bundle: one model version as a directory, written once and never changed.

    manifest.json            description, and the SHA-256 of every other file
    dense.onnx               `embeddings`, `linear`, `numbers` -> `logit`
    context.onnx             the same logit from inputs that keep the context once per request (optional)
    tables/T.safetensors     ids int64 [V] sorted and unique, rows [V, d], counts int64 [V], scales float32 [V] of int8
    tables/T.linear.safetensors   the same ids' weights, rows [V, 1], where the architecture has a weight per id
    training/*.safetensors   state of the training, to continue it; without it the model is frozen
    warmup.arrow             synthetic requests for warm-up (optional)
    remote.json, codes/      in place of network and tables, where another server answers (`pipeline.bundle.remote_spec`)

A version is a base plus deltas: a delta bundle's tables hold only the rows touched since its parent, and `deltas` lists
the versions on top of `base`, oldest first, itself last. A bundle is data: nothing in it is ever executed, unpickled or
resolved outside its directory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from safetensors.numpy import save_file

from pipeline.arrays import F32, I64, Array, Arrays
from pipeline.bundle.files import opened, read
from pipeline.bundle.graph import check_graph
from pipeline.bundle.remote_spec import REMOTE, REMOTE_SPEC, SPEC_BYTES, RemoteSpec, parse_remote_spec
from pipeline.bundle.row_format import RowFormat, decode_rows, encode_rows
from pipeline.bundle.tensors import mapped
from pipeline.bundle.verified import verify_once
from pipeline.disk import sync, writing
from pipeline.documents import parse_json
from pipeline.errors import BundleError
from pipeline.faults import faults_of, fields_of, refuse, told
from pipeline.schema import Schema

__all__ = [
    "MANIFEST", "MANIFEST_BYTES", "Bundle", "BundleWriter", "Calibration", "GateReport", "Manifest", "StoredTable", "Table", "TableInfo",
    "parse_manifest", "read_manifest", "sha256_of",
]  # fmt: skip

MANIFEST = "manifest.json"
DENSE = "dense.onnx"
CONTEXT = "context.onnx"
WARMUP = "warmup.arrow"
LINEAR = ".linear"
MANIFEST_BYTES, CACHED_MANIFEST_BYTES = 8 << 20, 256 << 10
"""Largest manifest that is read, and that is kept in memory. One of 40 fields has about 30 kB."""
HYPERPARAMETER_BYTES = 1 << 20
"""Of a manifest's hyperparameters as JSON: the columns of an imported network are among them."""
MOST_FILES_COUNT, MOST_COLUMNS = 4096, 1 << 18
"""Files of a bundle; numbers that a row brings to the network, over all fields: each costs memory for every candidate."""
LARGEST_COUNT, NAME_LETTERS = 1 << 53, 1024
_CHUNK_BYTES = 1 << 20

Version = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=128)]


class Calibration(BaseModel):
    """Calibration of scores: score = sigmoid(alpha * logit + beta)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alpha: float = Field(default=1.0, gt=0)
    beta: float = 0.0


class GateReport(BaseModel):
    """Result of the gate. A version that did not pass keeps its number and this report, and is never served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    reasons: tuple[str, ...] = ()
    figures: dict[str, float | None] = {}


class TableInfo(BaseModel):
    """Embedding table: width, storage type and the default row, for ids that it does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    width: int = Field(ge=1, le=4096)
    dtype: RowFormat = "float32"
    rows: int = Field(ge=0, le=LARGEST_COUNT)
    default: tuple[float, ...]
    linear_default: float | None = Field(None, description="weight of unknown ids; None: no weight per id")

    @model_validator(mode="after")
    def _default_fits(self) -> TableInfo:
        if len(self.default) != self.width:
            raise ValueError(f"default row has {len(self.default)} numbers where the width is {self.width}")
        return self


class FileInfo(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(ge=0, le=LARGEST_COUNT)


class Manifest(BaseModel):
    """Content of manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: Name
    version: Version
    architecture: str = Field(
        max_length=256, description="name in the model zoo, or package.module:Class of the trainer; never imported"
    )
    hyperparameters: dict[str, Any] = Field({}, description="arguments from which the trainer builds the network")
    model_schema: Schema = Field(alias="schema")
    tables: dict[str, TableInfo] = {}
    calibration: Calibration = Calibration()
    metrics: dict[str, float | None] = Field({}, description="metrics at publication")
    unknown_ids: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="by table: fraction of ids without a row, of rows that were scored before they were trained on"
    )
    parent: Version | None = Field(None, description="the version whose training this one continued")
    base: Version | None = Field(None, description="the base generation under the deltas; None: this is a base")
    deltas: tuple[Version, ...] = Field((), description="versions on top of the base, oldest first, itself last")
    gate: GateReport | None = None
    publisher: str = Field("", max_length=NAME_LETTERS, description="who published it, for example worker or USER@HOST")
    shift_from: Version | None = Field(None, description="the version that metrics.score_shift is measured against")
    created_ms: int = Field(0, ge=0, le=LARGEST_COUNT)
    files: dict[str, FileInfo] = Field({}, max_length=MOST_FILES_COUNT)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        faults = []
        if (self.base is None) != (not self.deltas):
            faults.append("base and deltas go together: a delta version names both, a base version neither")
        if self.deltas and self.deltas[-1] != self.version:
            faults.append(f"deltas must end with the version itself, {self.version}")
        order = [int(version) for version in (self.base, *self.deltas) if version is not None]
        if any(newer <= older for older, newer in itertools.pairwise(order)):
            faults.append("base and deltas must be in ascending order, each once: every one of them is read")
        if self.remote and (self.tables or self.base is not None):
            faults.append("a remote bundle has no tables and no base: another server holds the model")
        for field in () if self.remote else self.model_schema.embedded:
            info = self.tables.get(field.table_name)
            if info is None:
                faults.append(f"field {field.name!r} uses table {field.table_name!r}, which is not listed in tables")
            elif field.width != info.width:
                faults.append(f"field {field.name!r} has width {field.width}, its table {info.width}")
        columns = sum(field.width or 1 for field in self.model_schema.fields)
        if columns > MOST_COLUMNS:
            faults.append(f"schema: a row has {columns:,} numbers over all fields; at most {MOST_COLUMNS:,} are served")
        if len(json.dumps(self.hyperparameters)) > HYPERPARAMETER_BYTES:
            faults.append(f"hyperparameters are more than {HYPERPARAMETER_BYTES:,} bytes of JSON")
        if len({t.linear_default is None for t in self.tables.values()}) > 1:
            faults.append("either every table has a linear_default or none has")
        refuse(faults)
        return self

    @property
    def remote(self) -> bool:
        """Whether another server answers: there is no network here."""
        return self.architecture == REMOTE

    @property
    def linear(self) -> bool:
        """Whether the architecture has a weight per id (then the network has the input `linear`)."""
        return any(t.linear_default is not None for t in self.tables.values())

    @property
    def servable(self) -> bool:
        """False for versions that the gate refused."""
        return self.gate is None or self.gate.passed


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one table: `ids` int64 `[V]` sorted and unique, `rows` float32 `[V, d]`, `counts` int64 `[V]`,
    `linear` float32 `[V]` or None."""

    ids: I64
    rows: F32
    counts: I64
    linear: F32 | None = None


@dataclass(frozen=True, slots=True)
class StoredTable:
    """Table in its stored format, mapped and not read: `ids` int64 `[V]`, `rows` `[V, d]` of the manifest's dtype,
    `scales` float32 `[V]` of int8 rows, `counts` int64 `[V]`, `linear` float32 `[V]` or None. Read-only."""

    ids: I64
    rows: Array
    scales: F32 | None
    counts: I64
    linear: F32 | None


class Bundle:
    """Bundle on disk, opened and checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, *, verify: bool = True, notes: Path | None = None) -> Bundle:
        """Read the manifest and check the files against it.

        Args:
            path: the bundle's directory.
            verify: also hash every file and check the network's graph (reads all bytes once).
            notes: folder of this machine's cache of verified files (`pipeline.bundle.verified`), so that unchanged files
                are not read again; None: they are always read.

        Raises:
            BundleError: naming the file at fault.
        """
        bundle = cls(path, read_manifest(path / MANIFEST))
        bundle._check_files()
        if verify:
            bundle._verify(notes)
        return bundle

    @property
    def frozen(self) -> bool:
        """True without training state: it can be served, but its training cannot continue."""
        return not any(name.startswith("training/") for name in self.manifest.files)

    def file(self, name: str) -> Path:
        """A listed file's path.

        Raises:
            BundleError: it is not listed in the manifest.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {name} is not in the manifest", name)
        return self.path / name

    def table(self, name: str) -> Table:
        """One table's rows as float32, from any stored format.

        Raises:
            BundleError: the file breaks the format (unsorted ids, other shapes or dtypes).
        """
        stored = self.stored_table(name)
        linear = None if stored.linear is None else np.array(stored.linear)
        rows = np.array(decode_rows(stored.rows, stored.scales), copy=stored.rows.dtype == np.float32)
        return Table(np.array(stored.ids), rows, np.array(stored.counts), linear)

    def stored_table(self, name: str) -> StoredTable:
        """One table in its stored format, mapped: only the parts used are read.

        Raises:
            BundleError: the file breaks the format (unsorted ids, other shapes or dtypes).
        """
        info = self.manifest.tables[name]
        tensors = self._mapped(f"tables/{name}.safetensors")
        counts = self._check_table(name, tensors, info.width, info.dtype)
        if len(counts) != info.rows:
            raise BundleError(
                f"{self.path}: table {name!r} holds {len(counts):,} rows where the manifest says {info.rows:,}", name
            )
        linear = None
        if info.linear_default is not None:
            weights = self._mapped(f"tables/{name}{LINEAR}.safetensors")
            self._check_table(name + LINEAR, weights, 1, "float32")
            if not np.array_equal(weights["ids"], tensors["ids"]):
                raise BundleError(f"{self.path}: tables/{name}{LINEAR} holds other ids than tables/{name}", name)
            linear = weights["rows"][:, 0]
        return StoredTable(tensors["ids"], tensors["rows"], tensors.get("scales"), counts, linear)

    def tensors(self, name: str) -> Arrays:
        """All arrays of a safetensors file of the bundle, copied.

        Raises:
            BundleError: the file breaks the format.
        """
        return {key: np.array(value) for key, value in self._mapped(name).items()}

    def mapped_tensors(self, name: str) -> Arrays:
        """As `tensors`, but views of the mapped file, whose pages processes share. Read-only."""
        return self._mapped(name)

    def remote_spec(self) -> RemoteSpec:
        """The spec of a bundle that another server answers for.

        Raises:
            BundleError: it is none, or the spec is faulty or contradicts the schema.
        """
        path = self.file(REMOTE_SPEC)
        return parse_remote_spec(read(self.path, REMOTE_SPEC, SPEC_BYTES), str(path), self.manifest.model_schema)

    def _mapped(self, name: str) -> Arrays:
        """The arrays of a safetensors file as views of the mapped file."""
        path = self.file(name)
        try:
            with opened(self.path, name) as file:
                return mapped(file)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: {error}", name) from None

    def _check_table(self, name: str, tensors: Mapping[str, Array], width: int, dtype: RowFormat) -> I64:
        """Check a table against the format. Returns its counts."""
        missing = {"ids", "rows", *(["scales"] if dtype == "int8" else [])} - set(tensors)
        if missing:
            raise BundleError(f"{self.path}: table {name!r} has no tensor {sorted(missing)[0]!r}", name)
        ids, rows = tensors["ids"], tensors["rows"]
        counts: I64 = tensors.get("counts", np.zeros(len(ids), np.int64))
        if ids.dtype != np.int64 or ids.ndim != 1 or rows.shape != (len(ids), width) or counts.shape != ids.shape:
            raise BundleError(
                f"{self.path}: table {name!r} must hold ids int64 [V], rows [V, {width}] and counts [V]; "
                f"found {ids.dtype} {list(ids.shape)}, {list(rows.shape)}, {list(counts.shape)}",
                name,
            )
        if rows.dtype != np.dtype(dtype):
            raise BundleError(f"{self.path}: table {name!r} holds {rows.dtype} where the manifest says {dtype}", name)
        scales = tensors.get("scales")
        if (scales is not None) != (dtype == "int8"):
            raise BundleError(f"{self.path}: table {name!r} has scales, which only int8 rows have", name)
        if scales is not None and (scales.dtype != np.float32 or scales.shape != ids.shape):
            raise BundleError(
                f"{self.path}: table {name!r}: scales must be float32 [{len(ids)}], "
                f"found {scales.dtype} {list(scales.shape)}",
                name,
            )
        for start in range(0, len(ids) - 1, _CHUNK_BYTES):
            part = ids[start : start + _CHUNK_BYTES + 1]
            if not (part[1:] > part[:-1]).all():
                raise BundleError(f"{self.path}: table {name!r}: ids must be sorted and unique", name)
        return counts

    def _check_files(self) -> None:
        root = os.path.realpath(self.path)
        real = cache(os.path.realpath)  # of folders, which many files share
        for name, info in self.manifest.files.items():
            place = os.path.join(root, name)
            folder = os.path.dirname(place)
            try:
                status = os.lstat(place)
            except (OSError, ValueError):  # ValueError: of a name with a null character
                raise BundleError(f"{self.path}: {name} is listed in the manifest but is not there", name) from None
            if not stat.S_ISREG(status.st_mode) or real(folder) != folder:
                raise BundleError(
                    f"{self.path}: {name} is listed in the manifest but is no regular file inside the bundle", name
                )
            if status.st_size != info.bytes:
                raise BundleError(f"{self.path}: {name} has {status.st_size} bytes instead of {info.bytes}", name)
        if self.manifest.servable:
            network = REMOTE_SPEC if self.manifest.remote else DENSE
            for needed in [network, *(f"tables/{t}.safetensors" for t in self.manifest.tables)]:
                self.file(needed)

    def _verify(self, notes: Path | None) -> None:
        try:
            if notes is None:
                self._check_contents()
                return
            with suppress(OSError):
                notes.mkdir(parents=True, exist_ok=True)
            files = (self.path / name for name in (MANIFEST, *self.manifest.files))
            verify_once(notes / self.path.name, files, self._check_contents)
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read: {error}") from None

    def _check_contents(self) -> None:
        for name, info in self.manifest.files.items():
            with opened(self.path, name, info.bytes) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != info.sha256:
                    raise BundleError(
                        f"{self.path}: {name} does not match its SHA-256 in the manifest: it was damaged", name
                    )
        if not self.manifest.servable:
            return
        if self.manifest.remote:
            self.remote_spec()
            return
        schema, linear = self.manifest.model_schema, self.manifest.linear
        check_graph(self.path / DENSE, schema, linear=linear)
        if CONTEXT in self.manifest.files:
            check_graph(self.path / CONTEXT, schema, linear=linear, split=True)


class BundleWriter:
    """Writer of a bundle: beside its place, then one rename.

    Use it as a context manager; an exception removes the written files.

    Raises:
        BundleError: the place is taken.
        NotReady: the disk is full or fails.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> BundleWriter:
        if self._target.exists():
            raise BundleError(f"{self._target} exists; a bundle is never changed after it was written")
        with writing(self._target):
            self._staging.mkdir(parents=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        if error is not None:
            with writing(self._target):
                raise error

    def path(self, name: str) -> Path:
        """Where to write a file of the bundle."""
        path = self._staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def tensors(self, name: str, arrays: Mapping[str, Array]) -> None:
        """Write a safetensors file."""
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, self.path(name))

    def table(self, name: str, table: Table, stored: RowFormat = "float32") -> None:
        """Write one table, its rows in the format that its `TableInfo` names, and, where it has them, linear weights.

        Raises:
            InvalidInput: a row cannot be stored in that format.
        """
        rows, scales = encode_rows(table.rows, stored)
        arrays = {"ids": table.ids, "rows": rows, "counts": table.counts}
        self.tensors(f"tables/{name}.safetensors", arrays if scales is None else {**arrays, "scales": scales})
        if table.linear is not None:
            self.tensors(
                f"tables/{name}{LINEAR}.safetensors",
                {"ids": table.ids, "rows": table.linear[:, None], "counts": table.counts},
            )

    def written(self, name: str, manifest: Manifest) -> Table:
        """A table of a manifest, float32, that was written before, read again.

        Raises:
            BundleError: the file breaks the format.
        """
        place = f"tables/{name}.safetensors"
        files = {place: FileInfo(sha256="0" * 64, bytes=(self._staging / place).stat().st_size)}
        return Bundle(self._staging, manifest.model_copy(update={"files": files})).table(name)

    def finish(self, manifest: Manifest, publish: Callable[[Path, Manifest], None] | None = None) -> Bundle:
        """Hash the files, write the manifest, sync and rename into place.

        Args:
            publish: called with the complete folder and the manifest before the rename; an exception ends the writing.
        """
        files = {
            str(path.relative_to(self._staging).as_posix()): FileInfo(sha256=sha256_of(path), bytes=path.stat().st_size)
            for path in sorted(self._staging.rglob("*"))
            if path.is_file()
        }
        manifest = manifest.model_copy(update={"files": files})
        text = manifest.model_dump_json(by_alias=True, indent=1)
        parse_manifest(text.encode(), str(self._target / MANIFEST))
        with open(self._staging / MANIFEST, "w") as file:
            file.write(text)
        # Later versions build on this one: all of it is on disk before it is visible.
        for path in (*sorted(self._staging.rglob("*")), self._staging):
            sync(path)
        if publish is not None:
            publish(self._staging, manifest)
        os.rename(self._staging, self._target)
        sync(self._target.parent)
        return Bundle.open(self._target, verify=False)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        BundleError: naming the fault, for example a file outside the bundle's directory.
    """
    try:
        status = os.lstat(path)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except FileNotFoundError:
        raise BundleError(f"{path.parent} is not a bundle: it has no {path.name}", path.name) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}", path.name) from None
    return _parsed(path, identity) if status.st_size <= CACHED_MANIFEST_BYTES else _read_manifest(path)


@lru_cache(maxsize=256)
def _parsed(path: Path, identity: tuple[int, ...]) -> Manifest:
    """The manifest in an unchanged file, cached: each version opens the manifests of its whole chain."""
    return _read_manifest(path)


def _read_manifest(path: Path) -> Manifest:
    return parse_manifest(read(path.parent, path.name, MANIFEST_BYTES), str(path))


def parse_manifest(raw: bytes, place: str) -> Manifest:
    """The manifest in a file's bytes. `place`: path or URL of the file, for messages.

    Raises:
        BundleError: naming all faults.
    """
    if len(raw) > MANIFEST_BYTES:
        raise BundleError(f"{place} has {len(raw):,} bytes; at most {MANIFEST_BYTES:,} are read", MANIFEST)
    try:
        values = parse_json(raw)
    except ValueError as error:
        raise BundleError(f"{place} cannot be read as JSON: {error}", MANIFEST) from None
    faults, first = _faults_of_files(values), MANIFEST
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        faults, first = [*faults_of(error, "manifest"), *faults], fields_of(error, "manifest")
    if faults:
        raise BundleError(told(place, faults), first)
    return manifest


def _faults_of_files(values: Any) -> list[str]:
    """What is wrong with the names of a manifest's files."""
    files = values.get("files") if isinstance(values, dict) else None
    faults = []
    for name in files if isinstance(files, dict) else ():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
            faults.append(f"files: {name[:NAME_LETTERS]!r} leaves the bundle's directory")
        elif str(pure) != name or name == MANIFEST or not name.isprintable() or len(name) > NAME_LETTERS:
            faults.append(f"files: {name[:NAME_LETTERS]!r} is no name of a bundle's file")
    return faults


def sha256_of(path: Path) -> str:
    """SHA-256 in hexadecimal of a file that this process has written."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
