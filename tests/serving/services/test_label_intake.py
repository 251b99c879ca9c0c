"""Labels as a lane sees them: counted by endpoint and caller, with values that no stranger can add to."""

from __future__ import annotations

from pathlib import Path

from clocks import HandClock
from prometheus_client.parser import text_string_to_metric_families

from pipeline.traffic.log import FeedbackEntry, FeedbackReply, Outcome
from serving.services.label_intake import LabelIntake
from serving.telemetry import Telemetry, merged
from serving.telemetry.process import MAX_CALLERS


def counted(telemetry: Telemetry, folder: Path, name: str) -> dict[tuple[str, ...], float]:
    telemetry.write(folder)
    families = {family.name: family for family in text_string_to_metric_families(merged(folder).decode())}
    samples = [s for s in families[name].samples if not s.name.endswith(("_bucket", "_sum"))]
    return {tuple(v for k, v in sorted(s.labels.items()) if k != "process"): s.value for s in samples}


def test_labels_are_counted_by_endpoint_from_zero_on(tmp_path: Path) -> None:
    clock, telemetry = HandClock(), Telemetry("lane-0")
    intake = LabelIntake(clock, telemetry)
    telemetry.expect(["a", "b"], ["shop"])
    intake.expect(["a", "b"])
    before = counted(telemetry, tmp_path, "baton_feedback")
    assert before["b", "outcome", "accepted"] == before["unknown", "exposure", "invalid"] == 0
    assert counted(telemetry, tmp_path, "baton_label_delay_seconds") == {("a",): 0, ("b",): 0}
    entries = [
        FeedbackEntry("1", outcomes=[Outcome(0), Outcome(1)], exposed_all=True),
        FeedbackEntry("2", outcomes=[Outcome(0)]),
        FeedbackEntry("", outcomes=[Outcome(0)], request_id="r", endpoint="made up"),
    ]
    replies = [
        FeedbackReply((), ("accepted", "duplicate"), endpoint="a", delay_ms=20_000, late=True),
        FeedbackReply((), ("accepted",), endpoint="b", delay_ms=2_000),
        FeedbackReply((), ("invalid",), "no such prediction"),
    ]
    intake.replied(entries, replies, ["a", "b"], "shop")
    after = counted(telemetry, tmp_path, "baton_feedback")
    assert set(after) == set(before)
    assert {key: value for key, value in after.items() if value} == {
        ("a", "outcome", "accepted"): 1, ("a", "outcome", "duplicate"): 1, ("a", "exposed_all", "accepted"): 1,
        ("b", "outcome", "accepted"): 1, ("unknown", "outcome", "invalid"): 1,
    }  # fmt: skip
    assert counted(telemetry, tmp_path, "baton_labels_late") == {("a",): 1, ("b",): 0}
    assert counted(telemetry, tmp_path, "baton_label_delay_seconds") == {("a",): 1, ("b",): 1}
    refused = counted(telemetry, tmp_path, "baton_caller_failures")
    assert {key: value for key, value in refused.items() if value} == {
        ("shop", "duplicate", "label"): 1, ("shop", "invalid", "label"): 1,
    }  # fmt: skip
    told = intake.status()
    assert (told["a"].labelled.entries, told["a"].labelled.late, told["a"].shown.entries) == (1, 1, 1)
    assert (told["b"].labelled.entries, told["b"].labelled.late, told["b"].refused) == (1, 0, 1)
    clock.now += 3700
    assert (intake.status()["a"].labelled.entries, intake.status()["a"].refused) == (0, 0)


def test_no_stranger_adds_series(tmp_path: Path) -> None:
    telemetry = Telemetry("lane-0")
    intake = LabelIntake(HandClock(), telemetry)
    telemetry.expect(["a"])
    for number in range(3 * MAX_CALLERS):
        entry = FeedbackEntry("", outcomes=[Outcome(0)], request_id="r", endpoint=f"made up {number}")
        reply = FeedbackReply((), ("invalid",), "no", endpoint=f"gone {number}")
        intake.replied([entry], [reply], ["a"], f"certificate-{number}")
        telemetry.caller_failed(f"certificate-{number}", "request", "NOT_FOUND")
    assert {endpoint for endpoint, _, _ in counted(telemetry, tmp_path, "baton_feedback")} == {"a", "unknown"}
    callers = counted(telemetry, tmp_path, "baton_caller_failures")
    assert len({caller for caller, _, _ in callers}) == MAX_CALLERS + 2
    assert callers["others", "invalid", "label"] == 2 * MAX_CALLERS
