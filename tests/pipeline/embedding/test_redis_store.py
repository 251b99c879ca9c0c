"""Store over Redis and other tiers: rows, reasons and counts when Redis fails."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis_model import Versions, eventually, source, updater
from redis_process import RedisProcess

from pipeline.embedding.hierarchy.hierarchy import SEGMENT, Hierarchy
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.embedding.redis.tier import RedisSource
from pipeline.features import Features, IdPart
from pipeline.inputs import DenseInputs, Layout

BUDGET = 0.05


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    made = Versions(tmp_path_factory.mktemp("versions"))
    made.delta()
    return made


@pytest.fixture
def server(tmp_path: Path, versions: Versions) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        bring(process, versions)
        yield process


@pytest.fixture
def redis(server: RedisProcess, versions: Versions) -> Iterator[RedisSource]:
    made = source(server.address, versions, longest_pause=0.2)
    yield made
    made.close()


def bring(server: RedisProcess, versions: Versions) -> None:
    made = updater(server.address, versions)
    made.bring(versions.repository.chain(versions.repository.open("ranker", "2")))
    made.close()


class Asked:
    """A store of version 2 and one request of all its ids and some of nobody's."""

    def __init__(self, versions: Versions, hierarchy: Hierarchy, segments: Path) -> None:
        chain = versions.repository.chain(versions.repository.open("ranker", "2"))
        self.hierarchy = hierarchy
        self.store = EmbeddingStore.open(chain, segments, hierarchy)
        schema = chain[-1].manifest.model_schema
        ids = versions.every_id()
        n = min(len(ids[f.name]) for f in schema.ids)
        values = np.stack([ids[f.name][-n:] for f in schema.ids], 1)
        self.features = Features(n, (IdPart(np.arange(len(schema.ids), dtype=np.int32), np.ascontiguousarray(values)),))
        self.out = DenseInputs.zeros(Layout.full(schema), n, linear=True)
        (self.block,) = self.out.blocks
        truth = versions.truth("2")
        rows = [[truth[f.name].get(int(i)) for f, i in zip(schema.ids, line, strict=True)] for line in values]
        default = [((0.25,) * (f.width or 0), -0.5) for f in schema.ids]
        self.right = [np.concatenate([(r or d)[0] for r, d in zip(line, default, strict=True)]) for line in rows]
        self.default = np.concatenate([d[0] for d in default])

    def __call__(self) -> list[str]:
        self.block.embeddings[:] = np.nan
        return self.store.lookup(self.features, self.out)

    def exact(self) -> bool:
        return bool((self.block.embeddings == np.array(self.right, np.float32)).all())

    def defaults(self) -> bool:
        return bool((self.block.embeddings == np.float32(self.default)).all())

    def count(self, tier: str, case: str) -> int:
        return sum(n for key, n in self.hierarchy.tally.read().items() if (key.tier, key.case) == (tier, case))


def test_redis_alone_serves_a_version_and_default_rows_without_it(
    server: RedisProcess, versions: Versions, redis: RedisSource, tmp_path: Path
) -> None:
    ask = Asked(versions, Hierarchy((redis,), budget=5.0), tmp_path)
    assert ask() == []
    assert ask.exact()
    assert ask.count("redis", "hit") > 0
    with server.client() as client:
        client.flushall()
    assert ask() == ["embedding: redis incomplete"]
    assert ask.defaults()
    assert ask.count("redis", "incomplete") == ask.features.n * 3
    bring(server, versions)
    assert ask() == []
    assert ask.exact()


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_segments_below_answer_for_a_redis_that_is_away(
    server: RedisProcess, versions: Versions, redis: RedisSource, tmp_path: Path, harm: signal.Signals
) -> None:
    ask = Asked(versions, Hierarchy((redis, SEGMENT), budget=BUDGET), tmp_path)
    ask.hierarchy.tally.read()
    eventually(lambda: ask() == [], "redis answers")
    server.signal(harm)
    reasons: list[str] = []

    def passed_by() -> bool:
        degraded = ask()
        reasons.extend(degraded)
        assert ask.exact()
        return degraded == ["embedding: redis open"]

    eventually(passed_by, "the breaker opens")
    assert set(reasons) <= {f"embedding: redis {fault}" for fault in ("late", "error", "open")}
    if harm is signal.SIGSTOP:
        server.signal(signal.SIGCONT)
    else:
        server.kill()
        server.start()
        bring(server, versions)
    eventually(lambda: ask() == [], "redis answers again")
    assert ask.exact()
    assert ask.count("redis", "open") > 0
