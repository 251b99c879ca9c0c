"""What a server answers is what the trainer computes: base and delta, every architecture, hard rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.features import Bag, Features, Rows
from pipeline.model.model import Model
from pipeline.schema import FieldSpec, Schema
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context", kind="id"),
        FieldSpec(name="age", role="context", kind="number", transform="log1p"),
        FieldSpec(name="tags", role="context", kind="bag", separator=","),
        FieldSpec(name="item", role="candidate", kind="id"),
        FieldSpec(name="price", role="candidate", kind="number"),
        FieldSpec(name="genres", role="candidate", kind="bag", separator="|"),
    )
)


def clicks(seed: int, n: int, ids: int) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(size: int | tuple[int, int]) -> np.ndarray:
        # Spread over all 64 bits, as hashes are.
        return (rng.integers(1, ids, size).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)

    bags = []
    for b in range(2):
        bounds = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n))]).astype(np.int32)
        bags.append(Bag(b, bounds, draw(int(bounds[-1]))))
    numbers = rng.normal(3, 40, size=(n, 2)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    return Rows(draw((n, 2)), numbers, tuple(bags)), (rng.random(n) < 0.3).astype(np.float32)


@pytest.mark.parametrize("arch", sorted(ZOO))
def test_served_scores_are_the_trainers(arch: str, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "bundles")
    model = ClickModel.create(SCHEMA, arch, 8, seed=3)
    seen, labels = clicks(1, 2000, 300)
    model.fit_numbers(seen)
    for _ in range(3):
        model.step(seen, labels)
    model.tables.default_to_mean()
    base = save(model, repository, "m")
    # Ids of which the trained model knows one half.
    asked, _ = clicks(7, 300, 600)

    def served(bundle: Bundle) -> None:
        ready = Model.load(repository, "m", bundle.manifest.version, segments=tmp_path / "segments", device="cpu")
        np.testing.assert_allclose(ready.score(Features.from_rows(asked)), model.scores(asked), atol=1e-5)
        once = Features.from_context(SCHEMA, asked)
        scores = ready.score(once)
        np.testing.assert_allclose(scores, model.scores(once.rows(SCHEMA)), atol=1e-5)
        # Context once per request changes nothing but the time it takes.
        np.testing.assert_allclose(scores, ready.score(Features.from_rows(once.rows(SCHEMA))), rtol=0, atol=1e-6)
        assert (ready.split is not None) == model.network.body.can_split()

    served(base)
    chain = [base.manifest.version]
    for seed in (2, 3):
        model.step(*clicks(seed, 200, 400))
        delta = save(model, repository, "m", chain=chain)
        chain.append(delta.manifest.version)
        served(delta)
