"""What a bench hands back, and how the command line prints it and turns it into an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.report import Report, interleaved
from pipeline.errors import BatonError
from serving.cli.main import app


def test_budgets_are_for_the_ratio_or_for_the_value_without_a_limit() -> None:
    report = Report("serve")
    assert report.add("a", "throughput", 58, "rows/s", limit=100, at_least=0.58).ok is True
    assert report.add("b", "latency", 12, "ms", limit=10, at_most=1.1).ok is False
    assert report.add("c", "errors", 0, "requests", at_most=0).ok is True
    assert report.add("d", "latency", 3, "ms").ok is None
    assert not report.ok
    assert report.value("b", "latency") == 12
    with pytest.raises(ValueError, match="not both"):
        report.add("e", "x", 1, "s", at_least=1, at_most=2)
    for value, limit in ((float("nan"), None), (float("inf"), 1.0), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(BatonError, match="f: no x was measured"):
            report.add("f", "x", value, "s", limit=limit)


def test_cases_take_turns() -> None:
    order: list[tuple[str, int]] = []

    def case(name: str) -> float:
        order.append((name, len(order)))
        return float(len(order))

    found = interleaved({"x": lambda _: case("x"), "y": lambda _: case("y")}, 2)
    assert [name for name, _ in order] == ["x", "y", "y", "x"]
    assert found == {"x": [1.0, 4.0], "y": [2.0, 3.0]}


@pytest.mark.parametrize(("value", "code"), [(2.0, 0), (0.5, 1)])
def test_command_prints_the_agreed_object(
    value: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("train")
    report.add("train/lr/batch=8", "throughput", value, "rows/s", limit=1.0, at_least=0.6)
    monkeypatch.setattr("benchmarks.training.run", lambda **_: report)
    out = tmp_path / "deep" / "train.json"
    result = CliRunner().invoke(app, ["bench", "train", "-o", "json", "--out", str(out)])
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert json.loads(out.read_text()) == found
    assert set(found) == {"bench", "machine", "rows", "ok"}
    assert set(found["machine"]) == {"cpu", "cores", "gpu"}
    assert found["machine"]["cores"] >= 1
    assert found["rows"] == [
        {
            "case": "train/lr/batch=8",
            "metric": "throughput",
            "value": value,
            "unit": "rows/s",
            "limit": 1.0,
            "ratio": value,
            "budget": 0.6,
            "ok": code == 0,
        }
    ]
    assert found["ok"] is (code == 0)
