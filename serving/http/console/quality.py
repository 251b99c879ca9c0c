"""Panels on the quality of both arms: bias against its bound, AUC and LogLoss over time, calibration, figures per stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.http.console.charts import (
    bias_curves,
    bias_options,
    calibration_options,
    calibration_points,
    curves,
    line_options,
)
from serving.http.console.live import Cell, Chart, LiveTable, Text, element, panel, show
from serving.http.console.reader import Reading, View
from serving.http.console.shell import EndpointPanel
from serving.http.console.wording import NONE, clock, count, figure, percent, signed_percent, weight

__all__ = ["BiasPanel", "CalibrationPanel", "QualityPanel", "StaysPanel"]


def _legend(**names: str) -> None:
    with element("div", "legend"):
        for kind, name in names.items():
            Text(name, classes=kind.replace("_", "-"))


class BiasPanel(EndpointPanel):
    """The candidate's bias with its interval against the bound, over the rollout."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        with panel("Bias", classes="two-thirds") as self._panel:
            self._chart = Chart("The candidate's bias with its interval against the bound", bias_options)
            self._note = Text("Figures begin with a rollout.", "p", "note")
        show(self._chart.element, False)
        with self._panel.default_slot.children[0]:
            _legend(of_candidate="candidate", of_interval="its interval", of_stable="stable", of_bound="bound")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        show(self._chart.element, view.track is not None)
        if view.track is None or view.rollout is None:
            return
        self._chart.tell(bias_curves(view.track))
        seen = view.rollout.evidence
        if seen.get("rows") is None:
            self._note.tell("The last look rests on no mature labelled rows.")
            return
        made_of = f"{count(seen['rows'])} rows, {count(seen['clicks'])} clicks, {seen['blocks']} blocks"
        self._note.tell(
            f"Sum of scores over clicks, minus 1. From {made_of} since {clock(seen['from_ms'], now_ms)} UTC; "
            f"over the breach window {signed_percent(seen.get('window_bias'))}."
        )


class QualityPanel(EndpointPanel):
    """One metric of both arms over time."""

    def __init__(self, name: str, title: str, metric: str, note: str) -> None:
        super().__init__(name)
        self._metric = metric
        with panel(title, note, "third") as self._section:
            self._chart = Chart(f"{title} of both arms over time", line_options)
            self._now = Text(tag="p", classes="note")
        show(self._section, False)
        with self._section.default_slot.children[0]:
            _legend(of_candidate="candidate", of_stable="stable")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        show(self._section, view.track is not None)
        if view.track is None:
            return
        names = f"{self._metric}_stable", f"{self._metric}_candidate"
        self._chart.tell(curves(view.track.quality, *names, digits=5))
        if view.rollout is not None and view.rollout.phases:
            now: Mapping[str, Any] = view.rollout.phases[-1][self._metric]
            both = None not in (now["stable"], now["candidate"])
            apart = figure(now["candidate"] - now["stable"], 5) if both else NONE
            self._now.tell(
                f"At this step: candidate {figure(now['candidate'])}, stable {figure(now['stable'])}, difference {apart}."
            )


class CalibrationPanel(EndpointPanel):
    """Click rate against mean score by tenth of the scores."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        with panel("Calibration", "by tenth of the scores", "third") as self._section:
            self._chart = Chart("Click rate against mean score by tenth of the scores", calibration_options)
            self._note = Text(tag="p", classes="note")
        show(self._section, False)

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        show(self._section, view.metrics is not None)
        if view.metrics is None:
            return
        phase = next((p for p in reversed(view.metrics.phases) if p["candidate"]["deciles"]), None)
        if phase is None:
            self._note.tell("No labelled rows yet.")
            return
        self._chart.tell(calibration_points(phase))
        off = phase["candidate"]["calibration_error"], phase["stable"]["calibration_error"]
        self._note.tell(
            f"At weight {weight(phase['weight'])}: off by {percent(off[0], 2)} (candidate), {percent(off[1], 2)} (stable) in the mean."
        )


class StaysPanel(EndpointPanel):
    """Every stay at a step with its figures, the present one first."""

    _COLUMNS = (
        "since, UTC", ">weight", "", ">rows", ">clicks", ">bias cand.", "interval", ">bias stable", ">AUC cand.",
        ">AUC stable", ">LogLoss cand.", ">LogLoss stable",
    )  # fmt: skip
    MOST = 12

    def __init__(self, name: str) -> None:
        super().__init__(name)
        with panel("Stays at a step", "both arms score the same rows"):
            self._table = LiveTable(self._COLUMNS, "Figures of every stay at a step", "Figures begin with a rollout.")

    def draw(self, view: View, reading: Reading, now_ms: int) -> None:
        rollout = view.rollout
        if rollout is None:
            return
        rows: list[list[Cell | str]] = []
        for at, phase in reversed(list(enumerate(rollout.phases))[-self.MOST :]):
            bias = phase["bias"]
            low, high = bias["candidate"]["low"], bias["candidate"]["high"]
            present = at == len(rollout.phases) - 1
            rows.append(
                [
                    Cell(clock(phase["entered_ms"], now_ms), "strong" if present else ""),
                    weight(phase["weight"]),
                    "now" if present else "",
                    count(phase["rows"]),
                    count(phase["labels"]),
                    signed_percent(bias["candidate"]["value"]),
                    f"{signed_percent(low, 1)} to {signed_percent(high, 1)}" if None not in (low, high) else NONE,
                    signed_percent(bias["stable"]["value"]),
                    figure(phase["auc"]["candidate"]),
                    figure(phase["auc"]["stable"]),
                    figure(phase["logloss"]["candidate"]),
                    figure(phase["logloss"]["stable"]),
                ]
            )
        self._table.tell(rows)
