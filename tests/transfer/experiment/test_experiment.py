"""The experiment on a log so small that it shows nothing but that all of it runs, is counted and is reported."""

import json

import numpy as np
import pytest
from small_log import SmallLog
from typer.testing import CliRunner

from pipeline.errors import DataError, InvalidInput
from serving.cli.main import app
from transfer.data.memory import MemoryLog
from transfer.experiment import RUNS, ExperimentResults, Split, crossadapt, write_report
from transfer.quality.figures import deciles
from transfer.quality.measured import PeakMemory, Stopwatch

LOG = SmallLog(6_000)


class Ticks:
    """A clock that moves by one at every look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture(scope="module")
def outcome():
    results = list(crossadapt(LOG, "fm-4", "dnn-8", seeds=[3], runs=list(RUNS), clock=Ticks()))
    return ExperimentResults("small", LOG.rows, "fm-4", "dnn-8", "ticks", results)


def test_all_runs_are_judged_on_the_same_rows(outcome):
    assert [r.name for r in outcome.results] == list(RUNS)
    stream = LOG.window(0.8, 0.9)
    for r in outcome.results:
        assert (r.stream["rows"], r.stream["positives"]) == (len(stream), stream.labels.sum())
        assert r.test["rows"] == 600
        assert 0.3 < r.test["auc"] < 0.9
        assert (r.stage1 is None) == (r.name in ("teacher_frozen", "teacher_online", "scratch"))
        assert r.train_seconds > 0
        assert r.rows_per_second > 0
        assert r.peak_mb > 50
        assert r.curve[-1].rows == len(stream)
        assert sum(d.rows for d in r.deciles) == 600
    by_name = {r.name: r for r in outcome.results}
    # Each student learned in a way of its own; all of a window this short is what ours takes anyway.
    assert (
        len({r.test["logloss"] for name, r in by_name.items() if name not in ("teacher_frozen", "teacher_online")}) >= 5
    )
    ours = by_name["ours"].curve[-1].weights
    assert set(ours) == {"a", "r", "K"}


def test_report_has_the_fixed_form_and_plots(outcome, tmp_path):
    write_report(outcome, tmp_path / "report")
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(found) == {"dataset", "teacher", "student", "runs"}
    assert {tuple(run) for run in found["runs"]} == {
        ("name", "seed", "stream", "test", "stage1", "train_seconds", "rows_per_second", "peak_mb")
    }
    assert all(set(run["stream"]) == {"auc", "logloss", "bias"} for run in found["runs"])
    page = (tmp_path / "report" / "report.md").read_text()
    for file in ("stream.png", "seconds.png", "weights.png", "calibration.png"):
        assert f"({file})" in page
        assert (tmp_path / "report" / file).read_bytes().startswith(b"\x89PNG")
    assert "ours against scratch" in page


def test_what_cannot_be_run_is_refused():
    with pytest.raises(InvalidInput, match="runs are"):
        next(crossadapt(LOG, "fm-4", "dnn-8", seeds=[0], runs=["best"]))
    with pytest.raises(InvalidInput, match="not in the zoo"):
        next(crossadapt(LOG, "fm-4", "nothing-8", seeds=[0]))
    with pytest.raises(InvalidInput, match="follow each other"):
        Split(history=0.9)
    with pytest.raises(DataError, match="labels"):
        MemoryLog(SmallLog(500, labels=0))


def test_the_command_writes_a_report_and_refuses_to_write_over_one(tmp_path):
    call = ["experiment", "crossadapt", "--teacher-arch", "lr", "--student-arch", "fm-4", "--rows", "3000"]
    call += ["--seeds", "1", "--runs", "scratch", "--runs", "ours", "--report", str(tmp_path / "r"), "-o", "json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert [run["name"] for run in json.loads(done.stdout)["runs"]] == ["scratch", "ours"]
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 1
    assert "exists" in again.output
    drift = [*call[:-3], str(tmp_path / "s"), "--data", "x.yaml", "--drift", "off"]
    assert "generator's" in CliRunner().invoke(app, drift).output


def test_a_stopwatch_counts_only_what_runs():
    clock = iter([0.0, 5.0, 105.0, 107.0])
    watch = Stopwatch(lambda: next(clock))
    for _ in range(2):
        with watch.running():
            pass
    assert watch.seconds == 7.0


def test_peak_memory_sees_what_is_gone_again():
    before = PeakMemory()
    base = before.megabytes
    np.ones(30_000_000).sum()
    assert before.megabytes > base + 200


def test_a_log_in_memory_is_the_log_and_its_part_counts_as_a_whole():
    log = MemoryLog(LOG, 0.5, 1.0)
    assert (log.rows, log.positives) == (3000, int(LOG.window(0.5, 1.0).labels.sum()))
    part = np.concatenate([chunk.labels for chunk in log.chunks(0.5, 1.0, 700)])
    np.testing.assert_array_equal(part, LOG.window(0.75, 1.0).labels)
    assert MemoryLog(LOG, most_rows=600).rows == 600


def test_deciles_of_a_calibrated_model_lie_on_the_diagonal():
    rng = np.random.default_rng(0)
    p = rng.random(100_000)
    for decile in deciles(p, (rng.random(len(p)) < p).astype(np.float32)):
        assert decile.observed == pytest.approx(decile.predicted, abs=0.02)
