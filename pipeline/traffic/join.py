"""Join of exposed rows and labels: maturity, closing, revisions.

Pure logic on one prediction at a time; it does not know where predictions and changes are stored. The logs in `local` and
`redis` take the predictions in order and write its results. The rules:

- A row is mature once its attribution window has passed since it was shown, or a label is final. Without a label its
  label is then 0.
- A prediction closes when all rows shown so far are mature, a window after it was made when none was shown, and at the
  latest two windows after it was made. Predictions close in order, so that what is read is complete up to a time: an open
  one holds back those after it, for two windows at most. Times are the log's own (`TrafficLog.now_ms`). Where that clock
  went back, or the window was shortened, all open predictions are set right at once (`set_right`), not one after another.
- Closing writes revision 0, without rows where none was shown: readers count what was answered and never shown. Where rows
  were shown so late that none is mature yet, nothing is written then. Later labels that change a written row, and rows that
  mature later, make revisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.arrays import F32, I32
from pipeline.traffic.feedback import NEVER_MS, LabelState

__all__ = [
    "NO_ROWS",
    "MatureRows",
    "arrived",
    "closes_at",
    "mature_rows",
    "set_right",
    "stands_wrong",
    "written_labels",
]


class MatureRows(NamedTuple):
    """Rows of one prediction for the labelled log, in request order, as the attributes of `Labelled`.

    Args:
        indices: int32 `[m]`; labels: float32 `[m]`; positions: int32 `[m]`.
        previous: float32 `[m]`, the label written before, NaN for rows written for the first time.
    """

    indices: I32
    labels: F32
    positions: I32
    previous: F32

    def pack(self) -> bytes:
        """Write them as bytes."""
        return b"".join(a.tobytes() for a in self)

    @classmethod
    def unpack(cls, blob: bytes) -> MatureRows:
        """Read what `pack` wrote; arrays are views of `blob`."""
        m = len(blob) // 16
        return cls(
            np.frombuffer(blob, np.int32, m),
            np.frombuffer(blob, np.float32, m, 4 * m),
            np.frombuffer(blob, np.int32, m, 8 * m),
            np.frombuffer(blob, np.float32, m, 12 * m),
        )


NO_ROWS = MatureRows.unpack(b"")
"""Of a prediction that closes and was never shown."""


def stands_wrong(time_ms: int, closes_ms: int, now_ms: int, window_ms: int) -> bool:
    """Whether an open prediction is of the future, or waits longer than two windows after it was made."""
    return (time_ms, closes_ms) != set_right(time_ms, closes_ms, now_ms, window_ms)


def set_right(time_ms: int, closes_ms: int, now_ms: int, window_ms: int) -> tuple[int, int]:
    """Time and closing time of an open prediction, with none of the future and two windows between them at most."""
    made_ms = min(time_ms, now_ms)
    return made_ms, min(closes_ms, _latest_close(made_ms, window_ms))


def closes_at(state: LabelState, time_ms: int, window_ms: int) -> int:
    """When a prediction made at `time_ms` closes, as known by now (all Unix milliseconds)."""
    shown = state.exposed_ms != NEVER_MS
    if not shown.any():
        return time_ms + window_ms
    matures = np.where(state.final[shown], state.exposed_ms[shown], state.exposed_ms[shown] + window_ms)
    return min(int(matures.max()), _latest_close(time_ms, window_ms))


def arrived(state: LabelState, time_ms: int, now_ms: int, window_ms: int) -> tuple[int, bool]:
    """How long after its prediction feedback came, in milliseconds, and whether the prediction was due to close by then.

    Args:
        state: of the labels before it.
    """
    return max(0, now_ms - time_ms), now_ms > closes_at(state, time_ms, window_ms)


def _latest_close(time_ms: int, window_ms: int) -> int:
    return time_ms + 2 * window_ms


def written_labels(n: int, entries: Iterable[MatureRows]) -> F32:
    """The label that each of `n` rows has in the labelled log after entries in order, float32 `[n]`, NaN for none."""
    labels = np.full(n, np.nan, np.float32)
    for entry in entries:
        labels[entry.indices] = entry.labels
    return labels


def mature_rows(state: LabelState, written: F32, now_ms: int, window_ms: int) -> tuple[MatureRows | None, int | None]:
    """Rows to write to the labelled log: those mature and not written, and those written with another label.

    Returns:
        The rows (None without any), and when the next row that is shown but not mature will be mature (None without any).
    """
    new = (state.exposed_ms != NEVER_MS) & np.isnan(written)
    mature = state.final | (state.exposed_ms + window_ms <= now_ms)
    labels = np.where(np.isnan(state.labels), np.float32(0), state.labels)
    rows = np.flatnonzero((new & mature) | (~np.isnan(written) & (labels != written))).astype(np.int32)
    waiting = state.exposed_ms[new & ~mature]
    due = int(waiting.min()) + window_ms if len(waiting) else None
    if not len(rows):
        return None, due
    return MatureRows(rows, labels[rows], state.positions[rows], written[rows]), due
