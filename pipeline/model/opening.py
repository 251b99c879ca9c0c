"""Opening of a version, whatever answers for it: its own network, or another server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.bundle.versions import Repository
from pipeline.embedding.hierarchy.hierarchy import Hierarchy
from pipeline.model.model import Model, servable
from pipeline.model.remote import Connect, RemoteModel

__all__ = ["open_model"]


def open_model(
    repository: Repository,
    name: str,
    version: str = "",
    *,
    segments: Path,
    hierarchy: Hierarchy | None = None,
    network_threads: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    connect: Connect | None = None,
) -> Model:
    """Open a version as `Model.load` does, or as a remote model.

    Args:
        connect: makes callers of other servers; None: this process calls none.

    Raises:
        NotFound, BundleError: as `Model.load`.
        NotReady, RemoteUnavailable, RemoteTimeout: another server answers for it and cannot be asked now.
    """
    bundle = servable(repository, name, version, segments)
    if bundle.manifest.remote:
        return RemoteModel.open(bundle, connect)
    return Model.opened(
        repository, bundle, segments=segments, hierarchy=hierarchy, network_threads=network_threads, device=device
    )
