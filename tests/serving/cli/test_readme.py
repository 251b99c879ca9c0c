"""Commands and code in README and examples work as printed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml
from installation import Installation, running

from pipeline.hashing import hash_bag_column, hash_value
from pipeline.schema import FieldSpec, Schema
from serving.config import Config
from serving.rollout.spec import Rollout
from serving.wire.ranking import RankCodec

ROOT = Path(__file__).parents[3]


def readme_schema() -> Schema:
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert text is not None
    return Schema(fields=tuple(FieldSpec(**field) for field in yaml.safe_load(text[1])["fields"]))


def example() -> Any:
    spec = importlib.util.spec_from_file_location("rank_example", ROOT / "examples" / "rank.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_request_is_read_as_it_is_meant() -> None:
    schema = readme_schema()
    features = RankCodec(schema, 100).decode(example().request("ranker"))
    features.check(schema)
    rows = features.rows(schema)
    assert rows.ids[:, 0].tolist() == [hash_value("user_id", 42)] * 3
    assert rows.ids[:, 2].tolist() == [hash_value("item_id", i) for i in (7, 8, 9)]
    offsets, ids = hash_bag_column("tags", ["news,local", "sport", ""], ",")
    assert rows.bags[0].offsets.tolist() == offsets.tolist()
    assert rows.bags[0].values.tolist() == ids.tolist()


def test_the_example_files_are_valid() -> None:
    config = Config.load(ROOT / "examples" / "baton.yaml")
    rollout = Rollout.load(ROOT / "examples" / "rollout.yaml")
    endpoint = config.endpoints[rollout.endpoint]
    assert endpoint.candidate is not None
    assert endpoint.candidate.bundle == rollout.candidate.bundle


def test_files_that_the_readme_names_are_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_embedding_page_shows_a_configuration_that_holds_together(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "embeddings.md").read_text(), re.DOTALL)
    assert text is not None
    path = tmp_path / "baton.yaml"
    path.write_text(text[1])
    config = Config.load(path)
    assert config.embedding.tiers == ("device", "segment")
    assert config.worker is not None
    assert config.worker.rows == "float16"
    with running(Installation(tmp_path / "home", embedding=config.embedding.model_dump()).config) as lane:
        assert lane.lane.registry.wait(lambda snapshot: "ranker" in snapshot.endpoints, 20)
        tiers = lane.lane.registry.snapshot.endpoints["ranker"].stable.model.store.tiers
    assert [tier.name for tier in tiers] == ["device", "segment"]
