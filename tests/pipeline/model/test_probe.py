"""Foreign networks in their probe process: what is refused, what is set aside, and what all others notice of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import (
    NUMBERS,
    drawing,
    endless,
    greedy,
    mean_over_batch,
    needs_price,
    row_by_row,
    training_norm,
    write_foreign,
)

from pipeline.arrays import F32
from pipeline.model import probe as probes
from pipeline.model.probe import ProbeLimits, Verdict, probe, sample_of
from pipeline.schema import FieldSpec

LIMITS = ProbeLimits(seconds=30.0)


def verdict(folder: Path, network: Callable[[], onnx.ModelProto], limits: ProbeLimits = LIMITS) -> Verdict:
    path = folder / "dense.onnx"
    onnx.save(network(), str(path))

    def vectors(field: FieldSpec, count: int) -> tuple[F32, F32]:
        return np.random.default_rng(3).normal(size=(count, field.width or 0)).astype(np.float32), np.zeros(
            count, np.float32
        )

    return probe({"dense.onnx": path}, NUMBERS, sample_of(NUMBERS, vectors), limits)


def test_a_network_that_scores_each_row_by_itself_may_serve(tmp_path: Path) -> None:
    assert verdict(tmp_path, row_by_row) == Verdict()


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (mean_over_batch, "rows influence each other"),
        (training_norm, "training_mode"),
        (drawing, "draws at random"),
    ],
)
def test_rows_that_influence_each_other_are_refused_by_name(
    tmp_path: Path, network: Callable[[], onnx.ModelProto], said: str
) -> None:
    found = verdict(tmp_path, network)
    assert said in found.reason
    assert not found.died


def test_a_number_without_which_there_is_no_finite_score_is_named(tmp_path: Path) -> None:
    found = verdict(tmp_path, needs_price)
    assert (found.reason, found.missing, found.odd) == ("", ("price",), 0)


def test_a_network_without_end_is_tried_twice_and_its_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    original = probes._try
    monkeypatch.setattr(probes, "_try", lambda *args: tries.append(1) or original(*args))
    found = verdict(tmp_path, endless, ProbeLimits(seconds=1.0))
    assert found.died
    assert "more than 1 s of processor time" in found.reason
    assert len(tries) == 2


def test_a_network_that_takes_all_memory_hits_its_limit(tmp_path: Path) -> None:
    found = verdict(tmp_path, greedy, ProbeLimits(seconds=30.0, memory_bytes=256 << 20))
    assert found.died
    assert "engine.load_memory_bytes" in found.reason


def test_the_memory_that_a_network_makes_of_itself_is_measured(tmp_path: Path) -> None:
    """An array of 128 MiB from a file of some hundred bytes, within the limit: whoever loads it counts with that."""

    def grown() -> onnx.ModelProto:
        made = greedy()
        (size,) = (tensor for tensor in made.graph.initializer if tensor.name == "huge")
        size.CopyFrom(onnx.numpy_helper.from_array(np.array([32 << 20], np.int64), "huge"))
        return made

    found = verdict(tmp_path, grown)
    assert not found.reason
    assert found.bytes > 100 << 20
    assert verdict(tmp_path, row_by_row).bytes < 64 << 20


def test_a_verdict_is_noted_once_for_all_until_limits_or_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_foreign(tmp_path / "bundles" / "m" / "1", mean_over_batch())
    runs = []
    original = probes._try
    monkeypatch.setattr(probes, "_try", lambda *args: runs.append(1) or original(*args))
    notes = tmp_path / "segments" / "m" / probes.PROBED
    first = probes.probe_once(bundle, LIMITS, notes)
    assert probes.probe_once(bundle, LIMITS, notes) == first == probes.noted(notes)["1"]
    assert len(runs) == 1
    probes.probe_once(bundle, ProbeLimits(seconds=31.0), notes)
    assert len(runs) == 2
    probes.forget(notes)
    assert probes.noted(notes) == {}
    probes.set_aside(notes, "1", "it hung")
    assert probes.probe_once(bundle, LIMITS, notes).reason == "it hung"
    probes.keep_only(notes, [])
    assert probes.noted(notes) == {}
    assert len(runs) == 2
