"""Rollout files: fields and defaults, and the line and reason of every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InvalidInput
from serving.rollout.spec import Rollout

GOOD = """\
endpoint: ranker
candidate: {bundle: ranker-dcnv2}
steps:
  - {shadow: true, min_positives: 1000}
  - {weight: 1,   bias_below: 0.10}
  - {weight: 5,   bias_below: 0.05}
  - {weight: 100, bias_below: 0.02}
guards: {auc_delta_min: -0.002, p99_ms_max: null}
analysis: {attribution_window: 30m, block: 0.4s, interval: 2s, min_step_time: 20s, breach_window: 20s}
on_breach: abort
after_full: {watch: 24h}
"""


def test_a_file_is_read_with_durations_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(GOOD)
    rollout = Rollout.load(path)
    assert [step.weight for step in rollout.steps] == [0, 1, 5, 100]
    assert rollout.steps[0].min_positives == 1000
    assert rollout.analysis.attribution_window == 1800
    assert rollout.analysis.block_ms == 400
    assert rollout.after_full.watch == 86400
    assert rollout.guards.logloss_delta_max == "0.5%"
    assert rollout.guards.p99_ms_max is None
    assert rollout.holdout == 0.01
    assert Rollout.model_validate_json(rollout.model_dump_json()) == rollout


def test_a_file_without_shadow_step_gets_one() -> None:
    rollout = Rollout.parse(GOOD.replace("  - {shadow: true, min_positives: 1000}\n", ""))
    assert rollout.steps[0].shadow
    assert [step.weight for step in rollout.steps] == [0, 1, 5, 100]


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("weight: 5, ", "weight: 0.5,", 6, "steps[2].weight: 0.5 does not rise above 1"),
        ("0.05}", "0.15}", 6, "steps[2].bias_below: 0.15 is looser than 0.1"),
        ("weight: 100", "weight: 101", 7, "steps[3].weight"),
        ("guards: {", "guards: {auc_detla: 1, ", 8, "guards.auc_detla: unknown key"),
        ("bundle: r", "bundel: r", 2, "candidate.bundle: Field required"),
        ("20s, breach_window: 20s", "20s, breach_window: 5s", 9, "breach_window (5 s) must hold at least 20 blocks"),
        ("block: 0.4s", "block: soon", 9, "analysis.block: 'soon' is not a duration"),
        ("on_breach: abort", "on_breach: panic", 10, "on_breach"),
        ("5,   bias_below: 0.05", "5", 6, "needs bias_below"),
        ("  - {weight: 5,   bias_below: 0.05}", "  - {shadow: true}", 6, "only the first step can be a shadow step"),
        ("endpoint: ranker\n", "", 1, "endpoint: Field required"),
        ("guards: {auc_delta_min: -0.002, p99_ms_max: null}\n", "", 1, "guards: missing; name what must not get worse"),
        ("p99_ms_max: null", "segments: [{field: tab}]", 8, "guards.segments[0].values: Field required"),
        ("p99_ms_max: null", "segments: [{field: tab, values: []}]", 8, "guards.segments[0].values"),
        (
            "p99_ms_max: null",
            "segments: [{field: t, values: [1], logloss_delta_max: null}]",
            8,
            "asks for nothing",
        ),
    ],
)
def test_a_bad_file_is_refused_with_line_and_reason(tmp_path: Path, old: str, new: str, line: int, reason: str) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InvalidInput) as caught:
        Rollout.load(path)
    assert f"{path}:{line}:" in str(caught.value)
    assert reason in str(caught.value)


def test_what_is_no_rollout_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Rollout.load(tmp_path / "absent.yaml")
    with pytest.raises(InvalidInput, match="not YAML"):
        Rollout.parse("a: [")
    with pytest.raises(InvalidInput, match="is a mapping"):
        Rollout.parse("- 1")


def test_the_example_is_a_rollout_file() -> None:
    rollout = Rollout.load(Path(__file__).parents[3] / "examples" / "rollout.yaml")
    assert [step.weight for step in rollout.steps] == [0, 1, 5, 25, 50, 100]
