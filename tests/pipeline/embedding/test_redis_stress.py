"""Lookups from several threads and processes while writers move a generation back and forth: every row is one that some
version has for that id, whole."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis_model import WIDTHS, Versions, look, open_tier, source, updater
from redis_process import RedisProcess

from pipeline.errors import Conflict
from pipeline.redis.address import RedisAddress

pytestmark = pytest.mark.long

SECONDS = 30.0


def read(url: str, folder: Path, results: Any) -> None:
    """A reader process of two threads; tells rows read and what was wrong."""
    versions = Versions(folder)
    truths = [versions.truth(version) for version in versions.repository.versions("ranker")]
    ids = versions.every_id()
    legal = {name: [{t[name].get(key) for t in truths} for key in wanted.tolist()] for name, wanted in ids.items()}
    made = source(RedisAddress(url), versions)
    wrong: list[str] = []
    rows = [0, 0]
    until = time.monotonic() + SECONDS

    def run(number: int) -> None:
        tier = open_tier(made, versions, versions.repository.versions("ranker")[number])
        while time.monotonic() < until and not wrong:
            looked = look(tier, ids, SECONDS)
            if looked.fault:
                wrong.append(f"fault {looked.fault}")
            for name in WIDTHS:
                for i in np.flatnonzero(looked.found[name]):
                    rows[number] += 1
                    if (tuple(looked.rows[name][i].tolist()), float(looked.weights[name][i])) not in legal[name][i]:
                        wrong.append(f"{name} {ids[name][i]}: {looked.rows[name][i]}")

    threads = [threading.Thread(target=run, args=(number,), name=f"reader-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    results.put((sum(rows), wrong[:5]))


def test_rows_are_old_or_new_and_never_mixed(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    for deltas in ((), ("2",), ("2",)):
        versions.delta(*deltas)
    with RedisProcess(tmp_path / "redis") as server:
        made = updater(server.address, versions)
        made.bring([versions.base])
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        readers = [context.Process(target=read, args=(server.address.url, tmp_path, results)) for _ in range(2)]
        for reader in readers:
            reader.start()
        changes = [0, 0]
        stop = threading.Event()

        def write(number: int) -> None:
            mine = updater(server.address, versions, token=f"writer-{number}")
            dice = np.random.default_rng(number)
            while not stop.is_set():
                chain = versions.repository.chain(versions.repository.open("ranker", str(dice.integers(1, 5))))
                try:
                    changes[number] += mine.bring(chain).rows
                except Conflict:
                    time.sleep(0.002)
            mine.close()

        writers = [threading.Thread(target=write, args=(number,), name=f"writer-{number}") for number in range(2)]
        for writer in writers:
            writer.start()
        results = [results.get(timeout=SECONDS + 60) for _ in readers]
        stop.set()
        for thread in writers:
            thread.join()
        for reader in readers:
            reader.join(20)
        made.close()
    assert [wrong for _, wrong in results] == [[], []]
    assert min(rows for rows, _ in results) > 10_000
    assert min(changes) > 100
