"""Progress of the demo on the terminal, and its closing tables."""

from __future__ import annotations

import sys
import time
from typing import Any

from pipeline.errors import BatonError
from serving.cli.api import AdminClient
from serving.cli.drawing import Drawing, live, shown, stacked, table_of
from serving.cli.output import console, say, show_table
from serving.cli.progress import bar
from serving.cli.replay import ReplayReport

__all__ = ["PHASE_COLUMNS", "DemoView", "phase_rows", "show"]

PHASE_COLUMNS = ("step", "weight %", "arm", "rows", "clicks", "AUC", "LogLoss", "bias", "low", "high")
POLL_S = 1.0
LINE_EVERY_S = 15.0
AFTER_LAST_STEP_S = 15.0
ENDED = {"aborted", "undone", "completed"}


class DemoView:
    """Polls the admin API and draws the progress of the hand-over. `finished`: more traffic would change nothing."""

    def __init__(self, admin: AdminClient, endpoint: str, duration: float, report: ReplayReport) -> None:
        self._admin = admin
        self._endpoint = endpoint
        self._report = report
        self._began = time.monotonic()
        self._polled = 0.0
        self._lined = 0.0
        self._full_since: float | None = None
        self._state: dict[str, Any] = {}
        self._bar = bar("replay", "bar", "{task.fields[rows]} rows", "elapsed")
        self._task = self._bar.add_task("replay", total=duration, rows="0")
        self._live = live(console, self._draw) if sys.stderr.isatty() else None

    def __enter__(self) -> DemoView:
        self._began = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def finished(self) -> bool:
        """Checked before each request; polls at most once a second."""
        now = time.monotonic()
        if now - self._polled >= POLL_S:
            self._poll(now)
        if self._full_since is not None:
            return now - self._full_since > AFTER_LAST_STEP_S
        return bool(self._state) and self._state["rollout"]["phase"] in ENDED

    def settle(self, limit: float) -> None:
        """Wait until the last labels are joined and looked at, for `limit` seconds at most."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self._poll(time.monotonic())
            traffic = self._state.get("status", {}).get("traffic", {})
            if traffic and not traffic["open_predictions"]:
                break
            time.sleep(POLL_S)
        # One more look by the rollout at the rows that came last.
        time.sleep(2 * POLL_S)

    def final(self) -> dict[str, Any]:
        """Last state of endpoint, rollout and processes, with the audit.

        Raises:
            NotReady: the server is gone.
        """
        return {**self._read(), "audit": self._admin.list("/audit", "entries", endpoint=self._endpoint)}

    def _read(self) -> dict[str, Any]:
        return {
            "endpoint": self._admin.get(f"/endpoints/{self._endpoint}"),
            "rollout": self._admin.get(f"/rollouts/{self._endpoint}"),
            "status": self._admin.get("/status"),
        }

    def _poll(self, now: float) -> None:
        self._polled = now
        try:
            self._state = self._read()
        except BatonError:
            return  # the control process may come back; the last state stays on the screen
        rollout = self._state["rollout"]
        if rollout["step"] == len(rollout["steps"]) - 1:
            self._full_since = self._full_since or now
        else:
            self._full_since = None
        self._bar.update(self._task, completed=now - self._began, rows=f"{self._report.rows:,}")
        if self._live is None and now - self._lined > LINE_EVERY_S:
            self._lined = now
            say(f"{now - self._began:4.0f} s  {self._report.rows:>9,} rows  {self._line()}")

    def _line(self) -> str:
        rollout = self._state["rollout"]
        phases = rollout["phases"]
        text = f"step {rollout['step']}/{len(rollout['steps']) - 1}, weight {rollout['weight']:g} %"
        if phases and phases[-1]["bias"]["candidate"]["value"] is not None:
            b = phases[-1]["bias"]["candidate"]
            low, high = b["low"], b["high"]
            text += f", student's bias {b['value']:+.3f}"
            if low is not None and high is not None:
                text += f" [{low:+.3f}, {high:+.3f}]"
        return f"{text}; {rollout['waiting']}"

    def _draw(self) -> Drawing:
        if not self._state:
            return stacked(self._bar, shown("waiting for the first figures"))
        rollout = self._state["rollout"]
        rows = []
        by_step = {phase["step"]: phase for phase in rollout["phases"]}
        for number, step in enumerate(rollout["steps"]):
            phase = by_step.get(number)
            mark = "→" if number == rollout["step"] else "✓" if number < rollout["step"] else " "
            cells = ["", "", "", ""]
            if phase is not None:
                b = phase["bias"]["candidate"]
                auc = phase["auc"]
                cells = [
                    f"{phase['rows']:,}",
                    f"{phase['labels']:,.0f}",
                    "-" if b["value"] is None else f"{b['value']:+.4f}",
                    "-" if auc["candidate"] is None else f"{auc['candidate']:.4f} / {auc['stable']:.4f}",
                ]
            bound = step.get("bias_below")
            rows.append(
                (
                    f"{mark} {'shadow' if step.get('shadow') else number}",
                    "-" if step.get("shadow") else f"{step['weight']:g}",
                    "-" if bound is None else f"{bound:g}",
                    *cells,
                )
            )
        worker = self._state["status"].get("worker") or {}
        versions = ", ".join(f"{name} {version}" for name, version in (worker.get("versions") or {}).items())
        columns = ("step", "weight %", "bias below", "rows", "clicks", "student's bias", "AUC s/t")
        return stacked(
            self._bar,
            table_of(columns, rows),
            shown(f"{rollout['phase']}: {rollout['waiting']}"),
            shown(f"worker: {worker.get('batches', 0)} batches, last versions {versions or 'none'}"),
        )


def phase_rows(phases: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Table rows of a report's phases: one per phase and arm."""
    return [
        (str(phase["step"]), f"{phase['weight']:g}", arm, phase["rows"], round(phase["labels"]),
         phase["auc"][arm], phase["logloss"][arm], bias["value"], bias["low"], bias["high"])
        for phase in phases
        for arm, bias in ((arm, phase["bias"][arm]) for arm in ("stable", "candidate"))
    ]  # fmt: skip


def show(report: dict[str, Any]) -> None:
    """Print the closing tables."""
    show_table(f"{report['dataset']}: phases of the rollout", PHASE_COLUMNS, phase_rows(report["phases"]))
    arms = [
        (
            name,
            report[name]["arch"],
            report[name]["rows"],
            report[name]["auc"],
            report[name]["logloss"],
            report[name]["bias"],
        )
        for name in ("teacher", "student")
    ]
    show_table("both models on the same replayed rows", ("model", "arch", "rows", "AUC", "LogLoss", "bias"), arms)
    latency = [(arm, values["p50"], values["p99"]) for arm, values in report["latency_ms"].items()]
    show_table("latency from the moment a request was due", ("arm", "p50 ms", "p99 ms"), latency)
    facts = [
        ("requests", f"{report['requests']:,}"),
        ("errors", f"{report['errors']:,}"),
        ("shadow scored / dropped", f"{report['shadow']['scored']:,} / {report['shadow']['dropped']:,}"),
        ("versions published / refused", f"{report['versions_published']} / {report['versions_refused']}"),
        ("final weight", f"{report['final_weight']:g} %"),
        ("verdict", report["verdict"]),
        ("last word of the rollout", report["evidence"] or "-"),
        ("seconds", f"{report['seconds']:.0f}"),
    ]
    show_table("the hand-over", ("what", "value"), facts)
