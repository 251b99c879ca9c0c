"""The plots of an experiment, drawn from its series without a display: one line per run, the mean over the seeds, and a
band of one standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.arrays import F64
from transfer.experiment.crossadapt import Point, RunResult

__all__ = ["draw"]

COLOURS = {
    "teacher_frozen": "#8c8c8c", "teacher_online": "#4d4d4d", "scratch": "#1f77b4", "warm_embeddings": "#17becf",
    "plain_kd": "#9467bd", "published": "#ff7f0e", "ours": "#d62728", "ours_all": "#e377c2",
}  # fmt: skip


def draw(results: Sequence[RunResult], folder: Path) -> list[tuple[str, str]]:
    """Draw all plots into a directory; title and file name of each."""
    plots: list[tuple[str, str, Callable[[Sequence[RunResult]], Figure]]] = [
        ("Metrics over stream time", "stream.png", _over_stream),
        ("Metrics over training seconds", "seconds.png", _over_seconds),
        ("Weights a, r and K over stream time", "weights.png", _weights),
        ("Calibration by decile of the score, test part", "calibration.png", _calibration),
    ]
    for _, file, plot in plots:
        figure = plot(results)
        figure.savefig(folder / file, dpi=110)
    return [(title, file) for title, file, _ in plots]


def _over_stream(results: Sequence[RunResult]) -> Figure:
    figure, axes = _panels(3)
    for axis, key, label in zip(axes, ("auc", "logloss", "bias"), ("AUC", "LogLoss", "bias"), strict=True):
        for name, runs in _by_name(results):
            _band(axis, name, [[p.rows for p in r.curve] for r in runs], [_values(r.curve, key) for r in runs])
        _label(axis, "rows of the stream", label)
    axes[2].axhline(0.0, color="black", linewidth=0.8)
    axes[0].legend(fontsize=7)
    return figure


def _over_seconds(results: Sequence[RunResult]) -> Figure:
    figure, axes = _panels(2)
    for axis, key, label in zip(axes, ("auc", "logloss"), ("AUC so far", "LogLoss so far"), strict=True):
        for name, runs in _by_name(results):
            if name.startswith("teacher"):  # what it took is of another kind
                continue
            seconds = [[p.train_seconds for p in r.curve] for r in runs]
            _band(axis, name, seconds, [_running_mean(_values(r.curve, key)) for r in runs])
        _label(axis, "training seconds", label)
    axes[0].legend(fontsize=7)
    return figure


def _weights(results: Sequence[RunResult]) -> Figure:
    figure, axes = _panels(3)
    for axis, key in zip(axes, ("a", "r", "K"), strict=True):
        for name, all_runs in _by_name(results):
            runs = [r for r in all_runs if r.curve and key in r.curve[0].weights]
            if runs:
                rows = [[p.rows for p in r.curve] for r in runs]
                _band(axis, name, rows, [np.array([p.weights[key] for p in r.curve]) for r in runs])
        _label(axis, "rows of the stream", key)
    axes[0].legend(fontsize=7)
    return figure


def _calibration(results: Sequence[RunResult]) -> Figure:
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axis = figure.subplots()
    highest = 0.0
    for name, runs in _by_name(results):
        predicted = np.mean([[d.predicted for d in r.deciles] for r in runs], 0)
        observed = np.mean([[d.observed for d in r.deciles] for r in runs], 0)
        highest = max(highest, float(predicted.max()), float(observed.max()))
        axis.plot(predicted, observed, "o-", color=COLOURS.get(name), label=name, markersize=3, linewidth=1)
    axis.plot([0, highest], [0, highest], color="black", linewidth=0.8)
    _label(axis, "mean score of a decile", "share clicked")
    axis.legend(fontsize=7)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6 * count, 3.6), layout="constrained")
    return figure, list(figure.subplots(1, count))


def _by_name(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    names = dict.fromkeys(r.name for r in results)
    return [(name, [r for r in results if r.name == name]) for name in names]


def _values(curve: Sequence[Point], key: str) -> F64:
    return np.array([np.nan if (value := getattr(p, key)) is None else value for p in curve])


def _running_mean(values: F64) -> F64:
    known = ~np.isnan(values)
    sums: F64 = np.cumsum(np.where(known, values, 0.0)) / np.maximum(np.cumsum(known), 1)
    return sums


def _band(axis: Axes, name: str, xs: Sequence[Sequence[float]], ys: Sequence[F64]) -> None:
    """Mean and deviation over the seeds, point by point; seeds have the same number of points."""
    length = min(len(y) for y in ys)
    x = np.mean([x[:length] for x in xs], 0)
    y = np.stack([y[:length] for y in ys])
    middle, deviation = y.mean(0), y.std(0)
    axis.plot(x, middle, color=COLOURS.get(name), label=name, linewidth=1.2)
    if len(ys) > 1:
        axis.fill_between(x, middle - deviation, middle + deviation, color=COLOURS.get(name), alpha=0.15, linewidth=0)


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
