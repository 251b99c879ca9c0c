"""Contract of stages: the built-in stages keep it, and it detects stages that do not."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from handmade import SCHEMA, random_rows, random_tables, write_bundle

from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput, NotReady
from pipeline.event import Event
from pipeline.features import Features
from pipeline.model.model import Model
from pipeline.stage import Stage
from pipeline.stage_contract import check_stage
from pipeline.stages.decode import Decode
from pipeline.stages.embed import Embed
from pipeline.stages.infer import Infer
from pipeline.stages.record import Record


class HandClock:
    def monotonic(self) -> float:
        return 100.0

    def wall_ms(self) -> int:
        return 1_700_000_000_000


@pytest.fixture
def model(repository: Repository, segments: Path) -> Model:
    write_bundle(repository, random_tables(1))
    return Model.load(repository, "ranker", segments=segments)


def features(seed: int, n: int) -> Features:
    return Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), n, random_tables(1)))


SIZES = ((1, 5), (2, 1), (3, 130), (4, 7))


def test_decode(model: Model) -> None:
    def event(seed: int, n: int) -> Event:
        return Event(request=(seed, n), decoder=lambda request, _: features(*request), model=model)

    def infinite() -> Event:
        rows = random_rows(np.random.default_rng(1), 3, random_tables(1))
        rows.numbers[1, 1] = np.inf
        return Event(request="bad", decoder=lambda *_: Features.from_rows(rows), model=model)

    check_stage(
        Decode, lambda: [event(*size) for size in SIZES], failing=lambda: [infinite(), Event(request=1, model=model)]
    )
    with pytest.raises(NotReady):
        Decode().run(Event(request=1))


DENSE = {"dense": lambda dense: [(b.embeddings, b.linear, b.numbers) for b in dense.blocks]}


def test_embed(model: Model) -> None:
    check_stage(Embed, lambda: [Event(features=features(*size), model=model) for size in SIZES], reads=DENSE)


def test_infer(model: Model) -> None:
    def event(seed: int, n: int) -> Event:
        given = features(seed, n)
        return Event(features=given, dense=copy.deepcopy(model.embed(given)), model=model)

    check_stage(Infer, lambda: [event(*size) for size in SIZES], reads=DENSE)


def test_record(model: Model) -> None:
    def event(seed: int, n: int) -> Event:
        return Event(features=features(seed, n), scores=np.zeros(n, np.float32), model=model, prediction_id=f"p{seed}")

    kept: list[bytes] = []
    check_stage(
        lambda: Record(HandClock(), lambda blob: kept.append(blob) is None),
        lambda: [event(*size) for size in SIZES],
    )
    assert len(kept) > len(SIZES)


class Double:
    """A stage that keeps the contract; the tests below spoil one thing each."""

    name = "double"
    consumes: tuple[str, ...] = ("request",)
    produces: tuple[str, ...] = ("scores", "total")
    types = {"scores": np.ndarray, "total": float}  # noqa: RUF012

    def run(self, event: Event) -> None:
        if (event.request < 0).any():
            raise InvalidInput("negative")
        event.scores = 2 * event.request
        event.values["total"] = float(event.scores.sum())

    def run_batch(self, events: Sequence[Event]) -> None:
        for event in events:
            self.run(event)


def events() -> list[Event]:
    return [Event(request=np.arange(n, dtype=np.float32), rows=n) for n in (3, 1, 8)]


def negative() -> list[Event]:
    return [Event(request=-np.ones(2, np.float32), rows=2)]


def test_a_stage_that_keeps_the_contract_passes() -> None:
    check_stage(Double, events, failing=negative)


class Forgets(Double):
    def run(self, event: Event) -> None:
        event.scores = 2 * event.request


class Meddles(Double):
    def run(self, event: Event) -> None:
        super().run(event)
        event.request[0] = 7


class Remembers(Double):
    def __init__(self) -> None:
        self.last = 0.0

    def run(self, event: Event) -> None:
        super().run(event)
        event.scores = event.scores + np.float32(self.last)
        event.values["total"], self.last = float(event.scores.sum()), float(len(event.request))


class SharesBuffers(Double):
    def __init__(self) -> None:
        self.meet = threading.Barrier(2)
        self.buffer = np.zeros(0, np.float32)

    def run(self, event: Event) -> None:
        super().run(event)
        if threading.current_thread() is not threading.main_thread():
            self.buffer = event.scores
            with contextlib.suppress(threading.BrokenBarrierError):  # the last one meets nobody
                self.meet.wait(3)
            event.scores = self.buffer


class MixesUp(Double):
    def run_batch(self, events: Sequence[Event]) -> None:
        super().run_batch(events)
        events[0].scores, events[-1].scores = events[-1].scores, events[0].scores


class FailsNeighbours(Double):
    def run_batch(self, events: Sequence[Event]) -> None:
        try:
            super().run_batch(events)
        except InvalidInput as error:
            for event in events:
                event.error = error


class Swallows(Double):
    def run(self, event: Event) -> None:
        try:
            super().run(event)
        except InvalidInput as error:
            event.error = error


class Hides(Double):
    handles_errors = True

    def run(self, event: Event) -> None:
        super().run(event)
        event.error = None


class WrongType(Double):
    def run(self, event: Event) -> None:
        super().run(event)
        event.values["total"] = int(event.values["total"])


class Undeclared(Double):
    consumes = ["request"]  # type: ignore[assignment]  # noqa: RUF012


class Hungry(Double):
    consumes = ("request", "features")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Forgets, "it says that it produces 'total', and did not"),
        (Meddles, "it changed 'request', which it does not produce"),
        (Remembers, "depends on the events before it"),
        (SharesBuffers, "depends on what other threads do"),
        (MixesUp, "depends on the others in its batch"),
        (FailsNeighbours, "in a batch it fails with InvalidInput"),
        (Swallows, "did not refuse an event of `failing`"),
        (Hides, "it must pass on the error that it finds"),
        (WrongType, "'total' is int; its types say float"),
        (Undeclared, "consumes is a tuple of strings"),
        (Hungry, "the event lacks 'features'"),
    ],
)
def test_a_stage_that_breaks_a_promise_is_told_which(make: Callable[[], Stage], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_stage(make, events, failing=negative)
