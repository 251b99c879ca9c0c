"""Report of a bench: rows of figures with their limit, ratio and budget, and the machine.

A figure alone means little on a shared machine, so a row names its `limit`: the same work without Baton, measured in the
same run. Cases are measured in turns (`interleaved`), so that other load on the machine slows all of them, and a row is
the median of its turns.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import host
from pipeline.errors import BatonError

__all__ = ["Progress", "Report", "Row", "cores", "interleaved", "machine", "median"]

Progress = Callable[[str], None]
"""Receives one line of progress."""
SMALL = 0.001
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is value / limit; `budget` is for the ratio, or for the value where there is no limit."""

    case: str
    metric: str
    value: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    budget: float | None = None
    ok: bool | None = None


@dataclass
class Report:
    """Report of one run of the bench `name`.

    >>> report = Report("serve")
    >>> report.add("oip/deepfm/rows=100/inflight=8", "throughput", 1800, "rows/s", limit=3000, at_least=0.58).ok
    True
    >>> report.add("shadow/p99", "latency", 12.0, "ms", limit=10.0, at_most=1.1).ratio
    1.2
    >>> report.ok
    False
    """

    name: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        case: str,
        metric: str,
        value: float,
        unit: str,
        *,
        limit: float | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Row:
        """Add a figure.

        Args:
            case: the setting, parts joined by `/`, as in `oip/deepfm/rows=100/inflight=8`.
            metric: for example `throughput`.
            value: the figure, in `unit`.
            limit: the value to compare with, of the same run and in the same unit; it must not be 0.
            at_least, at_most: the budget (one of them or none), for value / limit, or for the value without a limit.

        Raises:
            BatonError: there is no figure (NaN or infinite), or none to compare it with: nothing was measured.
        """
        if not math.isfinite(value) or (limit is not None and not (math.isfinite(limit) and limit)):
            raise BatonError(f"{case}: no {metric} was measured (value {value}, limit {limit}); measure for longer")
        if at_least is not None and at_most is not None:
            raise ValueError(f"{case}: a budget is a lower or an upper one, not both")
        ratio = None if limit is None else value / limit
        held = value if ratio is None else ratio
        budget, ok = None, None
        if at_least is not None:
            budget, ok = at_least, held >= at_least
        elif at_most is not None:
            budget, ok = at_most, held <= at_most
        row = Row(case, metric, value, unit, limit, ratio, budget, ok)
        self.rows.append(row)
        return row

    def value(self, case: str, metric: str) -> float:
        """The figure of a case and metric that was added before."""
        return next(row.value for row in self.rows if (row.case, row.metric) == (case, metric))

    @property
    def ok(self) -> bool:
        """Whether no budget is missed."""
        return all(row.ok is not False for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The machine-readable result: one object, numbers as numbers, None where a row has no limit or budget."""
        return {"bench": self.name, "machine": machine(), "rows": [asdict(row) for row in self.rows], "ok": self.ok}

    COLUMNS = ("case", "metric", "value", "unit", "limit", "ratio", "budget", "ok")

    def as_table(self) -> list[tuple[Any, ...]]:
        """The same rows for people, under `COLUMNS`."""
        return [
            (
                row.case,
                row.metric,
                _figure(row.value),
                row.unit,
                _figure(row.limit),
                _figure(row.ratio, 2),
                _figure(row.budget, 2),
                "" if row.ok is None else "yes" if row.ok else "NO",
            )
            for row in self.rows
        ]


def interleaved(cases: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Figures of each case in each of `rounds` turns; in a turn every case runs once, in changing order.

    Args:
        cases: name to a call that takes the number of the turn and returns its figure.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            found[name].append(cases[name](turn))
    return found


def median(values: Sequence[float]) -> float:
    """Median; NaN without values."""
    return statistics.median(values) if values else float("nan")


def cores() -> int:
    """Number of cores that this process may use."""
    return host.cores().amount


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, name of the first GPU or None."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _cpu() -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _figure(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    if 0 < abs(value) < SMALL:
        return f"{value:.1e}"
    if value == 0:
        return "0"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"
