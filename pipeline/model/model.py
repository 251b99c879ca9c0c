"""Loaded model: one bundle version with its embeddings mapped and its networks loaded and warm.

Immutable: a new version is another `Model`, and a swap assigns a reference. It knows nothing of
endpoints, arms or sockets. Next stop: `pipeline.embedding.hierarchy.store` (rows) and `pipeline.model.network` (the rest).
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import CONTEXT, DENSE, WARMUP, Bundle, Calibration, Manifest
from pipeline.bundle.footprint import network_bytes
from pipeline.bundle.verified import NOTES
from pipeline.bundle.versions import Repository
from pipeline.calibration import probabilities
from pipeline.embedding.hierarchy.hierarchy import Hierarchy
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.errors import BundleError, InvalidInput, NotFinite, NotFound
from pipeline.features import Features
from pipeline.inputs import DenseInputs, Layout, Waiting
from pipeline.model.network import Network, RunStop
from pipeline.model.warmup import read_warmup, synthetic_requests
from pipeline.model.workspace import Workspace
from pipeline.reading import Reading
from pipeline.schema import Schema

__all__ = ["Model", "servable"]


SPLIT_ROWS = 8
"""Candidates per request up to which the whole network is as fast (39 fields x 16, perceptron of 3 x 400): the longer graph
of the split one costs what it saves."""


class Model:
    """Loaded version of a bundle. `score` may be called from several threads at once.

    Where the bundle has context.onnx both networks are loaded: the split one runs requests whose candidates share their
    context, the whole one all others, for which it is 3 % faster. The price is a second copy of the weights.

    Attributes:
        name, version: of the bundle.
        schema, calibration, manifest: as published.
        inputs: the fields that its requests have, of which it reads its own; the same as `schema` unless said (`reading`).
        fields: columns of the features of its requests, for the record; empty: its own.
        store: the embedding rows.
        whole, split: the networks; `split` is None without context.onnx.
        bytes: estimated memory of mapped segments and networks. Processes share segments, versions share their base.
        remote: whether another server answers for it (`pipeline.model.remote`).
    """

    remote = False

    def __init__(
        self,
        bundle: Bundle,
        store: EmbeddingStore,
        whole: Network,
        split: Network | None = None,
        warmup: Sequence[Features] = (),
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.name: str = bundle.manifest.name
        self.version: str = bundle.manifest.version
        self.schema: Schema = bundle.manifest.model_schema
        self.inputs: Schema = self.schema
        self.fields = ""
        self._reads: Reading | None = None
        self.calibration: Calibration = bundle.manifest.calibration
        self.store = store
        self.whole, self.split = whole, split
        self.bytes: int = store.bytes + network_bytes(bundle.manifest)
        self._warmup = tuple(warmup)
        self._workspace = Workspace(linear=bundle.manifest.linear)

    @classmethod
    def load(
        cls,
        repository: Repository,
        name: str,
        version: str = "",
        *,
        segments: Path,
        hierarchy: Hierarchy | None = None,
        network_threads: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Model:
        """Open a version, verify all its files, and map its rows.

        A machine verifies a version once while its files are unchanged (`pipeline.bundle.verified`). The versions it builds
        on are verified when a segment is built from them: a segment has its own checksums.

        Args:
            repository: of the bundles.
            name, version: empty version: the newest that may serve.
            segments: directory of this machine's segments, shared by its processes.
            hierarchy: the process's tiers; None: local segments only.
            network_threads: of one run of a network.
            device: of the networks.

        Raises:
            NotFound: no such name or version.
            BundleError: it is damaged, was refused by the gate, or builds on a version that is gone.
        """
        return cls.opened(
            repository,
            servable(repository, name, version, segments),
            segments=segments,
            hierarchy=hierarchy,
            network_threads=network_threads,
            device=device,
        )

    @classmethod
    def opened(
        cls,
        repository: Repository,
        bundle: Bundle,
        *,
        segments: Path,
        hierarchy: Hierarchy | None = None,
        network_threads: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Model:
        """`load` of a version that `servable` has given."""
        manifest = bundle.manifest
        try:
            chain = repository.chain(bundle)
        except NotFound as error:
            raise BundleError(f"{bundle.path} builds on a version that is gone: {error}", "base") from None
        store = EmbeddingStore.open(chain, segments, hierarchy)
        schema = manifest.model_schema

        def network(file: str, layout: Layout) -> Network:
            path = bundle.path / file
            return Network(path, layout, linear=manifest.linear, threads=network_threads, device=device)

        return cls(
            bundle,
            store,
            network(DENSE, Layout.full(schema)),
            network(CONTEXT, Layout.split(schema)) if CONTEXT in manifest.files else None,
            read_warmup(bundle.path / WARMUP, schema) if WARMUP in manifest.files else (),
        )

    @property
    def available(self) -> bool:
        """False while its network is known not to answer; a local one always is."""
        return True

    def file_of(self, inputs: DenseInputs) -> str:
        """File of the bundle that describes the network for these inputs."""
        return CONTEXT if inputs.layout.is_split else DENSE

    def tiers(self) -> list[Mapping[str, float | str]]:
        """Figures of its embedding tiers."""
        return list(self.store.describe())

    def reading(self, inputs: Schema) -> Model:
        """This model for requests with the fields of `inputs`: it reads its own and takes others of its own as missing.
        Rows, networks and buffers are shared.

        Raises:
            InvalidInput: a field is of one kind there and of another one here.
        """
        other = copy.copy(self)
        other.inputs = inputs
        other._reads = Reading.of(inputs.columns, self.schema)
        other.fields = "" if other._reads is None else inputs.columns
        return other

    def embed(self, features: Features) -> DenseInputs:
        """Inputs of the network for a request, in this thread's buffers: valid until its next call."""
        features = self._own(features)
        (network,) = self._networks([features])
        inputs = self._workspace.take(network.layout, features.n, 1)
        self._fill(features, inputs)
        return inputs

    def embed_batch(self, requests: Sequence[Features]) -> list[DenseInputs | Exception]:
        """Inputs of several requests, as windows of the arrays that one run of a network takes; for a request that fails,
        its exception. In this thread's buffers, as `embed`."""
        if self._reads is not None:
            requests = [self._own(features) for features in requests]
        networks = self._networks(requests)
        rooms: dict[Network, DenseInputs] = {}
        for network in set(networks):
            mine = [features.n for features, other in zip(requests, networks, strict=True) if other is network]
            rooms[network] = self._workspace.take(network.layout, sum(mine), len(mine))
        places = dict.fromkeys(rooms, (0, 0))
        found: list[DenseInputs | Exception] = []
        for features, network in zip(requests, networks, strict=True):
            row, request = places[network]
            places[network] = row + features.n, request + 1
            window = rooms[network].window(row, row + features.n, request)
            try:
                self._fill(features, window)
            except Exception as error:  # of this request alone
                found.append(error)
            else:
                found.append(window)
        return found

    def infer(self, inputs: DenseInputs, wait: Waiting | None = None) -> F32:
        """Calibrated probabilities float32 `[n]` of embedded rows. `wait`: who waits; for a model elsewhere.

        Raises:
            NotFinite: the network's logit of a row is NaN or infinite.
        """
        (scores,) = self.infer_batch([inputs])
        if isinstance(scores, Exception):
            raise scores
        return scores

    def infer_batch(
        self, windows: Sequence[DenseInputs], waits: Sequence[Waiting] | None = None
    ) -> list[F32 | Exception]:
        """`infer` of each window, its error for one that has none; windows of the same arrays share a run."""
        runs = {id(window.whole): window.whole for window in windows}
        logits = {key: self._logits(whole) for key, whole in runs.items()}
        scores = {
            key: probabilities(found, self.calibration.alpha, self.calibration.beta) for key, found in logits.items()
        }
        # One look at each run: a batch in which all is well pays nothing per request.
        ill = {key for key, found in logits.items() if not np.isfinite(found).all()}
        answers: list[F32 | Exception] = []
        for window in windows:
            key, rows = id(window.whole), slice(window.start, window.start + window.n)
            fault = self._fault(window, logits[key][rows]) if key in ill else None
            answers.append(scores[key][rows] if fault is None else fault)
        return answers

    def score(self, features: Features) -> F32:
        """Calibrated probabilities float32 `[n]` of the candidates of a request that has passed `Features.check`.

        Raises:
            NotFinite: as `infer`.
        """
        if features.n == 0:
            return np.zeros(0, np.float32)
        return self.infer(self.embed(features))

    def warm(self, requests: Iterable[Features] = (), seconds: float = math.inf) -> None:
        """Run requests through every network, so that the first real request is not slower.

        Args:
            requests: for example stored ones; those that do not fit the schema are skipped. If there are none: those of
                the bundle's warmup.arrow, else synthetic ones.
            seconds: that all of it may take.

        Raises:
            BundleError: it took longer.
        """
        with RunStop(min(seconds, threading.TIMEOUT_MAX)) as stop:
            try:
                for features in (
                    [f for f in requests if self._fits(f)] or self._warmup or synthetic_requests(self.schema)
                ):
                    self._logits(self.embed(features), stop)
                    if self.split is not None:
                        self._logits(self.embed(Features.from_rows(features.rows(self.schema))), stop)
            except Exception as error:
                if stop.passed:
                    raise BundleError(f"warming it with requests did not end within {seconds:g} s") from error
                raise

    def _logits(self, inputs: DenseInputs, stop: RunStop | None = None) -> F32:
        if inputs.n == 0:
            return np.zeros(0, np.float32)
        network = self.split if self.split is not None and inputs.layout.is_split else self.whole
        return network.run(inputs, stop)

    def _fault(self, window: DenseInputs, logits: F32) -> NotFinite | None:
        """The error of a request with a logit that is not finite; None where all `[n]` are."""
        ill = np.flatnonzero(~np.isfinite(logits))
        if not len(ill):
            return None
        row = int(ill[0])
        missing = [self.schema.numbers[column].name for column in window.missing_numbers(row)]
        where = f", where {', '.join(map(repr, missing))} is missing" if missing else ""
        return NotFinite(
            f"version {self.version} of model {self.name!r} has no finite score for {len(ill)} of {window.n} candidates; "
            f"the first is candidate {row}{where}"
        )

    def _own(self, features: Features) -> Features:
        """What the model reads of a request's features."""
        return features if self._reads is None else self._reads(features)

    def _fits(self, features: Features) -> bool:
        try:
            features.check(self.schema)
            features.refuse_vast(features.n)
        except InvalidInput:
            return False
        return True

    def _networks(self, requests: Sequence[Features]) -> list[Network]:
        """The network of each request; at most two runs for all of them."""
        if self.split is None:
            return [self.whole] * len(requests)
        shared = [features.shares_context(self.schema) for features in requests]
        rows = sum(features.n for features, once in zip(requests, shared, strict=True) if once)
        network = self.split if rows > SPLIT_ROWS * sum(shared) else self.whole
        return [network if once else self.whole for once in shared]

    def _fill(self, features: Features, inputs: DenseInputs) -> None:
        inputs.degraded = self.store.lookup(features, inputs)
        numbers = self.schema.numbers
        for part in features.numbers:
            if len(part.columns):
                inputs.put_numbers(part, numbers[part.columns[0]].role)


def servable(repository: Repository, name: str, version: str, segments: Path) -> Bundle:
    """A version with all its files verified; `version` empty: the newest that may serve.

    Raises:
        NotFound: no such name or version.
        BundleError: it is damaged, or was refused by the gate.
    """
    bundle = repository.open(name, version, verify=True, notes=segments / name / NOTES)
    manifest = bundle.manifest
    if not manifest.servable:
        reasons = "; ".join(manifest.gate.reasons) if manifest.gate else ""
        raise BundleError(f"{bundle.path}: the gate refused version {manifest.version}: {reasons}", "gate")
    return bundle
