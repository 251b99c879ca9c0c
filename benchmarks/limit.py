"""Limit of serving: the same network in this process on all cores, fed from memory, without a server around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.models import FIELDS, WIDTH, Vocabulary, flat_tables
from benchmarks.onnx_session import session
from pipeline.arrays import I64
from pipeline.bundle.bundle import DENSE, Bundle

__all__ = ["Limit"]

Call = Callable[[I64], object]


class Limit:
    """Throughput in this process, for each way to use the cores; the best of them is the limit.

    Ways: a session of one thread per core, each driven by a thread of its own, with the tables inside the graph or in
    front of it (`torch.index_select`); and one session that spreads over all cores.

    Args:
        graph: the whole model as `models.gathered_graph` writes it.
        bundle: the same model.
        cores: number to use.
    """

    def __init__(self, graph: Path, bundle: Bundle, vocabulary: Vocabulary, cores: int) -> None:
        torch.set_num_threads(1)
        rows, weights = (torch.from_numpy(array) for array in flat_tables(bundle, vocabulary))
        dense = bundle.file(DENSE)
        self.ways: dict[str, list[Call]] = {
            "graph": [_whole(graph, 1) for _ in range(cores)],
            "index_select": [_selected(dense, rows, weights) for _ in range(cores)],
        }
        if cores > 1:
            self.ways["one session"] = [_whole(graph, cores)]
        for call in (call for calls in self.ways.values() for call in calls):
            call(np.zeros((1, FIELDS), np.int64))  # the first one makes room

    def measure(self, way: str, index: I64, seconds: float) -> tuple[float, float]:
        """Rows per second of one way, and its CPU seconds per request.

        Args:
            index: requests to go round, int64 `[requests, n, fields]`.
        """
        requests = [np.ascontiguousarray(matrix) for matrix in index]
        before = time.process_time()
        done, taken = _drive(self.ways[way], requests, seconds)
        return done * len(requests[0]) / taken, (time.process_time() - before) / done


def _whole(graph: Path, threads: int) -> Call:
    made = session(graph, threads)
    return lambda index: made.run(["score"], {"index": index})


def _selected(dense: Path, rows: torch.Tensor, weights: torch.Tensor) -> Call:
    made = session(dense, 1)

    def call(index: I64) -> object:
        flat, n = torch.from_numpy(index.reshape(-1)), len(index)
        inputs = {"embeddings": torch.index_select(rows, 0, flat).numpy().reshape(n, FIELDS * WIDTH)}
        if len(weights):
            inputs["linear"] = torch.index_select(weights, 0, flat).numpy().reshape(n, FIELDS)
        return made.run(["logit"], inputs)

    return call


def _drive(calls: list[Call], requests: list[I64], seconds: float) -> tuple[int, float]:
    """Requests done by all calls at once, each in its own thread, and the seconds that they took."""
    done = [0] * len(calls)
    start = threading.Barrier(len(calls) + 1)

    def drive(number: int) -> None:
        call, turn = calls[number], number * 17
        start.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            call(requests[turn % len(requests)])
            turn += 1
            done[number] += 1

    threads = [threading.Thread(target=drive, args=(i,), name=f"limit-{i}") for i in range(len(calls))]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return sum(done), time.monotonic() - began
