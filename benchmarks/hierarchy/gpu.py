"""Device tier on a GPU: time to find ids and gather their rows, against `torch.index_select` of the same rows there.

Both run as CUDA graphs, as a server on a card would run them, on ids that lie on the card already.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.hierarchy.tables import Distribution, IdStream
from benchmarks.report import Progress, Report, interleaved, median
from pipeline.embedding.device.torch_sets import Sets, find_rows, keep_rows

__all__ = ["measure_card"]

ROUNDS = 200
FILL = 1 << 16
ROOM = 2.0
"""Places per row of the table."""


def measure_card(
    report: Report, count: int, width: int, distribution: Distribution, sizes: list[int], progress: Progress
) -> None:
    """Add figures of the first card for requests of the given numbers of ids, on a table of `count` rows held whole."""
    card = torch.device("cuda")
    progress(f"embedding: {torch.cuda.get_device_name(card)}, {count:,} x {width}, {distribution}")
    keys = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count)).to(card)
    rows = torch.rand(count, width, device=card)
    sets, tick = (
        Sets.empty(int(count * ROOM) // 8, width, device=card),
        torch.full((1,), -1, dtype=torch.int32).to(card),
    )
    for start in range(0, count, FILL):
        part = slice(start, start + FILL)
        every = torch.ones_like(keys[part], dtype=torch.bool)
        keep_rows(sets, keys[part], rows[part], sets.weights, every, tick)
    stream = IdStream.over(count, distribution, 5)
    for m in sizes:
        places = torch.from_numpy(stream.draw(ROUNDS * m).reshape(ROUNDS, m)).to(card)
        found, held = _times(sets, keys, rows, places, tick)
        case = f"on-card/{distribution}/rows={count}/width={width}/ids={m}"
        report.add(case, "time", median(found["find"]), "us", limit=median(found["select"]))
        report.add(case, "hit_rate_device", held, "share")
    report.add(f"on-card/rows={count}/width={width}", "bytes_per_row", sets.bytes / (8 * sets.sets), "bytes")


def _times(
    sets: Sets, keys: Tensor, rows: Tensor, places: Tensor, tick: Tensor
) -> tuple[dict[str, list[float]], float]:
    """Microseconds of each of `places` int64 `[rounds, m]`, and the fraction found in the first."""
    index, asked = places[0].clone(), keys[places[0]]
    every, out = torch.ones_like(index, dtype=torch.bool), torch.empty_like(rows[places[0]])
    held = float(find_rows(sets, asked, every, tick).held.float().mean())
    graphs = {
        "select": _graph(lambda: torch.index_select(rows, 0, index, out=out)),
        "find": _graph(lambda: find_rows(sets, asked, every, tick)),
    }

    def timed(graph: torch.cuda.CUDAGraph) -> Callable[[int], float]:
        def turn(number: int) -> float:
            index.copy_(places[number])
            asked.copy_(keys[index])
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return 1e3 * float(begin.elapsed_time(end))

        return turn

    return interleaved({name: timed(graph) for name, graph in graphs.items()}, len(places)), held


def _graph(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
