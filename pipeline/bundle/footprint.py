"""Estimate of the memory that loading a version takes, from its manifest alone."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from pipeline.bundle.bundle import CONTEXT, DENSE, Manifest
from pipeline.bundle.versions import Repository
from pipeline.errors import NotFound

__all__ = ["Footprint", "memory_needed", "network_bytes"]

NETWORK_FACTOR = 2.0
"""Memory of a loaded network per byte of its file: ONNX Runtime packs the weights for its kernels once more. Measured
1.9 for one of 2 MB and 1.2 to 1.4 for those of 25 to 50 MB, after a first run of 100 rows."""
SEGMENT_FACTOR = 1.7
"""Bytes of a segment per raw byte of rows, weights and ids, at most (`pipeline.embedding.segment.build`)."""
ELEMENT_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a version in bytes.

    Attributes:
        private: of each process that loads it.
        shared: in mapped segments, once per machine.
    """

    private: int
    shared: int


def memory_needed(repository: Repository, name: str, version: str = "", loaded: Collection[str] = ()) -> Footprint:
    """Upper estimate of the memory that `Model.load` of a version takes.

    Args:
        loaded: versions of the same name that are loaded; their segments, and those they build on, are mapped already.

    Raises:
        NotFound: no such name or version, or a version that it builds on is gone.
        BundleError: a manifest cannot be read.
    """
    bundle = repository.open(name, version)
    mapped = set(loaded)
    for other in loaded:
        with suppress(NotFound):  # removed since; its base may be gone as well
            manifest = repository.manifest(name, other)
            mapped |= {*manifest.deltas, manifest.base or other}
    raw = 0
    for link in repository.chain(bundle):
        if link.manifest.version in mapped:
            continue
        for info in link.manifest.tables.values():
            scale = 4 if info.dtype == "int8" else 0
            weight = 0 if info.linear_default is None else 4
            raw += info.rows * (8 + ELEMENT_BYTES[info.dtype] * info.width + scale + weight)
    return Footprint(network_bytes(bundle.manifest), int(SEGMENT_FACTOR * raw))


def network_bytes(manifest: Manifest) -> int:
    """Bytes of memory of a version's networks in one process."""
    return int(NETWORK_FACTOR * sum(manifest.files[name].bytes for name in (DENSE, CONTEXT) if name in manifest.files))
