"""Every bench runs for real with tiny settings and gives the agreed object. What it measures is nobody's business here."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import lanes, overload
from benchmarks.load.run import Outcome
from pipeline.errors import InvalidInput
from serving.cli.main import app

SMALL = ["--table-rows", "390", "-o", "json"]
ROW = {"case", "metric", "value", "unit", "limit", "ratio", "budget", "ok"}


def bench(*arguments: str) -> dict[str, Any]:
    """The object that `baton bench` prints; its exit code must be that of the budgets."""
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code in (0, 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if found["ok"] else 1)
    assert set(found) == {"bench", "machine", "rows", "ok"}
    assert found["bench"] == arguments[0]
    for row in found["rows"]:
        assert set(row) == ROW
        assert row["case"]
        assert row["metric"]
        assert row["unit"]
        assert math.isfinite(row["value"])
        if row["limit"] is not None:
            assert row["ratio"] == pytest.approx(row["value"] / row["limit"])
        assert (row["budget"] is None) == (row["ok"] is None)
    assert found["ok"] == all(row["ok"] is not False for row in found["rows"])
    return found


def rows_of(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    rows = {(row["case"], row["metric"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    return rows


@pytest.mark.long
def test_serve() -> None:
    options = ["--models", "deepfm", "--rows", "1", "--rows", "100", "--inflight", "8"]
    rows = rows_of(bench("serve", *options, "--seconds", "0.2", "--rounds", "1", *SMALL))
    assert rows["oip/deepfm/rows=100/inflight=8", "throughput"]["budget"] == 0.58
    assert rows["oip/deepfm/rows=100/inflight=8", "throughput against bare"]["budget"] == 0.95
    assert rows["oip/deepfm/rows=1/inflight=8", "throughput against bare"]["budget"] == 0.85
    assert rows["rank/deepfm/rows=100/inflight=8", "throughput against mixed"]["budget"] == 1.3
    for way in ("bare", "oip", "rank", "rankstream", "direct"):
        for n in (1, 100):
            row = rows[f"{way}/deepfm/rows={n}/inflight=8", "throughput"]
            assert row["value"] > 0
            assert row["limit"] == rows[f"in-process/deepfm/rows={n}", "throughput"]["value"]
            assert rows[f"{way}/deepfm/rows={n}/inflight=8", "cpu"]["value"] > 0
    assert rows["rank/deepfm/rows=100/half-load", "p99"]["value"] > 0


@pytest.mark.long
def test_lanes() -> None:
    options = ["--split", "1x1x1", "--rows", "1", "--inflight", "2", "--seconds", "0.2", "--rounds", "1"]
    rows = rows_of(bench("lanes", *options, *SMALL))
    case = "lanes=1/workers=1/network_threads=1/rank/deepfm/rows=1/inflight=2"
    assert rows[case, "throughput"]["ratio"] == 1.0


@pytest.mark.long
def test_remote() -> None:
    rows = rows_of(bench("remote", "--seconds", "0.3", "--rounds", "1", "--rows", "5", *SMALL))
    assert rows["remote/rows=5/inflight=8", "throughput"]["limit"] > 0
    assert rows["remote/rows=5/inflight=1", "p50"]["value"] > 0


@pytest.mark.long
def test_shadow() -> None:
    rows = rows_of(bench("shadow", "--seconds", "1", "--pairs", "1", "--rows", "5", *SMALL))
    assert rows["shadow/p99", "latency"]["budget"] == 1.1
    assert rows["shadow/coverage", "predictions"]["ok"]


@pytest.mark.long
def test_swap() -> None:
    options = ["--seconds", "3", "--rounds", "1", "--interval", "0.5", "--rows", "5"]
    rows = rows_of(bench("swap", *options, *SMALL))
    assert rows["swap/p99", "latency"]["budget"] == 2.0
    assert rows["swap/failed", "errors"]["value"] == 0
    assert rows["swap/versions", "published"]["value"] >= 2


@pytest.mark.long
def test_overload() -> None:
    rows = rows_of(bench("overload", "--seconds", "3", "--rows", "50", *SMALL))
    assert rows["overload/goodput", "throughput"]["budget"] == 0.8
    assert rows["overload/p99", "latency"]["limit"] == 1000
    assert rows["overload/memory/lane-0", "rss"]["value"] > 0


@pytest.mark.long
def test_soak() -> None:
    rows = rows_of(bench("soak", "--minutes", "0.1", "--rows", "5", *SMALL))
    assert rows["soak/memory/lanes", "rss"]["budget"] == 1.02
    assert rows["soak/restarts", "processes"]["ok"]


@pytest.mark.long
def test_context() -> None:
    rows = rows_of(bench("context", "--rows", "5", "--turns", "2", *SMALL))
    assert rows["context/deepfm/rows=5", "throughput"]["limit"] > 0


@pytest.mark.long
def test_engine() -> None:
    rows = rows_of(bench("engine", "--rows", "5", "--rounds", "1", "-o", "json"))
    assert rows["inline/inflight=8/deepfm/rows=5", "time"]["limit"] == rows["direct/deepfm/rows=5", "time"]["value"]


@pytest.mark.long
def test_traffic() -> None:
    rows = rows_of(bench("traffic", "--seconds", "0.5", "--rows", "20", "-o", "json"))
    assert rows["traffic/rows=20", "labelled"]["value"] > 0


def test_log_in_process() -> None:
    options = ["--keys", "3", "--predictions", "1024", "--labelled", "256"]
    cases = ["forgotten", "forget", "blocks", "week", "log/restart", "explain"]
    rows = rows_of(bench("log", *options, *(word for case in cases for word in ("--case", case)), "-o", "json"))
    assert rows["log/forgotten/keys=3", "append"]["budget"] == 1.5
    assert rows["log/forget", "growth"]["budget"] == rows["log/stats", "growth"]["budget"] == 0.1
    assert rows["log/blocks", "pass"]["limit"] == rows["log/blocks/lines=1500", "pass"]["value"]
    assert 1_000 < rows["log/blocks", "lines after it"]["value"] <= 2_500
    assert rows["log/week/day=2", "table"]["budget"] == 64
    assert rows["log/week", "pass"]["limit"] == rows["log/week/day=1", "pass"]["value"]
    assert rows["log/restart/labelled=256", "evidence back"]["budget"] == 5.0
    assert rows["log/explain/labelled=256", "time"]["budget"] == 5.0


@pytest.mark.long
def test_log_with_processes_and_many_rollouts() -> None:
    cases = ["recording", "writers", "rollouts", "status"]
    options = ["--seconds", "0.5", *(word for case in cases for word in ("--case", case))]
    rows = rows_of(bench("log", *options, "-o", "json"))
    assert rows["log/recording", "throughput"]["budget"] == 0.95
    at_a_rate = rows["log/writers/writers=2/rate=200", "joined"]
    assert (at_a_rate["budget"], at_a_rate["limit"] > 50) == (0.95, True)
    unlimited = rows["log/writers/writers=2/unlimited", "joined"]
    assert unlimited["value"] == unlimited["limit"]
    assert rows["log/rollouts", "growth"]["budget"] == 0.1
    assert rows["log/status", "growth"]["budget"] == 1.1


def test_a_case_that_is_not_there_is_refused_with_those_that_are() -> None:
    result = CliRunner().invoke(app, ["bench", "log", "--case", "joins"])
    assert result.exit_code == 1
    assert "there is no case 'joins'; there are recording, writers" in result.output


def test_analysis() -> None:
    rows = rows_of(bench("analysis", "--total", "20000", "-o", "json"))
    assert rows["analysis/rows=20000", "blocks"]["value"] >= 15
    assert rows["analysis/rows=20000", "pass"]["budget"] == 2.0
    assert rows["analysis/rows=20000", "read"]["value"] > 0


def test_train() -> None:
    rows = rows_of(bench("train", "--batch", "64", "--vocabulary", "100", "--rounds", "1", "-o", "json"))
    assert rows["train/dcnv2/batch=64", "throughput"]["budget"] == 0.6


def test_settings_at_fault_are_named(tmp_path: Any) -> None:
    settings = tmp_path / "engine.yaml"
    settings.write_text("home: /tmp/elsewhere\n")
    result = CliRunner().invoke(app, ["bench", "serve", "--config", str(settings)])
    assert result.exit_code == 1
    assert "home" in result.output
    for wrong in ("2x1", "axbxc", "0x1x1"):
        with pytest.raises(InvalidInput, match="LANESxWORKERSxTHREADS"):
            lanes.Split.parse(wrong)


def test_splits_use_the_cores_there_are() -> None:
    for cores in (1, 2, 8, 64):
        splits = lanes.splits_of(cores)
        assert len(set(splits)) == len(splits)
        assert {split.lanes for split in splits} >= {1, cores}
        assert all(split.lanes * split.workers * split.network_threads <= 2 * cores for split in splits)


def test_recovery_is_when_answers_are_good_and_quick_again() -> None:
    def outcome(until: float) -> Outcome:
        intended = np.arange(0, 30, 0.01)
        slow = (intended >= 10) & (intended < until)
        latency, status = np.where(slow, 1.0, 0.005), np.where(slow & (intended < 20), 8, 0).astype(np.int16)
        return Outcome(intended, latency, status, np.zeros(0), 0.0, 30.0, len(intended), 0.0, [])

    assert overload.recovery_of(outcome(20.0), 10.0, 20.0) == 0.25
    assert overload.recovery_of(outcome(21.9), 10.0, 20.0) == pytest.approx(2.0, abs=0.26)
    assert overload.recovery_of(outcome(30.0), 10.0, 20.0) == 10.0


@pytest.mark.long
def test_teachers() -> None:
    rows = rows_of(
        bench("teachers", "--members", "1", "--members", "2", "--rows", "20000", "--rounds", "1", "-o", "json")
    )
    assert rows["pool/dcnv2/members=2", "growth"]["limit"] == rows["pool/dcnv2/members=1", "throughput"]["value"]


@pytest.mark.long
def test_drift() -> None:
    rows = rows_of(bench("drift", "--rows", "160000", "--seeds", "1", "-o", "json"))
    assert rows["abrupt/seed=0", "rows to recover"]["budget"] == 0.5
    assert rows["still/seed=0", "LogLoss"]["value"] > 0


@pytest.mark.long
def test_levels() -> None:
    rows = rows_of(bench("levels", "--rows", "20000", "--first", "3", "--seeds", "1", "-o", "json"))
    ways = ("keep", "probability", "inverse", "weight")
    cases = {f"{kind}/{way}/seed=3" for kind in ("trained", "transferred") for way in ways}
    assert {case for case, _ in rows} == cases
    for case in cases:
        assert rows[case, "|bias|"]["value"] == abs(rows[case, "bias"]["value"]) < 1
