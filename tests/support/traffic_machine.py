"""Machine of the stateful tests: a traffic log compared with a plain dictionary, under any order of predictions, feedback,
joins and restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import takewhile

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from traffic_places import Place
from traffic_samples import CANDIDATE, IDS, WINDOW_MS, sample

from pipeline.traffic.log import (
    ACCEPTED,
    DUPLICATE,
    INVALID,
    Exposure,
    FeedbackEntry,
    FeedbackReply,
    Labelled,
    Outcome,
    TrafficLog,
)

NOBODY = 10**15  # a late limit that nothing reaches


@dataclass
class Row:
    exposed_ms: int | None = None
    position: int = -1
    label: float | None = None
    final: bool = False


@dataclass
class Model:
    """What the log should know of one prediction."""

    prediction_id: str
    time_ms: int
    n: int
    order: int | None = None
    parked: list[tuple[int, FeedbackEntry]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def write(self, order: int) -> None:
        self.order = order
        self.rows = [Row() for _ in range(self.n)]
        for now, entry in self.parked:
            self.apply(entry, now)

    def apply(self, entry: FeedbackEntry, now: int) -> FeedbackReply:
        exposed = [self._expose(e, now) for e in entry.exposed]
        if entry.exposed_all:
            for index, row in enumerate(self.rows):
                if row.exposed_ms is None:
                    row.exposed_ms, row.position = now, index
        return FeedbackReply(tuple(exposed), tuple(self._label(o) for o in entry.outcomes))

    def _row(self, said: Exposure | Outcome) -> Row | None:
        index = said.index if said.index is not None else (said.candidate_id or 0) - CANDIDATE
        return self.rows[index] if 0 <= index < self.n else None

    def _expose(self, exposure: Exposure, now: int) -> str:
        row = self._row(exposure)
        if row is None:
            return INVALID
        if row.exposed_ms is not None:
            return DUPLICATE
        said = exposure.time_ms or now
        row.exposed_ms = max(min(self.time_ms, now), min(said, now))
        row.position = exposure.position
        return ACCEPTED

    def _label(self, outcome: Outcome) -> str:
        row = self._row(outcome)
        if row is None:
            return INVALID
        if row.label == outcome.label and (row.final or not outcome.final):
            return DUPLICATE
        row.label, row.final = outcome.label, row.final or outcome.final
        return ACCEPTED


KEYS = st.one_of(st.integers(0, 5).map(lambda i: (i, None)), st.integers(0, 5).map(lambda i: (None, CANDIDATE + i)))
EXPOSURES = st.builds(
    lambda key, position, ago: (key, position, ago),
    KEYS,
    st.integers(-1, 9),
    st.sampled_from([None, -50, 0, 300, 5000]),
)
OUTCOMES = st.builds(
    lambda key, label, final: Outcome(key[0], label, key[1], 0, final),
    KEYS,
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)


class TrafficMachine(RuleBasedStateMachine):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        place.empty()
        self.log = self.open()
        self.now = self.latest = 1_000_000
        self.predictions: list[Model] = []
        self.written = 0
        self.entries: list[Labelled] = []

    def open(self) -> TrafficLog:
        return self.place.open(late_ms=NOBODY)

    @initialize()
    def begin(self) -> None:
        self.predict(4, True)
        self.predict(3, False)

    @precondition(lambda self: len(self.predictions) < 5)
    @rule(n=st.integers(0, 4), write=st.booleans())
    def predict(self, n: int, write: bool) -> None:
        self.predictions.append(Model(IDS.new(self.now), self.now, n))
        if write:
            self.write(len(self.predictions) - 1)

    @rule(which=st.integers(0, 4))
    def write(self, which: int) -> None:
        p = self.predictions[which % len(self.predictions)]
        self.log.append_predictions([sample(p.prediction_id, p.time_ms, p.n)])
        if p.order is None:
            p.write(self.written)
            self.written += 1

    @rule(
        which=st.integers(0, 4),
        shown=st.lists(EXPOSURES, max_size=3),
        outcomes=st.lists(OUTCOMES, max_size=3),
        exposed_all=st.booleans(),
    )
    def say(
        self,
        which: int,
        shown: list[tuple[tuple[int | None, int | None], int, int | None]],
        outcomes: list[Outcome],
        exposed_all: bool,
    ) -> None:
        p = self.predictions[which % len(self.predictions)]
        exposed = [
            Exposure(key[0], key[1], position, 0 if ago is None else self.now - ago) for key, position, ago in shown
        ]
        entry = FeedbackEntry(p.prediction_id, exposed, outcomes, exposed_all)
        (reply,) = self.log.append_feedback([entry], self.now)
        if p.order is None:
            p.parked.append((self.now, entry))
            assert set(reply.exposed + reply.outcomes) <= {ACCEPTED, DUPLICATE}
        else:
            expected = p.apply(entry, self.now)
            assert (reply.exposed, reply.outcomes) == (expected.exposed, expected.outcomes)
            assert bool(reply.reason) == (INVALID in reply.exposed + reply.outcomes)

    @rule(ms=st.sampled_from([1, 200, WINDOW_MS, -700]))
    def wait(self, ms: int) -> None:
        self.now += ms
        self.latest = max(self.latest, self.now)

    @rule(limit=st.integers(1, 4))
    def join_some(self, limit: int) -> None:
        assert self.log.join(self.now, limit) <= limit
        self.read(self.now)

    @rule(ms=st.sampled_from([0, 1, WINDOW_MS // 2, WINDOW_MS, 2 * WINDOW_MS]))
    def join_all(self, ms: int) -> None:
        self.wait(ms)
        self.log.join(self.now)
        self.read(self.now)
        written = {(e.prediction_id, int(i)) for e in self.entries for i in e.indices}
        for queue in self.queues():
            for p in takewhile(lambda p: p.time_ms + 2 * WINDOW_MS <= self.now, queue):
                for index, row in enumerate(p.rows):
                    if row.exposed_ms is not None and (row.final or row.exposed_ms + WINDOW_MS <= self.now):
                        assert (p.prediction_id, index) in written, "a mature row was held back for over two windows"

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self.open()

    def queues(self) -> list[list[Model]]:
        """Predictions that close in the order in which they were written."""
        return [sorted((p for p in self.predictions if p.order is not None), key=lambda p: p.order or 0)]

    def read(self, now: int) -> None:
        known = {p.prediction_id: p for p in self.predictions}
        for entry in self.log.labelled(self.entries[-1].seq if self.entries else 0):
            self.entries.append(entry)
            assert entry.seq == len(self.entries)
            assert len(entry.indices) or entry.revision == 0, "a revision without rows"
            p = known[entry.prediction_id]
            assert entry.record == sample(p.prediction_id, p.time_ms, p.n)
            for index, previous in zip(entry.indices, entry.previous, strict=True):
                row = p.rows[index]
                assert row.exposed_ms is not None
                if math.isnan(previous):
                    assert row.final or row.exposed_ms + WINDOW_MS <= now, "a row came out before it was mature"

    @invariant()
    def first_revisions_stand_in_prediction_order(self) -> None:
        for queue in self.queues():
            order = {p.prediction_id: place for place, p in enumerate(queue)}
            closed = [e.prediction_id for e in self.entries if e.revision == 0]
            first = [order[prediction_id] for prediction_id in closed if prediction_id in order]
            assert first == sorted(set(first))

    def teardown(self) -> None:
        try:
            self.now = self.latest + 10 * WINDOW_MS
            while self.log.join(self.now, 7):
                pass
            self.read(self.now)
            self.check_all()
            assert self.log.stats(self.now).open_predictions == 0
        finally:
            self.log.close()

    def check_all(self) -> None:
        labels: dict[tuple[str, int], float] = {}
        positions: dict[tuple[str, int], int] = {}
        revisions: dict[str, int] = {}
        for e in self.entries:
            assert e.revision > revisions.get(e.prediction_id, -1)
            revisions[e.prediction_id] = e.revision
            for index, label, position, previous in zip(e.indices, e.labels, e.positions, e.previous, strict=True):
                key = (e.prediction_id, int(index))
                if key in labels:
                    assert previous == labels[key] != label
                else:
                    assert math.isnan(previous)
                labels[key] = float(label)
                positions[key] = int(position)
        shown = {
            (p.prediction_id, index): row
            for p in self.predictions
            for index, row in enumerate(p.rows)
            if row.exposed_ms is not None
        }
        answered = [p.prediction_id for p in self.predictions if p.order is not None]
        assert {e.prediction_id for e in self.entries} == {*answered}, "a prediction closed without an entry"
        assert labels == {key: row.label or 0.0 for key, row in shown.items()}
        assert positions == {key: row.position for key, row in shown.items()}
