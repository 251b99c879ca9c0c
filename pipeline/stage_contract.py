"""Contract of a stage, as a check for the stage's own tests.

    from pipeline.stage_contract import check_stage

    def test_boost() -> None:
        check_stage(lambda: Boost(factor=2.0), lambda: [Event(scores=...), Event(scores=...)])

The engine relies on all of it: one instance serves all workers at once, in any order, alone and in batches.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from pipeline.engine.execution import execute_batch
from pipeline.engine.meter import Meter
from pipeline.engine.plan import Step
from pipeline.event import Event
from pipeline.stage import BatchStage, Stage

__all__ = ["check_stage"]

THREADS = 4
ROUNDS = 5
_ANY_STAGE = {"degraded", "error", "timings", "cancelled"}
_BY_IDENTITY = {"model", "decoder", "context"}


def check_stage(
    make: Callable[[], Stage],
    events: Callable[[], Sequence[Event]],
    *,
    failing: Callable[[], Sequence[Event]] = list,
    reads: Mapping[str, Callable[[Any], Any]] | None = None,
    rtol: float = 1e-5,
) -> None:
    """Check a stage against its contract.

    Args:
        make: a new stage.
        events: new events, always the same, that hold what the stage consumes; two or more, of one model.
        failing: new events that the stage must refuse, of the same model.
        reads: by value, a function to arrays, numbers, lists, mappings or dataclasses, for values that are none of these.
        rtol: how much numbers may differ between one event alone and in a batch.

    Raises:
        AssertionError: names the broken promise.
    """
    _Contract(make(), events, failing, reads or {}, rtol).check()


class _Contract:
    def __init__(
        self,
        stage: Stage,
        events: Callable[[], Sequence[Event]],
        failing: Callable[[], Sequence[Event]],
        reads: Mapping[str, Callable[[Any], Any]],
        rtol: float,
    ) -> None:
        self._stage = stage
        self._events = events
        self._failing = failing
        self._reads = reads
        self._rtol = rtol

    def check(self) -> None:
        stage = self._stage
        _check_declaration(stage)
        count = len(self._events())
        _hold(count >= 2, "give at least two events")
        self._expected = [self._alone(event) for event in self._events()]
        self._check_order()
        self._check_threads()
        errors = [self._refusal(event) for event in self._failing()]
        if isinstance(stage, BatchStage):
            for order in (list(range(count)), list(range(count))[::-1], [0, 1], [1, 0]):
                events = self._events()
                self._check_batch(stage, [events[i] for i in order], [self._expected[i] for i in order], [])
            if errors:
                self._check_batch(stage, [*self._failing(), *self._events()], self._expected, errors)
        if getattr(stage, "handles_errors", False):
            for event in self._events():
                event.error = failed = ValueError("of an earlier stage")
                stage.run(event)
                _hold(event.error is failed, "it handles errors, so it must pass on the error that it finds")

    def _alone(self, event: Event) -> dict[str, Any]:
        """The results of the stage for an event, copied; it must produce what it declares and leave the rest."""
        stage = self._stage
        before = {name: self._copy(event, name) for name in _names(event)}
        for name in stage.consumes:
            _hold(before.get(name) is not None, f"the event lacks {name!r}, which the stage consumes")
        stage.run(event)
        _hold(event.error is None, f"run raises its errors; it does not set them ({event.error!r})")
        for name in _names(event):
            if name in stage.produces or name in _ANY_STAGE:
                continue
            after = self._copy(event, name)
            let_go = after is None and name in stage.consumes
            same = name in before and _same(before[name], after, 0.0)
            _hold(let_go or same, f"it changed {name!r}, which it does not produce")
        return self._produced(event)

    def _produced(self, event: Event) -> dict[str, Any]:
        for name in self._stage.produces:
            value = _value(event, name)
            _hold(value is not None, f"it says that it produces {name!r}, and did not")
            kind = getattr(self._stage, "types", {}).get(name, object)
            _hold(isinstance(value, kind), f"{name!r} is {type(value).__name__}; its types say {kind.__name__}")
        return {name: self._copy(event, name) for name in self._stage.produces}

    def _copy(self, event: Event, name: str) -> Any:
        value = _value(event, name)
        if value is None or name in _BY_IDENTITY:
            return value
        return copy.deepcopy(self._reads[name](value) if name in self._reads else value)

    def _check_order(self) -> None:
        for event, wanted in reversed(list(zip(self._events(), self._expected, strict=True))):
            self._stage.run(event)
            same = _same(wanted, self._produced(event), self._rtol)
            _hold(same, "what it makes of an event depends on the events before it")

    def _check_threads(self) -> None:
        start = threading.Barrier(THREADS)
        wrong: list[BaseException] = []

        def work(turn: int) -> None:
            start.wait()
            try:
                for _ in range(ROUNDS):
                    pairs = list(zip(self._events(), self._expected, strict=True))
                    for event, wanted in pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]:
                        self._stage.run(event)
                        same = _same(wanted, self._produced(event), self._rtol)
                        _hold(same, "what it makes of an event depends on what other threads do")
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(turn,), name=f"contract-{turn}") for turn in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]

    def _refusal(self, event: Event) -> type[Exception]:
        try:
            self._stage.run(event)
        except Exception as error:
            return type(error)
        raise AssertionError("it did not refuse an event of `failing`")

    def _check_batch(
        self,
        stage: BatchStage,
        batch: Sequence[Event],
        expected: Sequence[Mapping[str, Any]],
        errors: Sequence[type[Exception]],
    ) -> None:
        """Run a batch as the engine does; events that must fail come first."""
        handles = bool(getattr(stage, "handles_errors", False))
        step = Step(0, self._stage.name, self._stage.run, stage.run_batch, handles)
        execute_batch([step], batch, Meter(1, 1), lambda: 0.0, 0.0)
        for event, kind in zip(batch, errors, strict=False):
            alike = isinstance(event.error, kind)
            _hold(alike, f"in a batch an event ends with {event.error!r}, and alone with {kind.__name__}")
        good = batch[len(errors) :]
        for event in good:
            _hold(event.error is None, f"in a batch it fails with {event.error!r}, and not alone")
        for wanted, made in zip(expected, [self._produced(event) for event in good], strict=True):
            _hold(_same(wanted, made, self._rtol), "what it makes of an event depends on the others in its batch")


def _check_declaration(stage: Stage) -> None:
    _hold(isinstance(stage.name, str) and stage.name != "", "name is a string")
    for what in ("consumes", "produces", "as_produced", "thread_bound"):
        names = getattr(stage, what, ())
        _hold(
            isinstance(names, tuple) and all(isinstance(name, str) for name in names),
            f"{what} is a tuple of strings, not {names!r}",
        )
    types = getattr(stage, "types", {})
    _hold(isinstance(types, Mapping), "types is a mapping from value to class")
    for name, kind in types.items():
        _hold(
            name in (*stage.consumes, *stage.produces), f"types names {name!r}, which it neither consumes nor produces"
        )
        _hold(isinstance(kind, type), f"types[{name!r}] is a class, not {kind!r}")


def _names(event: Event) -> list[str]:
    return [*(field.name for field in fields(event) if field.name != "values"), *event.values]


def _value(event: Event, name: str) -> Any:
    return event.values[name] if name in event.values else getattr(event, name, None)


def _same(a: Any, b: Any, rtol: float) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(np.allclose(a, b, rtol, rtol * 0.1, equal_nan=True) if a.dtype.kind == "f" else (a == b).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bool(np.isclose(a, b, rtol, rtol * 0.1, equal_nan=True))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key], rtol) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, rtol) for x, y in zip(a, b, strict=True))
    if is_dataclass(a):
        return all(_same(getattr(a, field.name), getattr(b, field.name), rtol) for field in fields(a))
    return bool(a == b)


def _hold(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
