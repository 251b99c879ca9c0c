"""Stores by what their disks and servers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.redis.server import RedisServer
from serving.runtime.stores import StoreStatus, disks


def test_folders_of_one_disk_are_one_store(tmp_path: Path) -> None:
    (found,) = disks({"home": tmp_path / "not" / "there", "traffic": tmp_path})
    assert (found.name, found.kind, found.reason) == ("home", "disk", "")
    assert 0 < found.size_bytes == found.used_bytes + found.free_bytes


@pytest.mark.parametrize(
    ("free", "size", "evicts", "full"),
    [(14, 100, False, True), (15, 100, False, False), (0, 100, True, False), (0, 0, False, False)],
)
def test_a_store_is_full_where_little_of_its_room_is_free(free: int, size: int, evicts: bool, full: bool) -> None:
    store = StoreStatus(name="x", kind="redis", where="y", size_bytes=size, free_bytes=free, evicts=evicts)
    assert store.full is full


@pytest.mark.parametrize("value", ["count=7", {"count": 7}])
def test_a_redis_tells_the_writes_that_it_refused(value: object) -> None:
    assert (
        RedisServer.of({"errorstat_OOM": value, "errorstat_MISCONF": "count=2", "errorstat_ERR": "count=9"}).refused
        == 9
    )
