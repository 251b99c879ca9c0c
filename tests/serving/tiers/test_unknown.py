"""Unknown ids of the last minutes, and when there are more than training knew of."""

from __future__ import annotations

from collections import Counter

from clocks import HandClock

from pipeline.embedding.hierarchy.tally import Tallied
from serving.runtime.status import EmbeddingStatus, LaneStatus, UnknownIds
from serving.tiers.unknown import WINDOW_S, RecentLookups, unusual


class Tally:
    """A tally whose counts a test sets."""

    def __init__(self) -> None:
        self.counts: Counter[Tallied] = Counter()

    def add(self, *, hit: int = 0, late: int = 0, default: int = 0) -> None:
        for tier, case, count in (("segment", "hit", hit), ("redis", "late", late), ("default", "hit", default)):
            self.counts[Tallied("m", "item", tier, case)] += count

    def read(self) -> Counter[Tallied]:
        return Counter(self.counts)


def test_only_ids_of_the_last_minutes_count_and_late_ones_are_not_unknown() -> None:
    clock, tally = HandClock(), Tally()
    lately = RecentLookups(tally, clock)  # type: ignore[arg-type]
    tally.add(hit=90, late=4, default=10)
    assert lately.read() == ({("m", "item"): 100}, {("m", "item"): 6})
    clock.now += WINDOW_S / 2
    lately.read()
    tally.add(hit=5, default=5)
    clock.now += WINDOW_S / 2 + 1
    assert lately.read() == ({("m", "item"): 110}, {("m", "item"): 11})
    clock.now += WINDOW_S / 2
    assert lately.read() == ({("m", "item"): 10}, {("m", "item"): 5})


def lane(ids: int, unknown: int, at_training: float | None) -> LaneStatus:
    counts = UnknownIds(ids=ids, unknown=unknown, at_training=at_training)
    return LaneStatus(time_ms=0, embedding=EmbeddingStatus(unknown={"ranker": {"stable": {"item": counts}}}))


def test_a_fraction_far_above_that_of_training_is_said() -> None:
    (line,) = unusual({"lane-0": lane(1000, 400, 0.01), "lane-1": lane(1000, 600, 0.01)})
    assert line.startswith("ranker/stable: 50% of the last 2,000 ids of item are unknown, at training it was 1.0%")
    assert not list(unusual({"lane-0": lane(1000, 60, 0.02)}))
    assert not list(unusual({"lane-0": lane(999, 999, 0.02)}))
    assert not list(unusual({"lane-0": lane(5000, 5000, None)}))
