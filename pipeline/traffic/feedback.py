"""What clients have said about one prediction: their feedback checked against it, kept as changes, folded to a state.

Pure logic on one prediction at a time. It must not know where changes are stored nor when rows become training data:
that is `join`, next door. A change holds only what was accepted, by row, so that folding all changes in order always
gives the state again.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.traffic.log import (
    ACCEPTED,
    DUPLICATE,
    INVALID,
    Exposure,
    FeedbackEntry,
    FeedbackReply,
    Outcome,
)

__all__ = ["NEVER_MS", "Change", "LabelState", "accept", "accept_parked", "dump_entry", "load_entry", "refuse"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

NEVER_MS = -1
_MAX_POSITION = (1 << 31) - 1
# exposures, outcomes, time at which all rows were exposed
_HEAD = struct.Struct("<IIq")


@dataclass(frozen=True, slots=True)
class Change:
    """What one accepted feedback entry adds.

    Args:
        exposed: int32 `[k]`, rows shown for the first time; positions: int32 `[k]`; times: int64 `[k]`, Unix milliseconds.
        outcomes: int32 `[m]`, rows labelled, in the order said; labels: float32 `[m]`; final: bool `[m]`.
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
    """Everything said so far about the `n` rows of a prediction.

    Args:
        exposed_ms: int64 `[n]`, when each row was shown, `NEVER_MS` where it was not.
        positions: int32 `[n]`, where it was shown, -1 where the client did not say.
        labels: float32 `[n]`, the last label said, NaN without one.
        final: bool `[n]`, some label for the row was said to be final.
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
    is a duplicate, unless it is the first said to be final.

    Args:
        state: everything accepted before; the new change is applied to it.
        prediction_ms: when the prediction was made; exposures are taken to lie between it and now.
        find: row of a hashed candidate id, or None.

    Returns:
        What to store (None when nothing is new) and the answer.
    """
    n = len(state.labels)
    reason = ""
    earliest = min(prediction_ms, now_ms)

    def row(index: int | None, candidate_id: int | None) -> int:
        nonlocal reason
        if index is None and candidate_id is not None:
            index = find(candidate_id)
            if index is None:
                reason = (
                    reason or "candidate id is not one of the prediction's; send the index in request order instead"
                )
                return -1
        problem = _index_problem(index)
        if index is None or problem:
            reason = reason or problem
            return -1
        if index >= n:
            reason = reason or f"index {index} is out of range: the prediction has {n} candidates"
            return -1
        return index

    shown: dict[int, tuple[int, int]] = {}
    exposed_status = []
    for exposure in entry.exposed:
        i = row(exposure.index, exposure.candidate_id)
        if i < 0 or (problem := _position_problem(exposure)):
            reason = reason or problem
            exposed_status.append(INVALID)
        elif i in shown or state.exposed_ms[i] != NEVER_MS:
            exposed_status.append(DUPLICATE)
        else:
            shown[i] = (exposure.position, max(earliest, min(exposure.time_ms or now_ms, now_ms)))
            exposed_status.append(ACCEPTED)

    rows: list[int] = []
    labels: list[float] = []
    finals: list[bool] = []
    last: dict[int, tuple[float, bool]] = {}
    outcome_status = []
    for outcome in entry.outcomes:
        i = row(outcome.index, outcome.candidate_id)
        if i < 0 or (problem := _label_problem(outcome)):
            reason = reason or problem
            outcome_status.append(INVALID)
            continue
        label = float(np.float32(outcome.label))
        before, was_final = last.get(i) or (float(state.labels[i]), bool(state.final[i]))
        if label == before and (was_final or not outcome.final):
            outcome_status.append(DUPLICATE)
            continue
        last[i] = (label, was_final or outcome.final)
        rows.append(i)
        labels.append(label)
        finals.append(outcome.final)
        outcome_status.append(ACCEPTED)

    all_new = entry.exposed_all and int((state.exposed_ms == NEVER_MS).sum()) > len(shown)
    reply = FeedbackReply(tuple(exposed_status), tuple(outcome_status), reason)
    if not shown and not rows and not all_new:
        return None, reply
    change = Change(
        np.fromiter(shown, np.int32, len(shown)),
        np.fromiter((p for p, _ in shown.values()), np.int32, len(shown)),
        np.fromiter((t for _, t in shown.values()), np.int64, len(shown)),
        np.array(rows, np.int32),
        np.array(labels, np.float32),
        np.array(finals, np.bool_),
        now_ms if all_new else NEVER_MS,
    )
    state.apply(change)
    return change, reply


def accept_parked(earlier: Sequence[FeedbackEntry], entry: FeedbackEntry) -> tuple[FeedbackEntry | None, FeedbackReply]:
    """Check an entry whose prediction is not written yet, against what is parked for it already.

    What can only be told from the prediction (range, candidate ids) is left to `accept`, once it is there.

    Returns:
        What to park (None when nothing is new) and the answer.
    """
    shown = {_key(e) for past in earlier for e in past.exposed}
    last: dict[tuple[bool, int], tuple[float, bool]] = {}
    for past in earlier:
        for outcome in past.outcomes:
            _remember(last, outcome)
    reason = ""
    exposed, exposed_status = [], []
    for exposure in entry.exposed:
        problem = _key_problem(exposure) or _position_problem(exposure)
        if problem:
            reason = reason or problem
            exposed_status.append(INVALID)
        elif _key(exposure) in shown:
            exposed_status.append(DUPLICATE)
        else:
            shown.add(_key(exposure))
            exposed.append(exposure)
            exposed_status.append(ACCEPTED)
    outcomes, outcome_status = [], []
    for outcome in entry.outcomes:
        problem = _key_problem(outcome) or _label_problem(outcome)
        if problem:
            reason = reason or problem
            outcome_status.append(INVALID)
            continue
        before, was_final = last.get(_key(outcome), (math.nan, False))
        if float(outcome.label) == before and (was_final or not outcome.final):
            outcome_status.append(DUPLICATE)
            continue
        _remember(last, outcome)
        outcomes.append(outcome)
        outcome_status.append(ACCEPTED)
    all_new = entry.exposed_all and not any(e.exposed_all for e in earlier)
    reply = FeedbackReply(tuple(exposed_status), tuple(outcome_status), reason)
    if not exposed and not outcomes and not all_new:
        return None, reply
    return FeedbackEntry(entry.prediction_id, exposed, outcomes, all_new), reply


def refuse(entry: FeedbackEntry, status: str, reason: str) -> FeedbackReply:
    """The same status for every part of an entry."""
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


def _remember(last: dict[tuple[bool, int], tuple[float, bool]], outcome: Outcome) -> None:
    key = _key(outcome)
    # An index and an id may mean one row: labels by the one kind of key make those by the other uncertain.
    for other in [k for k in last if k[0] != key[0]]:
        del last[other]
    last[key] = (float(outcome.label), outcome.final or last.get(key, (0.0, False))[1])


def _key(said: Exposure | Outcome) -> tuple[bool, int]:
    if said.index is not None:
        return (False, said.index)
    return (True, said.candidate_id or 0)


def _key_problem(said: Exposure | Outcome) -> str:
    return "" if said.index is None and said.candidate_id is not None else _index_problem(said.index)


def _index_problem(index: int | None) -> str:
    if index is None:
        return "neither index nor candidate id is given; send one of them"
    return (
        ""
        if 0 <= index <= _MAX_POSITION
        else f"index {index} is out of range; it counts candidates in request order from 0"
    )


def _position_problem(exposure: Exposure) -> str:
    position = exposure.position
    return (
        ""
        if -1 <= position <= _MAX_POSITION
        else f"position {position} is out of range; it counts from 0, -1 is unknown"
    )


def _label_problem(outcome: Outcome) -> str:
    return "" if 0.0 <= outcome.label <= 1.0 else f"label {outcome.label} is not a number from 0 to 1"
