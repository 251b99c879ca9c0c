"""Report of an experiment: report.json for programs, report.md with plots for people, series.json behind the plots.

Next stop: `plots`, which draws the series.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from pipeline.disk import writing
from transfer.experiment.crossadapt import RunResult
from transfer.experiment.plots import draw

__all__ = ["ExperimentResults", "write_report"]

METRICS = ("auc", "logloss", "bias")


@dataclass(frozen=True)
class ExperimentResults:
    """Results of all runs of an experiment, and the data and models that they ran on."""

    dataset: str
    rows: int
    teacher: str
    student: str
    clock: str
    results: Sequence[RunResult]

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "run", "stream AUC", "LogLoss", "bias", "test AUC", "LogLoss", "bias", "stage 1 bias", "train s", "rows/s",
        "peak MB",
    )  # fmt: skip

    @property
    def title(self) -> str:
        seeds = len({r.seed for r in self.results})
        return f"{self.dataset}: {self.teacher} -> {self.student}, {self.rows:,} rows, {seeds} seeds"

    def as_json(self) -> dict[str, Any]:
        """report.json."""
        return {
            "dataset": self.dataset,
            "teacher": self.teacher,
            "student": self.student,
            "runs": [
                {
                    "name": r.name,
                    "seed": r.seed,
                    "stream": _three(r.stream),
                    "test": _three(r.test),
                    "stage1": None if r.stage1 is None else _three(r.stage1),
                    "train_seconds": r.train_seconds,
                    "rows_per_second": r.rows_per_second,
                    "peak_mb": r.peak_mb,
                }
                for r in self.results
            ],
        }

    def series(self) -> dict[str, Any]:
        """series.json: curves, weights and deciles of every run."""
        return {"rows": self.rows, "clock": self.clock, "runs": [asdict(r) for r in self.results]}

    def table(self) -> list[tuple[str, ...]]:
        """A row per run under `COLUMNS`: mean over the seeds, and after ± their standard deviation."""
        found = []
        for name in dict.fromkeys(r.name for r in self.results):
            runs = [r for r in self.results if r.name == name]
            judged = [
                _spread([part[key] for part in parts], 4)
                for parts in ([r.stream for r in runs], [r.test for r in runs])
                for key in METRICS
            ]
            stage1 = _spread([None if r.stage1 is None else r.stage1["bias"] for r in runs], 3)
            cost = [
                _spread([r.train_seconds for r in runs], 1),
                _spread([r.rows_per_second for r in runs], 0),
                _spread([r.peak_mb for r in runs], 0),
            ]
            found.append((name, *judged, stage1, *cost))
        return found

    def against(self, name: str, reference: str) -> list[tuple[str, str]]:
        """Comparison of two runs, seed by seed: figure, and mean ± standard deviation of the differences."""
        pairs = [
            (run, other)
            for run in self.results
            for other in self.results
            if (run.name, other.name) == (name, reference) and run.seed == other.seed
        ]
        lines = []
        for part in ("stream", "test"):
            both = [(getattr(a, part), getattr(b, part)) for a, b in pairs]
            for key in METRICS:
                change = [_change(a[key], b[key], key) for a, b in both]
                lines.append((f"{part} {LABELS[key]}", _spread(change, 2 if key == "auc" else 4)))
        saved = [100 * (1 - a.train_seconds / b.train_seconds) for a, b in pairs]
        return [*lines, ("training time saved, %", _spread(saved, 0))]


LABELS = {"auc": "AUC, %", "logloss": "LogLoss", "bias": "|bias|"}


def write_report(outcome: ExperimentResults, folder: Path) -> None:
    """Write all files into a new directory.

    Raises:
        NotReady: the disk is full or fails.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "series.json").write_text(json.dumps(outcome.series()), encoding="utf-8")
        plots = draw(outcome.results, folder)
        (folder / "report.md").write_text(_page(outcome, plots), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(outcome.as_json(), indent=1), encoding="utf-8")


def _page(outcome: ExperimentResults, plots: Sequence[tuple[str, str]]) -> str:
    parts = [f"# {outcome.title}", "", f"Seconds are {outcome.clock}. Mean ± standard deviation over the seeds.", ""]
    parts += _markdown(outcome.COLUMNS, outcome.table())
    names = {r.name for r in outcome.results}
    for reference in ("scratch", "published"):
        if {"ours", reference} <= names:
            parts += ["", f"## ours against {reference}", ""]
            parts += _markdown(("difference", "mean ± standard deviation"), outcome.against("ours", reference))
    for title, file in plots:
        parts += ["", f"## {title}", "", f"![{title}]({file})"]
    return "\n".join(parts) + "\n"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _three(metrics: dict[str, float | None]) -> dict[str, float | None]:
    return {key: metrics[key] for key in METRICS}


def _change(value: float | None, reference: float | None, key: str) -> float | None:
    if value is None or reference is None:
        return None
    if key == "auc":
        return 100 * (value / reference - 1)
    return abs(value) - abs(reference) if key == "bias" else value - reference


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = f"{mean(known):,.{digits}f}"
    return middle if len(known) < 2 else f"{middle} ± {stdev(known):,.{digits}f}"
