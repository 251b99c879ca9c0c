"""Memory of rows in Redis: the figures of docs/redis.md, checked on a real server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import random_table, write_bundle
from redis_process import RedisProcess

from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.schema import FieldSpec, Schema

SCHEMA = Schema(fields=(FieldSpec(name="item", role="candidate", kind="id", width=16),))
IDS = 40_000


@pytest.mark.parametrize(("stored", "bound"), [("float32", 175), ("float16", 135), ("int8", 120)])
def test_bytes_per_id_are_as_documented(tmp_path: Path, stored: RowFormat, bound: int) -> None:
    repository = Repository(tmp_path / "bundles")
    rng = np.random.default_rng(1)
    table = random_table(rng, IDS, 16, linear=True)
    bundle = write_bundle(repository, {"item": table}, schema=SCHEMA, width=16)
    with RedisProcess(tmp_path / "redis") as server, server.client() as client:
        before = int(client.info("memory")["used_memory"])
        made = RedisUpdater(server.address, repository, format=stored, token="a")
        made.bring([bundle])
        made.close()
        per_id = (int(client.info("memory")["used_memory"]) - before) / len(table.ids)
    assert 14 + 4 + np.dtype(stored).itemsize * 16 < per_id < bound
