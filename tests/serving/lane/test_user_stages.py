"""Stages that a user names in baton.yaml: the shipped example, in a real lane."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clocks import HandClock
from handmade import SCHEMA, random_rows, random_tables
from installation import Installation, running

from pipeline.engine.batching import BatchPolicy, QueuePolicy
from pipeline.errors import InvalidInput
from pipeline.event import Event
from pipeline.features import Features
from pipeline.stage_contract import check_stage
from pipeline.stages.record import Record
from pipeline.traffic.record import unpack
from serving.client import RankingClient
from serving.config import Config, EngineConfig, StageConfig
from serving.lane.stages import lane_plan
from serving.wiring.traffic import open_traffic_log

DOCS = Path(__file__).parents[3] / "docs" / "pipeline.md"
EXAMPLES = Path(__file__).parents[3] / "examples"
SPREAD = {"class": "spread:Spread", "args": {"field": "item", "keep": 0.5}}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def steps_of(*stages: dict[str, object]) -> list[str]:
    record = Record(HandClock(0.0), lambda _: True)
    return [s.name for s in lane_plan(record, [StageConfig.model_validate(s) for s in stages]).compile().steps]


def candidates(*items: int) -> Features:
    rows = random_rows(np.random.default_rng(0), len(items), random_tables(1))
    rows.ids[:, 1] = items
    return Features.from_context(SCHEMA, rows)


class Known:
    """The part of a model that the example uses."""

    schema = SCHEMA


def test_the_example_keeps_the_contract() -> None:
    from spread import Spread

    def event(*items: int) -> Event:
        scores = np.linspace(0.9, 0.1, len(items), dtype=np.float32)
        return Event(features=candidates(*items), scores=scores, model=Known())  # type: ignore[arg-type]

    check_stage(lambda: Spread("item", 0.5), lambda: [event(1, 2, 1, 1), event(3), event(5, 5)])
    spread = event(1, 2, 1, 1)
    Spread("item", 0.5).run(spread)
    assert spread.scores is not None
    np.testing.assert_allclose(spread.scores, np.linspace(0.9, 0.1, 4) * [1, 1, 0.5, 0.25], rtol=1e-6)
    with pytest.raises(InvalidInput, match="'user' is no id field of the candidates"):
        Spread("user").run(event(1, 2))


def test_a_stage_stands_where_its_values_say() -> None:
    assert steps_of() == ["decode", "embed", "infer", "record"]
    assert steps_of(SPREAD) == ["decode", "embed", "infer", "record", "spread", "finite"]


def test_clients_get_the_rewritten_scores_and_the_log_those_of_the_model(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home", stages=[SPREAD])
    features = candidates(7, 7, 8)
    with running(made.config) as lane, RankingClient(lane.target) as client:
        answer = client.rank("ranker", SCHEMA, features, timeout=60)
        served = lane.lane.registry.snapshot.endpoints["ranker"].stable
        assert served is not None
        predicted = served.model.score(features)
    log = open_traffic_log(made.config)
    recorded = [unpack(blob).scores for _, blob in log.unscored("", 1 << 62).found]
    log.close()
    made.store.close()
    np.testing.assert_array_equal(recorded, [predicted])
    less = predicted.copy()
    less[np.argmin(predicted[:2])] *= 0.5
    np.testing.assert_allclose(answer.scores, less, rtol=1e-6)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"class": "nowhere:Spread"}, "stages.0.class 'nowhere:Spread' cannot be imported: No module named 'nowhere'"),
        ({"class": "spread:Other"}, "cannot be imported: module 'spread' has no attribute 'Other'"),
        ({"class": "spread:Spread"}, "stages.0.args: spread:Spread refuses them: .*'field'"),
        ({"class": "spread:Spread", "args": {"field": "item", "keep": 2}}, "refuses them: keep is in 0..1"),
        ({"class": "pathlib:Path"}, "stages.0.class 'pathlib:Path' is no stage: it lacks"),
    ],
)
def test_a_stage_that_cannot_be_made_is_refused_by_its_setting(stage: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        steps_of(stage)


def test_a_class_is_named_as_package_module_and_class(tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text('stages: [{class: "no colon"}]')
    with pytest.raises(InvalidInput, match=r"stages\.0\.class"):
        Config.load(file)
    file.write_text('stages: [{class: "spread:Spread", args: {field: item}}]')
    assert Config.load(file).stages[0].class_ == "spread:Spread"


def test_what_the_documentation_shows_works() -> None:
    text = DOCS.read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        Config.model_validate(yaml.safe_load(block))
    shown: dict[str, Any] = {"np": np, "Event": Event}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], shown)

    def event(n: int) -> Event:
        return Event(scores=np.linspace(0, 1, n, dtype=np.float32), features=candidates(*range(1, n + 1)))

    check_stage(lambda: shown["Boost"](2.0), lambda: [event(5), event(1), event(300)])


def test_every_setting_of_queue_and_batches_can_be_set_and_is_documented() -> None:
    text = DOCS.read_text()
    names = {field.name for kind in (BatchPolicy, QueuePolicy) for field in fields(kind)} - {"default_queue_policy"}
    assert names <= set(EngineConfig.model_fields)
    for name in names:
        assert f"`{name}`" in text, name
