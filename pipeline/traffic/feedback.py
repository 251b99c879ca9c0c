"""Feedback on one prediction: entries checked against it, stored as changes, folded to the state of its labels.

Pure logic on one prediction at a time. It knows neither where changes are stored nor when rows become training data (see
`join`). A change holds only what was accepted, by row, so all changes folded in order give the state again.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from pipeline.arrays import F32, I32, I64, Mask
from pipeline.errors import InvalidInput
from pipeline.traffic.log import (
    ACCEPTED,
    DUPLICATE,
    EXPIRED,
    INVALID,
    Exposure,
    FeedbackEntry,
    FeedbackReply,
    Outcome,
)
from pipeline.traffic.prediction import PredictionIds

__all__ = [
    "NEVER_MS",
    "Change",
    "LabelState",
    "accept",
    "accept_parked",
    "accepted_part",
    "dump_entry",
    "load_entry",
    "refusal",
]

Part = TypeVar("Part", Exposure, Outcome)
_Key = tuple[bool, int]
"""Whether a candidate is named by its id, and its index or id."""

NEVER_MS = -1
_MAX_POSITION = (1 << 31) - 1
# exposures, outcomes, time at which all rows were exposed
_HEAD = struct.Struct("<IIq")


@dataclass(frozen=True, slots=True)
class Change:
    """The accepted part of one feedback entry.

    Args:
        exposed: int32 `[k]`, rows shown for the first time; positions: int32 `[k]`; times: int64 `[k]`, Unix milliseconds.
        outcomes: int32 `[m]`, rows labelled, in the order of the entry; labels: float32 `[m]`; final: bool `[m]`.
        all_ms: when every row not shown before was shown at its own index, or `NEVER_MS`.
    """

    exposed: I32
    positions: I32
    times: I64
    outcomes: I32
    labels: F32
    final: Mask
    all_ms: int = NEVER_MS

    def pack(self) -> bytes:
        """Write it as bytes."""
        head = _HEAD.pack(len(self.exposed), len(self.outcomes), self.all_ms)
        arrays = (self.times, self.exposed, self.positions, self.outcomes, self.labels, self.final)
        return head + b"".join(a.tobytes() for a in arrays)

    @classmethod
    def unpack(cls, blob: bytes) -> Change:
        """Read what `pack` wrote; arrays are views of `blob`."""
        k, m, all_ms = _HEAD.unpack_from(blob)
        at = _HEAD.size
        times = np.frombuffer(blob, np.int64, k, at)
        exposed = np.frombuffer(blob, np.int32, k, at := at + 8 * k)
        positions = np.frombuffer(blob, np.int32, k, at := at + 4 * k)
        outcomes = np.frombuffer(blob, np.int32, m, at := at + 4 * k)
        labels = np.frombuffer(blob, np.float32, m, at := at + 4 * m)
        final = np.frombuffer(blob, np.bool_, m, at + 4 * m)
        return cls(exposed, positions, times, outcomes, labels, final, all_ms)


@dataclass(frozen=True, slots=True)
class LabelState:
    """Exposures and labels of the `n` rows of a prediction, as known so far.

    Args:
        exposed_ms: int64 `[n]`, when each row was shown, `NEVER_MS` where it was not.
        positions: int32 `[n]`, where it was shown, -1 where that is unknown.
        labels: float32 `[n]`, the last label, NaN without one.
        final: bool `[n]`, whether some label of the row was final.
    """

    exposed_ms: I64
    positions: I32
    labels: F32
    final: Mask

    @classmethod
    def fold(cls, n: int, changes: Iterable[Change] = ()) -> LabelState:
        """The state after changes, in the order in which they were accepted."""
        state = cls(
            np.full(n, NEVER_MS, np.int64),
            np.full(n, -1, np.int32),
            np.full(n, np.nan, np.float32),
            np.zeros(n, np.bool_),
        )
        for change in changes:
            state.apply(change)
        return state

    def apply(self, change: Change) -> None:
        """Add one change, in place."""
        self.exposed_ms[change.exposed] = change.times
        self.positions[change.exposed] = change.positions
        if change.all_ms != NEVER_MS:
            rest = np.flatnonzero(self.exposed_ms == NEVER_MS)
            self.exposed_ms[rest] = change.all_ms
            self.positions[rest] = rest
        self.labels[change.outcomes] = change.labels  # numpy assigns repeated rows in order: the last label wins
        self.final[change.outcomes[change.final]] = True


def accept(
    state: LabelState,
    entry: FeedbackEntry,
    prediction_ms: int,
    now_ms: int,
    find: Callable[[int], int | None],
) -> tuple[Change | None, FeedbackReply]:
    """Check an entry against its prediction.

    A row is exposed once: a second exposure of it is a duplicate, whatever its position. A label equal to the last one
    is a duplicate, unless it is the first that is final.

    Args:
        state: everything accepted before; the new change is applied to it.
        prediction_ms: when the prediction was made; exposures are taken to lie between it and now.
        find: row of a hashed candidate id, or None.

    Returns:
        The change to store (None when nothing is new) and the reply.
    """
    news = _RowNews(state, find, min(prediction_ms, now_ms), now_ms)
    reply = _reply(entry, news)
    all_new = entry.exposed_all and int((state.exposed_ms == NEVER_MS).sum()) > len(news.shown)
    if not news.shown and not news.labelled and not all_new:
        return None, reply
    change = Change(
        np.fromiter(news.shown, np.int32, len(news.shown)),
        np.fromiter((p for p, _ in news.shown.values()), np.int32, len(news.shown)),
        np.fromiter((t for _, t in news.shown.values()), np.int64, len(news.shown)),
        np.array([row for row, _, _ in news.labelled], np.int32),
        np.array([label for _, label, _ in news.labelled], np.float32),
        np.array([final for _, _, final in news.labelled], np.bool_),
        now_ms if all_new else NEVER_MS,
    )
    state.apply(change)
    return change, reply


def accepted_part(entry: FeedbackEntry, change: Change, reply: FeedbackReply) -> FeedbackEntry:
    """The part of an entry that `accept` took, with each candidate named by its index: taken again, it needs no record."""
    shown = (said for said, status in zip(entry.exposed, reply.exposed, strict=True) if status == ACCEPTED)
    labelled = (said for said, status in zip(entry.outcomes, reply.outcomes, strict=True) if status == ACCEPTED)
    return FeedbackEntry(
        entry.prediction_id,
        [replace(said, index=row, candidate_id=None) for said, row in zip(shown, change.exposed.tolist(), strict=True)],
        [
            replace(said, index=row, candidate_id=None)
            for said, row in zip(labelled, change.outcomes.tolist(), strict=True)
        ],
        change.all_ms != NEVER_MS,
    )


def accept_parked(earlier: Sequence[FeedbackEntry], entry: FeedbackEntry) -> tuple[FeedbackEntry | None, FeedbackReply]:
    """Check an entry whose prediction is not written yet, against what is parked for it already.

    What depends on the prediction (range, candidate ids) is left to `accept`, once it is written.

    Returns:
        The entry to park (None when nothing is new) and the reply.
    """
    news = _ParkedNews(earlier)
    reply = _reply(entry, news)
    all_new = entry.exposed_all and not any(e.exposed_all for e in earlier)
    if not news.exposed and not news.outcomes and not all_new:
        return None, reply
    return FeedbackEntry(entry.prediction_id, news.exposed, news.outcomes, all_new), reply


def refusal(entry: FeedbackEntry, ids: PredictionIds, now_ms: int, late_limit_ms: int) -> FeedbackReply | None:
    """The reply to an entry whose prediction id is not genuine, or older than the limit; None for all others."""
    try:
        made_ms = ids.parse(entry.prediction_id).time_ms
    except InvalidInput as error:
        status, reason = INVALID, str(error)
    else:
        if now_ms - made_ms <= late_limit_ms:
            return None
        status, reason = EXPIRED, "the prediction is too old to be labelled"
    return FeedbackReply((status,) * len(entry.exposed), (status,) * len(entry.outcomes), reason)


def dump_entry(entry: FeedbackEntry) -> str:
    """A parked entry as JSON text, without its prediction id."""
    return json.dumps(
        {
            "exposed": [[e.index, e.candidate_id, e.position, e.time_ms] for e in entry.exposed],
            "outcomes": [[o.index, o.candidate_id, float(o.label), o.time_ms, o.final] for o in entry.outcomes],
            "all": entry.exposed_all,
        }
    )


def load_entry(prediction_id: str, text: str) -> FeedbackEntry:
    """Read what `dump_entry` wrote."""
    data = json.loads(text)
    return FeedbackEntry(
        prediction_id,
        [Exposure(index, candidate, position, time_ms) for index, candidate, position, time_ms in data["exposed"]],
        [
            Outcome(index, label, candidate, time_ms, final)
            for index, candidate, label, time_ms, final in data["outcomes"]
        ],
        data["all"],
    )


class _News(Protocol):
    """Collects the parts of an entry that are new. Both methods return whether a part is new.

    Raises (both):
        InvalidInput: the part names no candidate, or its position or label is out of range.
    """

    def expose(self, exposure: Exposure) -> bool: ...

    def label(self, outcome: Outcome) -> bool: ...


def _reply(entry: FeedbackEntry, news: _News) -> FeedbackReply:
    reasons: list[str] = []
    exposed = tuple(_statuses(entry.exposed, news.expose, reasons))
    outcomes = tuple(_statuses(entry.outcomes, news.label, reasons))
    return FeedbackReply(exposed, outcomes, reasons[0] if reasons else "")


def _statuses(parts: Sequence[Part], add: Callable[[Part], bool], reasons: list[str]) -> Iterator[str]:
    for part in parts:
        try:
            yield ACCEPTED if add(part) else DUPLICATE
        except InvalidInput as error:
            reasons.append(str(error))
            yield INVALID


class _RowNews:
    """News about the rows of a written prediction."""

    def __init__(self, state: LabelState, find: Callable[[int], int | None], earliest_ms: int, now_ms: int) -> None:
        self._state = state
        self._find = find
        self._earliest_ms, self._now_ms = earliest_ms, now_ms
        self._last: dict[int, tuple[float, bool]] = {}
        self.shown: dict[int, tuple[int, int]] = {}
        """Position and time by row."""
        self.labelled: list[tuple[int, float, bool]] = []
        """Row, label and `final`, in the order of the entry."""

    def expose(self, exposure: Exposure) -> bool:
        row = self._row(exposure)
        _check_position(exposure)
        if row in self.shown or self._state.exposed_ms[row] != NEVER_MS:
            return False
        time_ms = max(self._earliest_ms, min(exposure.time_ms or self._now_ms, self._now_ms))
        self.shown[row] = exposure.position, time_ms
        return True

    def label(self, outcome: Outcome) -> bool:
        row = self._row(outcome)
        _check_label(outcome)
        label = float(np.float32(outcome.label))
        before = self._last.get(row) or (float(self._state.labels[row]), bool(self._state.final[row]))
        if _is_known(before, label, outcome.final):
            return False
        self._last[row] = label, before[1] or outcome.final
        self.labelled.append((row, label, outcome.final))
        return True

    def _row(self, part: Exposure | Outcome) -> int:
        index = part.index
        if index is None and part.candidate_id is not None:
            index = self._find(part.candidate_id)
            if index is None:
                raise InvalidInput(
                    "candidate id is not one of the prediction's; send the index in request order instead"
                )
        n = len(self._state.labels)
        if (index := _checked_index(index)) >= n:
            raise InvalidInput(f"index {index} is out of range: the prediction has {n} candidates")
        return index


class _ParkedNews:
    """News about candidates of a prediction that is not written yet, known by index or by id."""

    def __init__(self, earlier: Sequence[FeedbackEntry]) -> None:
        self._shown = {_key(e) for past in earlier for e in past.exposed}
        self._last: dict[_Key, tuple[float, bool]] = {}
        self.exposed: list[Exposure] = []
        self.outcomes: list[Outcome] = []
        for past in earlier:
            for outcome in past.outcomes:
                self._remember(_key(outcome), outcome)

    def expose(self, exposure: Exposure) -> bool:
        key = _key(exposure)
        _check_position(exposure)
        if key in self._shown:
            return False
        self._shown.add(key)
        self.exposed.append(exposure)
        return True

    def label(self, outcome: Outcome) -> bool:
        key = _key(outcome)
        _check_label(outcome)
        if _is_known(self._last.get(key, (math.nan, False)), float(outcome.label), outcome.final):
            return False
        self._remember(key, outcome)
        self.outcomes.append(outcome)
        return True

    def _remember(self, key: _Key, outcome: Outcome) -> None:
        # An index and an id may mean one row: labels by the one kind of key make those by the other uncertain.
        for other in [k for k in self._last if k[0] != key[0]]:
            del self._last[other]
        self._last[key] = (float(outcome.label), outcome.final or self._last.get(key, (0.0, False))[1])


def _is_known(last: tuple[float, bool], label: float, final: bool) -> bool:
    """Whether a label adds nothing to the last one and its `final`."""
    return label == last[0] and (last[1] or not final)


def _key(part: Exposure | Outcome) -> _Key:
    if part.index is None and part.candidate_id is not None:
        return True, part.candidate_id
    return False, _checked_index(part.index)


def _checked_index(index: int | None) -> int:
    if index is None:
        raise InvalidInput("neither index nor candidate id is given; send one of them")
    if not 0 <= index <= _MAX_POSITION:
        raise InvalidInput(f"index {index} is out of range; it counts candidates in request order from 0")
    return index


def _check_position(exposure: Exposure) -> None:
    if not -1 <= exposure.position <= _MAX_POSITION:
        raise InvalidInput(f"position {exposure.position} is out of range; it counts from 0, -1 is unknown")


def _check_label(outcome: Outcome) -> None:
    if not 0.0 <= outcome.label <= 1.0:
        raise InvalidInput(f"label {outcome.label} is not a number from 0 to 1")
