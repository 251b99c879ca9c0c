"""A model that is ready to answer: one bundle version with its embeddings mapped, its network loaded and warm.

Immutable; a new version is another `Model`, and a reference to it is what a swap assigns. It knows nothing of
endpoints, arms or sockets. Next stop: `pipeline.embedding.store` (rows) and `pipeline.network` (the rest).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.bundle import DENSE, Bundle, Calibration, Manifest
from pipeline.embedding.store import EmbeddingStore, LookupCounts
from pipeline.errors import BundleError, NotFound
from pipeline.features import Bag, Features, Rows
from pipeline.inputs import DenseInputs, Layout
from pipeline.network import Network
from pipeline.schema import Schema
from pipeline.versions import Repository

__all__ = ["Model"]

F32 = npt.NDArray[np.float32]


class Model:
    """One version of one bundle, ready. `score` may be called from several threads at once.

    Attributes:
        name, version: of the bundle.
        schema, calibration, manifest: as published.
        bytes: estimate of the memory it needs: mapped segments and the network. Segments are shared between processes,
            and a base is shared between the versions on it.
    """

    def __init__(self, bundle: Bundle, store: EmbeddingStore, network: Network) -> None:
        self.manifest: Manifest = bundle.manifest
        self.name: str = bundle.manifest.name
        self.version: str = bundle.manifest.version
        self.schema: Schema = bundle.manifest.model_schema
        self.calibration: Calibration = bundle.manifest.calibration
        self.store = store
        self.network = network
        # ONNX Runtime keeps the weights once more, packed for its kernels.
        self.bytes: int = store.bytes + 2 * bundle.manifest.files[DENSE].bytes
        self._linear = bundle.manifest.linear
        self._layout = Layout.full(self.schema)
        self._scratch = threading.local()

    @classmethod
    def load(
        cls,
        repository: Repository,
        name: str,
        version: str = "",
        *,
        segments: Path,
        network_threads: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Model:
        """Open a version, every file of it verified, and map its rows.

        The versions it builds on are verified when a segment is built from them, not each time: a segment carries
        its own checksums.

        Args:
            repository: where bundles lie.
            name, version: empty version: the newest that may serve.
            segments: directory of this machine's segments, shared by its processes.
            network_threads: of one run of the network.
            device: where the network runs.

        Raises:
            NotFound: no such name or version.
            BundleError: it is damaged, was refused by the gate, or builds on a version that is gone.
        """
        bundle = repository.open(name, version, verify=True)
        manifest = bundle.manifest
        if not manifest.servable:
            reasons = "; ".join(manifest.gate.reasons) if manifest.gate else ""
            raise BundleError(f"{bundle.path}: the gate refused version {manifest.version}: {reasons}", "gate")
        if (manifest.name, manifest.version) != (name, bundle.path.name):
            raise BundleError(f"{bundle.path} says it is {manifest.name} version {manifest.version}", "name")
        try:
            chain = repository.chain(bundle)
        except NotFound as error:
            raise BundleError(f"{bundle.path} builds on a version that is gone: {error}", "base") from None
        store = EmbeddingStore.open(chain, segments)
        network = Network(
            bundle.path / DENSE, manifest.model_schema, linear=manifest.linear, threads=network_threads, device=device
        )
        return cls(bundle, store, network)

    def embed(self, features: Features) -> DenseInputs:
        """The network's inputs for a request, in this thread's buffers: valid until its next call."""
        dense, _ = self.embed_counted(features)
        return dense

    def embed_counted(self, features: Features) -> tuple[DenseInputs, LookupCounts]:
        """Like `embed`, and where the rows came from."""
        room: DenseInputs | None = getattr(self._scratch, "dense", None)
        if room is None or room.n < features.n:
            rows = max(128, 1 << (features.n - 1).bit_length())
            room = self._scratch.dense = DenseInputs.zeros(self._layout, rows, linear=self._linear)
        dense = room.window(0, features.n)
        counts = self.store.lookup(features, dense)
        for part in features.numbers:
            dense.blocks[0].numbers[:, part.columns] = part.values
        return dense, counts

    def infer(self, dense: DenseInputs) -> F32:
        """Calibrated probabilities float32 `[n]` of embedded rows."""
        if dense.n == 0:
            return np.zeros(0, np.float32)
        logits = self.network.run(dense).astype(np.float64)
        logits *= -self.calibration.alpha
        logits -= self.calibration.beta
        np.minimum(logits, 700.0, out=logits)  # exp of more overflows
        np.exp(logits, out=logits)
        logits += 1.0
        scores: F32 = np.reciprocal(logits).astype(np.float32)
        return scores

    def score(self, features: Features) -> F32:
        """Calibrated probabilities float32 `[n]` of the candidates of a request; `features` fits `schema`."""
        if features.n == 0:
            return np.zeros(0, np.float32)
        return self.infer(self.embed(features))

    def warm(self, requests: Iterable[Features] = (), *, sizes: tuple[int, ...] = (1, 100)) -> None:
        """Run requests through, or synthetic ones of these sizes, so that the first client pays for nothing."""
        given = False
        for features in requests:
            self.score(features)
            given = True
        for n in () if given else sizes:
            self.score(Features.from_context(self.schema, _synthetic(self.schema, n)))


def _synthetic(schema: Schema, n: int) -> Rows:
    ids = np.arange(1, 1 + n * len(schema.ids), dtype=np.int64).reshape(n, len(schema.ids))
    numbers = np.zeros((n, len(schema.numbers)), np.float32)
    bounds = np.arange(n + 1, dtype=np.int32)
    bags = tuple(Bag(b, bounds, np.arange(1, n + 1, dtype=np.int64)) for b in range(len(schema.bags)))
    return Rows(ids, numbers, bags)
