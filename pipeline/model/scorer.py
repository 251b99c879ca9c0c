"""Scorer: a bundle that scores rows as a server does, without a server.

It verifies and probes the bundle as a lane does, and maps its rows from a temporary folder. What a frame may be is in
`pipeline.model.frame`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import DENSE, Bundle, Calibration
from pipeline.bundle.versions import Repository
from pipeline.calibration import probabilities
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.errors import BundleError, InvalidInput
from pipeline.features import Features, Rows
from pipeline.inputs import Layout
from pipeline.model.frame import rows_of
from pipeline.model.model import Model
from pipeline.model.network import Network
from pipeline.model.probe import ProbeLimits, probe_bundle
from pipeline.schema import Schema

__all__ = ["Scorer"]

SCORING_ROWS = 8192
"""Rows of one run of the network; memory does not grow with the frame beyond its own rows."""


class Scorer:
    """A bundle, loaded to score rows. One thread; use it as a context manager.

    Example:
        with Scorer("home/bundles/ranker/2") as ranker:
            frame["score"] = ranker.score(frame)     # pandas, polars, pyarrow or a mapping of lists

    Args:
        source: a bundle or its directory; a delta where its repository has the versions that it builds on.
        limits: of the probe; None: the usual ones.
        probed: it has passed its probe already, which is left out.

    Attributes:
        bundle, schema, calibration: as published.

    Raises:
        BundleError: it is damaged, may not serve, or its network does not pass the probe.
        NotFound: a version that it builds on is gone.
        InvalidInput: its model is on another server.
    """

    def __init__(self, source: Bundle | Path | str, *, limits: ProbeLimits | None = None, probed: bool = False) -> None:
        bundle = source if isinstance(source, Bundle) else Bundle.open(Path(source))
        manifest = bundle.manifest
        if not manifest.servable:
            raise BundleError(f"{bundle.path}: the gate refused it: it has no network", "gate")
        if DENSE not in manifest.files:
            raise InvalidInput(f"{bundle.path}: its model is on another server, so it cannot be scored here", "bundle")
        if not probed and (reason := probe_bundle(bundle, limits or ProbeLimits()).reason):
            raise BundleError(f"{bundle.path}: {reason}", DENSE)
        chain = [bundle]
        if manifest.base is not None:
            chain = Repository(bundle.path.absolute().parent.parent).chain(bundle, verify=True)
        self.bundle = bundle
        self.schema: Schema = manifest.model_schema
        self.calibration: Calibration = manifest.calibration
        self._segments = TemporaryDirectory(prefix="baton-scoring-")
        store = EmbeddingStore.open(chain, Path(self._segments.name))
        network = Network(bundle.file(DENSE), Layout.full(self.schema), linear=manifest.linear, device="cpu")
        self._model = Model(bundle, store, network)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files."""
        self._segments.cleanup()

    def score(self, frame: Any) -> F32:
        """Calibrated probabilities float32 `[n]` of the rows of a frame (`pipeline.model.frame.rows_of`), in its order; NaN
        where the network has no finite logit.

        Raises:
            InvalidInput: a column is missing or holds a value that cannot be used.
        """
        return self.scores(self.logits(rows_of(frame, self.schema)))

    def logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]` of rows with the bundle's fields, before calibration."""
        out = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), SCORING_ROWS):
            part = rows.slice(start, min(start + SCORING_ROWS, len(rows)))
            out[start : start + len(part)] = self._model.whole.run(self._model.embed(Features.from_rows(part)))
        return out

    def scores(self, logits: F32) -> F32:
        """Calibrated probabilities float32 `[n]` of logits."""
        found: F32 = probabilities(logits, self.calibration.alpha, self.calibration.beta)
        found[~np.isfinite(logits)] = np.nan
        return found
