"""Labels from files: rows of Parquet, CSV or JSON lines as feedback, in files that grow, from where the last run ended.

One loop over Feedback: rows are read a few hundred at a time, those of one prediction become one entry, and the place in the
file moves on when they are on the server's disk. So a crash repeats some rows, which are answered as duplicates.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.disk import replacing
from pipeline.errors import InvalidInput, NotReady, Overloaded
from pipeline.traffic.log import INVALID, Exposure, FeedbackEntry, FeedbackReply, Outcome
from serving.client.label_files import Row, label_files, read_rows

__all__ = ["EXPOSURE", "LabelColumns", "LabelImport", "LabelTotals"]

EXPOSURE = "exposure"
"""What a row's `label` says where it is no label but tells that the candidate was shown."""
TRIES = 60
PAUSE_S = 1.0
_UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_TOLD_ENTRIES = 5


class Feeder(Protocol):
    """What the loop needs of a client."""

    def feedback(self, entries: Sequence[FeedbackEntry], /) -> list[FeedbackReply]: ...


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Names of the columns, and what holds for all rows. A column that a file does not have is left out.

    Args:
        request_id, prediction_id: of the prediction; a row has one of the two.
        candidate: the caller's candidate id; index: its index in request order, where there is no candidate id.
        label: what happened: `exposure`, or the name of a label. Without it every row is a label.
        value: of the label, 0..1; 1 without it.
        time: when it happened, as a time or a number of `unit` (s, ms or us).
        position: where an exposed candidate was shown.
        only: name of the label that is taken; "": every name.
        final: no other label will follow. exposed_all: all candidates of a labelled prediction were shown.
    """

    request_id: str = "request_id"
    prediction_id: str = "prediction_id"
    candidate: str = "candidate_id"
    index: str = "index"
    label: str = "label"
    value: str = "value"
    time: str = "time"
    position: str = "position"
    unit: str = "ms"
    only: str = ""
    final: bool = False
    exposed_all: bool = False

    def __post_init__(self) -> None:
        if self.unit not in _UNITS:
            raise InvalidInput(f"the unit of times is one of {sorted(_UNITS)}, not {self.unit!r}", "time_unit")


@dataclass(slots=True)
class LabelTotals:
    """Exposures and labels by the server's answer, rows passed over, and some reasons of those that were invalid."""

    statuses: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Expired and invalid ones."""
        return self.statuses["expired"] + self.statuses[INVALID]

    def refuse(self, reason: str, status: str = INVALID, count: int = 1) -> None:
        """Count what is not taken."""
        self.statuses[status] += count
        if reason not in self.reasons and len(self.reasons) < _TOLD_ENTRIES:
            self.reasons.append(reason)


class LabelImport:
    """The loop.

    Args:
        endpoint: where the request ids were sent to.
        place: file that keeps how far each file is read.
        sleep: waits between two tries.

    Attributes:
        totals: since it began.
    """

    def __init__(
        self,
        client: Feeder,
        endpoint: str,
        columns: LabelColumns,
        place: Path,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._columns = columns
        self._place = place
        self._sleep = sleep
        self._at: dict[str, int] = _read_place(place)
        self.totals = LabelTotals()

    def run(self, paths: Sequence[Path], *, growing: bool = False) -> int:
        """Send what is new in files; the number of rows.

        Args:
            growing: whether the last line of a file may not be whole yet.

        Raises:
            InvalidInput: a file cannot be read, or lacks its columns. BatonError: the server stays away.
        """
        before = self.totals.rows
        for path in label_files(paths):
            name = f"{self._endpoint} {path.resolve()}"
            for rows, after in read_rows(path, self._at.get(name, 0), growing):
                self._send(path, rows)
                self._at[name] = after
                with replacing(self._place) as staging:
                    staging.write_text(json.dumps(self._at, indent=1))
        return self.totals.rows - before

    def _send(self, path: Path, rows: Sequence[tuple[int, Row]]) -> None:
        parts: dict[tuple[str, str], tuple[list[Exposure], list[Outcome]]] = {}
        for number, row in rows:
            self.totals.rows += 1
            try:
                self._add(parts, row)
            except (InvalidInput, ValueError, TypeError) as error:
                self.totals.refuse(f"{path.name}, row {number}: {error}")
        if not parts:
            return
        entries = [
            FeedbackEntry(
                prediction_id,
                shown,
                labels,
                self._columns.exposed_all and bool(labels),
                request_id,
                self._endpoint if request_id else "",
            )
            for (prediction_id, request_id), (shown, labels) in parts.items()
        ]
        for reply in self._feedback(entries):
            taken = Counter([*reply.exposed, *reply.outcomes])
            self.totals.statuses += Counter({s: n for s, n in taken.items() if s not in ("expired", INVALID)})
            for status in ("expired", INVALID):
                if taken[status]:
                    self.totals.refuse(reply.reason, status, taken[status])

    def _feedback(self, entries: Sequence[FeedbackEntry]) -> list[FeedbackReply]:
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._client.feedback(entries)
            except (NotReady, Overloaded) as error:
                if not left:
                    raise
                self._sleep(max(PAUSE_S, getattr(error, "retry_after", 0.0)))
        raise AssertionError("unreachable")

    def _add(self, parts: dict[tuple[str, str], tuple[list[Exposure], list[Outcome]]], row: Row) -> None:
        c = self._columns
        prediction_id, request_id = _text(row, c.prediction_id), _text(row, c.request_id)
        if prediction_id:
            request_id = ""
        elif not request_id:
            raise InvalidInput(f"it has neither {c.request_id} nor {c.prediction_id}")
        what = _text(row, c.label)
        if what not in ("", EXPOSURE) and c.only not in ("", what):
            self.totals.skipped += 1
            return
        name = _text(row, c.candidate)
        index = None if name or _text(row, c.index) == "" else int(row[c.index])
        if not name and index is None:
            raise InvalidInput(f"it has neither {c.candidate} nor {c.index}")
        time_ms = _time_ms(row.get(c.time), c.unit)
        exposed, labelled = parts.setdefault((prediction_id, request_id), ([], []))
        if what == EXPOSURE:
            position = _text(row, c.position)
            exposed.append(Exposure(index, None, int(float(position)) if position else -1, time_ms, name))
            return
        value = _text(row, c.value)
        labelled.append(Outcome(index, float(value) if value else 1.0, None, time_ms, c.final, name))


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _time_ms(value: Any, unit: str) -> int:
    """Unix milliseconds; 0 without a time."""
    if value is None or value == "" or value != value:
        return 0
    if isinstance(value, str):
        try:
            return round(float(value) * _UNITS[unit])
        except ValueError:
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    return round(float(value) * _UNITS[unit])


def _read_place(path: Path) -> dict[str, int]:
    try:
        return {str(name): int(at) for name, at in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{path} does not say how far files are read ({error}): remove it to begin anew") from None
