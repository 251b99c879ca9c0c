"""Probe of a version: a process of its own loads and proves its networks before any process of ours does.

`probe` makes rows to try them with, runs `pipeline.model.probe_process` within limits, at most twice where it dies or hangs,
and gives a verdict. `probe_once` remembers verdicts in a note beside the version's segments, so that all processes of a
machine share one probe. Next stop: `pipeline.model.proof`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.arrays import F32
from pipeline.bundle.bundle import CONTEXT, DENSE, Bundle
from pipeline.bundle.row_format import decode_rows
from pipeline.children import python
from pipeline.disk import replacing
from pipeline.model.proof import Sample
from pipeline.schema import FieldSpec, Schema

__all__ = [
    "PROBED",
    "ProbeLimits",
    "Verdict",
    "bundle_sample",
    "forget",
    "keep_only",
    "note",
    "noted",
    "probe",
    "probe_bundle",
    "probe_once",
    "sample_of",
    "set_aside",
]

PROBED = ".probed"
"""Folder of a bundle's verdicts, beside its segments."""
TRIES = 2
WALL_FACTOR, LEAST_WALL_S = 6, 60.0
"""Seconds by the clock per second of processor time, and at least: a probe steps back behind all other work."""
FILE_FACTOR = 4
"""Bytes of memory that a network may take per byte of its file, beside the limit."""
WHOLE_ROWS = 16
CONTEXT_COUNT = 6
GAP_COLUMNS = 64
"""Numbers of which each is tried missing alone; with more, the first so many, and all together."""
ANY = "any"
"""Identity in the note of a version that was set aside by a process that had loaded it."""
_FORM_ID = 2
"""Of the proof; a higher one has versions probed again."""

VectorSource = Callable[[FieldSpec, int], tuple[F32, F32]]
"""Vectors `[k, width]` and weights `[k]` that a field may have, for k rows."""


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """Limits of one probe: `seconds` of processor time, and `memory_bytes` beside four times the networks' files."""

    seconds: float = 20.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a probe.

    Args:
        reason: why the version may not serve; "": it may.
        died: whether the probe was killed, ran out of time or memory, so that another limit could change it.
        missing: numbers without which the network has no finite score.
        odd: rows without a missing number that have no finite score.
        rows: number of those rows tried.
        bytes: memory that the networks took at most, beside the process itself; 0: not measured.
    """

    reason: str = ""
    died: bool = False
    missing: tuple[str, ...] = ()
    odd: int = 0
    rows: int = WHOLE_ROWS
    bytes: int = field(default=0, compare=False)


def probe(files: Mapping[str, Path], schema: Schema, sample: Sample, limits: ProbeLimits) -> Verdict:
    """Load and prove the networks of a version in a process of its own; at most twice where that dies or hangs.

    Args:
        files: by name in the bundle, the first the one that the others must agree with.
    """
    verdict = _try(files, schema, sample, limits)
    for _ in range(TRIES - 1):
        if not verdict.died:
            break
        verdict = _try(files, schema, sample, limits)
    return verdict


def probe_bundle(bundle: Bundle, limits: ProbeLimits) -> Verdict:
    """`probe` of a version, on rows of its own tables."""
    files = {name: bundle.path / name for name in (DENSE, CONTEXT) if name in bundle.manifest.files}
    return probe(files, bundle.manifest.model_schema, bundle_sample(bundle), limits)


def probe_once(bundle: Bundle, limits: ProbeLimits, notes: Path) -> Verdict:
    """The verdict on a version: noted before, or of a probe now, for which other processes wait.

    Where no note can be written (a full disk, a folder of another user) every call probes.

    Args:
        notes: folder of the notes, `PROBED` beside the bundle's segments.
    """
    identity = _identity(bundle, limits)
    try:
        notes.mkdir(parents=True, exist_ok=True)
        kept = open(notes / bundle.manifest.version, "a+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError:
        return probe_bundle(bundle, limits)
    with kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        kept.seek(0)
        known = _read(kept.read())
        if known is not None and known[0] in (identity, ANY):
            return known[1]
        verdict = probe_bundle(bundle, limits)
        with suppress(OSError):
            kept.truncate(0)
            kept.write(_note(identity, verdict))
        return verdict


def noted(notes: Path) -> dict[str, Verdict]:
    """Verdicts in a folder of notes, by version; those that are being made are left out."""
    found: dict[str, Verdict] = {}
    for path in sorted(notes.glob("*")) if notes.is_dir() else ():
        with suppress(OSError):
            known = _read(path.read_bytes())
            if known is not None:
                found[path.name] = known[1]
    return found


def note(notes: Path, bundle: Bundle, limits: ProbeLimits, verdict: Verdict) -> None:
    """Note a verdict on a version, as `probe_once` does."""
    notes.mkdir(parents=True, exist_ok=True)
    with replacing(notes / bundle.manifest.version) as staging:
        staging.write_bytes(_note(_identity(bundle, limits), verdict))


def set_aside(notes: Path, version: str, reason: str) -> None:
    """Note that a version must not be loaded, whatever its probe has said, until `forget`."""
    with suppress(OSError), replacing(notes / version) as staging:
        staging.write_bytes(_note(ANY, Verdict(reason, died=True)))


def keep_only(notes: Path, versions: Collection[str]) -> None:
    """Remove the verdicts on versions other than these."""
    for version in noted(notes).keys() - set(versions):
        (notes / version).unlink(missing_ok=True)


def forget(notes: Path) -> None:
    """Forget the versions that were set aside, so that they are probed again."""
    for version, verdict in noted(notes).items():
        if verdict.reason:
            (notes / version).unlink(missing_ok=True)


def bundle_sample(bundle: Bundle) -> Sample:
    """Rows of a version's own tables, and their default rows."""
    manifest = bundle.manifest
    rng = np.random.default_rng(0)

    def vectors(field: FieldSpec, count: int) -> tuple[F32, F32]:
        info = manifest.tables[field.table_name]
        stored = bundle.stored_table(field.table_name)
        default = np.array(info.default, np.float32)
        found, weights = np.tile(default, (count, 1)), np.full(count, info.linear_default or 0.0, np.float32)
        if len(stored.ids):
            at = rng.integers(0, len(stored.ids), count)
            scales = None if stored.scales is None else stored.scales[at]
            found[1:] = decode_rows(stored.rows[at], scales)[1:]  # the first is that of an unknown id
            if stored.linear is not None:
                weights[1:] = stored.linear[at][1:]
        return found, weights

    return sample_of(manifest.model_schema, vectors)


def sample_of(schema: Schema, vectors: VectorSource) -> Sample:
    """Rows to prove networks of a schema with: distinct numbers, ids as `vectors` has them, then rows of missing numbers."""
    rng = np.random.default_rng(1)
    gaps = [*([m] for m in range(min(len(schema.numbers), GAP_COLUMNS))), list(range(len(schema.numbers)))]
    rows = WHOLE_ROWS + (len(gaps) if schema.numbers else 0)
    # Some rows share a context; those with gaps have one each, since a gap may be in the context.
    request = np.concatenate([np.arange(WHOLE_ROWS) % CONTEXT_COUNT, CONTEXT_COUNT + np.arange(rows - WHOLE_ROWS)])
    counts = {"context": CONTEXT_COUNT + rows - WHOLE_ROWS, "candidate": rows}
    numbers = {role: _numbers(rng, count, len(schema.numbers)) for role, count in counts.items()}
    for at, columns in enumerate(gaps if schema.numbers else []):
        numbers["context"][CONTEXT_COUNT + at, columns] = numbers["candidate"][WHOLE_ROWS + at, columns] = np.nan
    drawn = {field.name: vectors(field, counts[field.role]) for field in schema.embedded}
    arrays: dict[str, F32] = {}
    for role, count in counts.items():
        mine = [drawn[field.name] for field in schema.embedded if field.role == role]
        columns = [at for at, field in enumerate(schema.numbers) if field.role == role]
        arrays[f"{role}_embeddings"] = np.concatenate([np.empty((count, 0), np.float32), *(v for v, _ in mine)], axis=1)
        arrays[f"{role}_linear"] = np.stack([w for _, w in mine], 1) if mine else np.empty((count, 0), np.float32)
        arrays[f"{role}_numbers"] = np.ascontiguousarray(numbers[role][:, columns])
    return Sample(arrays, _places(schema), request, WHOLE_ROWS)


def _numbers(rng: np.random.Generator, rows: int, columns: int) -> F32:
    """Numbers of several sizes; the first row is of ones, which any transformation takes."""
    found = np.abs(rng.normal(size=(rows, columns))) * 10.0 ** rng.uniform(-1, 1.5, (rows, columns))
    found[1::4] *= -1
    found[:1] = 1.0
    return found.astype(np.float32)


def _places(schema: Schema) -> dict[str, Any]:
    """By kind of input: where columns of context and candidates, one after the other, stand in the full layout."""
    embedded = [(field.role, field.width or 0) for field in schema.embedded]
    widths = {
        "embeddings": embedded,
        "linear": [(role, 1) for role, _ in embedded],
        "numbers": [(field.role, 1) for field in schema.numbers],
    }
    places = {}
    for kind, columns in widths.items():
        roles = np.repeat([role == "candidate" for role, _ in columns], [width for _, width in columns]).astype(
            np.int64
        )
        order = np.argsort(roles, kind="stable")  # context first, as the blocks have them
        places[kind] = np.argsort(order, kind="stable").astype(np.int64)
    return places


def _try(files: Mapping[str, Path], schema: Schema, sample: Sample, limits: ProbeLimits) -> Verdict:
    taken = sum(path.stat().st_size for path in files.values())
    order = {
        "files": {name: str(path.resolve()) for name, path in files.items()},
        "whole": sample.whole,
        "seconds": limits.seconds,
        "bytes": limits.memory_bytes + FILE_FACTOR * taken,
    }
    arrays: dict[str, Any] = {**sample.arrays, **{f"places_{kind}": places for kind, places in sample.places.items()}}
    message = io.BytesIO()
    np.savez(message, order=np.frombuffer(json.dumps(order).encode(), np.uint8), request=sample.request, **arrays)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        python("-m", "pipeline.model.probe_process"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    wall_s = max(LEAST_WALL_S, WALL_FACTOR * limits.seconds)
    with process:
        try:
            answer, _ = process.communicate(message.getvalue(), timeout=wall_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return Verdict(
                f"loading and warming it did not end within {wall_s:g} s (setting engine.load_timeout)", died=True
            )
    return _verdict(process.returncode, answer, schema, limits)


def _verdict(code: int, answer: bytes, schema: Schema, limits: ProbeLimits) -> Verdict:
    """The verdict of an exit code and an answer."""
    if code == -signal.SIGXCPU:
        return Verdict(
            f"loading and warming it takes more than {limits.seconds:g} s of processor time (setting engine.load_timeout)",
            died=True,
        )
    try:
        said = json.loads(answer)
    except ValueError:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Verdict(f"loading and warming it ended its probe process by {how}", died=True)
    if "died" in said:
        return Verdict(
            f"loading and warming it takes more than {limits.memory_bytes / (1 << 20):,.0f} MiB beside its file "
            "(setting engine.load_memory_bytes)",
            died=True,
        )
    if "refused" in said:
        return Verdict(said["refused"])
    names = [field.name for field in schema.numbers]
    unanswered = set(said["unanswered"])
    missing = [name for at, name in enumerate(names[:GAP_COLUMNS]) if WHOLE_ROWS + at in unanswered]
    odd = sum(row < WHOLE_ROWS for row in unanswered)
    return Verdict(missing=tuple(missing), odd=odd, bytes=int(said.get("bytes", 0)))


def _identity(bundle: Bundle, limits: ProbeLimits) -> str:
    """What a verdict depends on; a version that was set aside is tried again with other limits."""
    files = {name: info.sha256 for name, info in bundle.manifest.files.items() if name in (DENSE, CONTEXT)}
    facts = [
        _FORM_ID,
        onnxruntime.__version__,
        files,
        bundle.manifest.model_schema.model_dump(mode="json"),
        asdict(limits),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _note(identity: str, verdict: Verdict) -> bytes:
    return json.dumps({"identity": identity, **asdict(verdict)}).encode()


def _read(note: bytes) -> tuple[str, Verdict] | None:
    try:
        content = json.loads(note)
        identity = content.pop("identity")
        return identity, Verdict(**{**content, "missing": tuple(content["missing"])})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
