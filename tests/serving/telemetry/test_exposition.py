"""Figures as scrapers read them: both formats, exemplars, Triton's names, what promtool has to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import SCHEMA, random_rows
from installation import Installation, eventually, running
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from pipeline.features import Features
from serving.client import RankingClient
from serving.telemetry import METRICS_DIR, Format, Telemetry, merged

TRACE = "0af7651916cd43dd8448eb211c80319c"


def written(folder: Path) -> None:
    for process in ("lane-0", "lane-1"):
        telemetry = Telemetry(process)
        telemetry.answered("ranker", "stable", "1", 0.004, 10, {"embed": 0.001})
        telemetry.answered("ranker", "stable", "1", 0.004, 10, {"embed": 0.001}, TRACE)
        telemetry.gauges("baton_odd", "Of odd names", ("name",), lambda: {('a "b" \\ # {c}\n',): 1.5})
        telemetry.write(folder)


def test_a_scraper_that_asks_for_openmetrics_gets_exemplars(tmp_path: Path) -> None:
    written(tmp_path)
    text = merged(tmp_path, Format.OPENMETRICS).decode()
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    assert families["baton_rows"].type == "counter"
    exemplars = {
        (s.labels["process"], s.labels["le"]): s.exemplar
        for s in families["baton_request_seconds"].samples
        if s.exemplar
    }
    assert set(exemplars) == {("lane-0", "0.005"), ("lane-1", "0.005")}
    assert all(e.labels == {"trace_id": TRACE} and e.value == 0.004 for e in exemplars.values())


def test_the_older_format_says_the_same_without_exemplars(tmp_path: Path) -> None:
    written(tmp_path)
    text = merged(tmp_path, Format.TEXT).decode()
    assert TRACE not in text
    old = {f.name: f for f in parser.text_string_to_metric_families(text)}
    new = {f.name: f for f in openmetrics.text_string_to_metric_families(merged(tmp_path, Format.OPENMETRICS).decode())}
    assert {name: f.type for name, f in old.items()} == {name: f.type for name, f in new.items()}
    for name, family in old.items():
        told = [(s.name, s.labels, s.value) for s in family.samples]
        assert told == [(s.name, s.labels, s.value) for s in new[name].samples]
    assert {s.labels["name"] for s in old["baton_odd"].samples} == {'a "b" \\ # {c}\n'}


def test_tritons_names_are_told_where_they_are_asked_for(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home", telemetry={"triton_names": True})
    rows = random_rows(np.random.default_rng(1), 20, made.tables)
    folder = made.home / METRICS_DIR
    with running(made.config) as lane, RankingClient(lane.target) as client:
        for _ in range(3):
            client.rank("ranker", SCHEMA, Features.from_context(SCHEMA, rows))
        eventually(lambda: b"nv_inference_count" in merged(folder), "the lane has written its figures")
    made.store.close()
    families = {f.name: f for f in parser.text_string_to_metric_families(merged(folder).decode())}
    told = {name: f.samples for name, f in families.items() if name.startswith("nv_inference_")}
    assert {f.type for name, f in families.items() if name in told} == {"counter"}
    values = {name: [s.value for s in samples if s.labels["model"] == "teacher"] for name, samples in told.items()}
    assert values["nv_inference_request_success"] == [3]
    assert values["nv_inference_request_failure"] == [0]
    assert values["nv_inference_count"] == [60]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    spent = sum(values[f"nv_inference_{part}_duration_us"][0] for part in parts)
    assert 0 < spent <= values["nv_inference_request_duration_us"][0]
    assert all(set(s.labels) >= {"process", "model", "version"} for samples in told.values() for s in samples)
    new = openmetrics.text_string_to_metric_families(merged(folder, Format.OPENMETRICS).decode())
    assert {f.name for f in new} >= set(told)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.TEXT),
        ("text/plain; version=0.0.4", Format.TEXT),
        (
            "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format.OPENMETRICS,
        ),
    ],
)
def test_the_format_is_the_one_asked_for(accept: str, form: Format) -> None:
    assert Format.of(accept) is form
