"""Site of a serving bench: models written, `baton serve` running, and load for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.generator import Spec, write_bodies
from benchmarks.load.run import Outcome, run
from benchmarks.models import Candidates, InferResponse, Vocabulary, write_model
from benchmarks.server import Arms, BatonServer
from pipeline.arrays import F32
from pipeline.bundle.bundle import Bundle
from pipeline.errors import BatonError
from protos.baton.ranking.v1 import ranking_pb2 as ranking
from protos.inference import SERVICE
from transfer.click_model.model import ClickModel

__all__ = ["ENDPOINT", "INFER", "MIXED", "WAYS", "Site", "Workload", "must_be_good", "opened", "spec_of", "written"]

INFER = f"/{SERVICE}/ModelInfer"
RANKING = "/baton.ranking.v1.RankingService"
WAYS = {"oip": INFER, "rank": f"{RANKING}/Rank", "rankstream": f"{RANKING}/RankStream"}
"""Methods by which Baton is called: Open Inference with raw tensors, `Rank`, `RankStream`."""
MIXED = "mixed"
"""Open Inference as well, every row with a context of its own."""
REQUESTS = 64
DEADLINE_S = 5.0
WARMUP_S = 0.3
CONNECTIONS = 16
"""Connections of an open loop: enough for the kernel to spread them over the processes on one port."""
CAPACITY_INFLIGHT = 8
CAPACITY_S = 5.0
ENDPOINT = "ranker"
SAME = 2e-5
"""Largest difference between a score and that of the whole network in this process."""


@dataclass
class Site:
    """Models and the server that answers with them. `folder` holds everything; it is removed after the bench."""

    folder: Path
    vocabulary: Vocabulary
    bundles: dict[str, Bundle]
    models: dict[str, ClickModel]
    server: BatonServer
    _drawn: dict[tuple[int, bool], Candidates] = field(default_factory=dict)

    @contextmanager
    def serving(self, settings: Mapping[str, Any] | None = None) -> Iterator[BatonServer]:
        """Run `baton serve` with these sections of baton.yaml over the defaults."""
        self.server = BatonServer(self.server.home, self.server.endpoints, settings)
        with self.server:
            yield self.server

    def candidates(self, rows: int, *, shared: bool = True) -> Candidates:
        """Requests of so many candidates, with or without a shared context; the same at every call."""
        if (rows, shared) not in self._drawn:
            self._drawn[rows, shared] = Candidates.draw(self.vocabulary, rows, REQUESTS, shared=shared)
        return self._drawn[rows, shared]

    def spec(self, way: str, endpoint: str, rows: int, **load: Any) -> Spec:
        """Load on Baton, `way` being one of `WAYS` or `MIXED`; `load` as in `Spec`."""
        path = self.folder / f"{way}-{endpoint}-{rows}"
        if not path.exists():
            drawn = self.candidates(rows, shared=way != MIXED)
            infer = way in ("oip", MIXED)
            write_bodies(path, drawn.infer_bodies(endpoint, drawn.hashed) if infer else drawn.rank_bodies(endpoint))
        return spec_of(self.server.port, WAYS.get(way, INFER), path, several=way == "rankstream", **load)

    def capacity(self, endpoint: str, rows: int, seconds: float) -> float:
        """Requests per second of a closed loop of `Rank` with 8 in flight, measured for `seconds`, at most 5."""
        seconds = min(CAPACITY_S, seconds)
        return run(self.spec("rank", endpoint, rows, inflight=CAPACITY_INFLIGHT, seconds=seconds)).throughput

    def check(self, way: str, endpoint: str, expected: F32) -> None:
        """Check the scores of Baton before it is measured.

        Args:
            expected: scores of the first of `candidates(len(expected))`, float32 `[n]`.

        Raises:
            BatonError: they differ from the expected ones.
        """
        n, drawn = len(expected), self.candidates(len(expected))
        path = self.folder / f"check-{way}-{endpoint}-{n}"
        first = Candidates(drawn.vocabulary, drawn.picks[:1])
        write_bodies(path, first.infer_bodies(endpoint, first.hashed) if way == "oip" else first.rank_bodies(endpoint))
        several = way == "rankstream"
        answers = run(spec_of(self.server.port, WAYS[way], path, several=several, seconds=0.1, warmup=0.0, keep=True))
        must_be_good(answers, way)
        scores = scores_of(way, answers.answers[0])
        if not np.allclose(scores, expected, atol=SAME):
            raise BatonError(
                f"{way}: the server's scores differ by {np.abs(scores - expected).max():.2g} from the network's"
            )


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of `Rank` to one endpoint, `ranker`.

    Args:
        rows: candidates per request.
        table_rows: ids in all tables of the model.
        model: architecture.
    """

    rows: int = 100
    table_rows: int = 400_000
    model: str = "deepfm"

    def opened(self) -> AbstractContextManager[Site]:
        """Site with a model for these requests, served until the block ends."""
        return opened([self.model], self.table_rows, {ENDPOINT: self.model})

    def spec(self, site: Site, **load: Any) -> Spec:
        """Load on the site; `load` as in `Spec`."""
        return site.spec("rank", ENDPOINT, self.rows, **load)

    def capacity(self, site: Site, seconds: float) -> float:
        """Requests per second of the site; see `Site.capacity`."""
        return site.capacity(ENDPOINT, self.rows, seconds)


@contextmanager
def written(architectures: Sequence[str], table_rows: int, endpoints: Mapping[str, Arms]) -> Iterator[Site]:
    """Site with random models of these architectures, published in its own home; see `Site.serving`."""
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as name:
        vocabulary = Vocabulary.make(table_rows)
        server = BatonServer(Path(name) / "home", endpoints)
        made = {arch: write_model(server.repository, vocabulary, arch, seed=i) for i, arch in enumerate(architectures)}
        bundles = {arch: bundle for arch, (bundle, _) in made.items()}
        models = {arch: model for arch, (_, model) in made.items()}
        yield Site(Path(name), vocabulary, bundles, models, server)


@contextmanager
def opened(
    architectures: Sequence[str],
    table_rows: int,
    endpoints: Mapping[str, Arms],
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Site]:
    """Site as of `written`, served until the block ends."""
    with written(architectures, table_rows, endpoints) as site, site.serving(settings):
        yield site


def spec_of(port: int, path: str, bodies: Path, **load: Any) -> Spec:
    """Load on any server, with a connection per call in flight, so that every process behind the port gets some."""
    connections = CONNECTIONS if load.get("phases") else load.get("inflight", 1)
    settings = {"connections": connections, "warmup": WARMUP_S, "deadline": DEADLINE_S, **load}
    return Spec(port=port, path=path, bodies=str(bodies), **settings)


def must_be_good(outcome: Outcome, what: str) -> None:
    """Raise BatonError if a call failed."""
    if outcome.failed or not len(outcome.status):
        raise BatonError(f"{what}: {outcome.failed} of {len(outcome.status)} calls failed, by code: {outcome.errors}")


def scores_of(way: str, answer: bytes) -> F32:
    """Scores in a serialised answer, float32 `[n]`."""
    if way == "oip":
        return np.frombuffer(InferResponse.FromString(answer).raw_output_contents[0], "<f4")
    return np.array(ranking.RankResponse.FromString(answer).scores, np.float32)
