"""Files that people write name all that is wrong with them at once, so that they are corrected once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.bundle.bundle import parse_manifest, read_manifest
from pipeline.bundle.remote_spec import parse_remote_spec
from pipeline.errors import BatonError, BundleError
from pipeline.schema import Schema
from serving.config import Config
from serving.rollout.spec import Rollout
from transfer.bundles.importing.spec import ImportSpec
from transfer.bundles.importing.tables.fields import fields_of
from transfer.bundles.remote.importing import load_remote_file
from transfer.data import Dataset

ITEM = {"name": "item", "role": "candidate"}
SCHEMA = Schema.model_validate({"fields": [ITEM]})
MANIFEST = {"name": "m", "version": "1", "architecture": "lr", "schema": {"fields": [{**ITEM, "width": 2}]}}
TABLE = {"width": 2, "rows": 0, "default": [0, 0]}
FILE = {"sha256": "0" * 64, "bytes": 0}
REMOTE = {"remote": {"address": "grpc://a:1", "model": "m"}, "outputs": {"click": {"name": "p"}}}
STEP = {"weight": 5, "bias_below": 0.05}
ROLLOUT = {"endpoint": "e", "candidate": {"bundle": "b"}, "guards": {}}


def of_bytes(path: Path) -> object:
    return parse_remote_spec(path.read_bytes(), str(path), SCHEMA)


Case = tuple[Callable[[Path], object], Any, tuple[str, ...]]
CASES: dict[str, Case] = {
    "manifest.json, fields": (
        read_manifest,
        {**MANIFEST, "version": "x", "tables": {"item": {**TABLE, "rows": -1}}, "files": {"../a": FILE}},
        ("version: String should match", "tables.item.rows: Input", "'../a' leaves the bundle's directory"),
    ),
    "manifest.json, between fields": (
        read_manifest,
        {**MANIFEST, "base": "3", "hyperparameters": {"a": "x" * (1 << 20)}},
        ("base and deltas go together", "table 'item', which is not listed", "hyperparameters are more than"),
    ),
    "remote.json": (
        of_bytes,
        {**REMOTE, "inputs": {"x": {"fields": ["no"], "dtype": "FP32", "shape": ["n"]}}, "fill": {"item": 1},
         "unknown": {"no": 1}},
        ("inputs.x: 'no' is not among", "fill: 'item' is not a field", "unknown: 'no' is not a field"),
    ),
    "spec of import-remote": (
        load_remote_file,
        {"remote": {"address": "http://x", "model": ""}, "fields": [ITEM], "inputs": "named", "outputs": {"c": "p"}, "more": 1},
        ("remote.address: ", "remote.model: ", "more: unknown key"),
    ),
    "schema of an import": (
        ImportSpec.load,
        {"fields": [{"name": "a b", "role": "candidate"}, {"name": "c", "role": "user"}], "mode": 1},
        ("fields.0.name: ", "fields.1.role: ", "mode: unknown key"),
    ),
    "schema of tables": (
        lambda path: fields_of(path, {}),
        {"fields": [{**ITEM, "separator": ",", "transform": "log1p"}, {"name": "c", "role": "user"}]},
        ("'item': separator and pooling belong", "'item': transform belongs", "field 'c': role: "),
    ),
    "fields named twice": (
        lambda path: fields_of(path, {}),
        {"fields": [{"name": name, "role": "candidate"} for name in "aabbccc"]},
        ("'a' is named twice", "'b' is named twice", "'c' is named 3 times"),
    ),
    "dataset.yaml": (
        Dataset.load,
        {"name": "d", "files": ["none-*.csv"], "time": {"column": "t", "unit": "s"}, "fields": [ITEM],
         "label": {"column": "y", "positive": [1]}, "x": 1, "sampling": {"keep": 2}},
        ("sampling.keep: ", "x: unknown key", "no file matches"),
    ),
    "baton.yaml": (
        Config.load,
        {"ray": {"min_replicas": 5, "max_replicas": 2, "fixed_port": True, "replicas_per_node": 2}, "hom": "x"},
        ("max_replicas 2 is below", "fixed_port: two replicas", "hom: unknown key"),
    ),
    "baton.yaml, one section": (
        Config.load,
        {"listen": {"host": "10.0.0.1", "feedback": "open", "grpc_port": 7000, "http_port": 7000}},
        ("are both 7000", "is not loopback", "feedback steers training"),
    ),
    "rollout.yaml": (
        Rollout.load,
        {**ROLLOUT, "steps": [STEP, {"weight": 5, "bias_below": 0.2}, {"shadow": True}]},
        ("steps[1].weight: 5 does not rise", "steps[1].bias_below: 0.2 is looser", "steps[2].shadow: only the first"),
    ),
    "rollout.yaml, one section": (
        Rollout.load,
        {**ROLLOUT, "steps": [STEP], "analysis": {"block": 0.0001, "breach_window": 0.001, "interval": 3}, "x": 1},
        ("block must be at least 1ms", "interval (3 s) is longer", "x: unknown key"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_all_that_is_wrong_with_a_file_is_said_at_once(kind: str, tmp_path: Path) -> None:
    read, content, wanted = CASES[kind]
    json_file = kind.split(",")[0].endswith(".json")
    path = tmp_path / ("file.json" if json_file else "file.yaml")
    path.write_text(json.dumps(content) if json_file else yaml.safe_dump(content))
    with pytest.raises(BatonError) as caught:
        read(path)
    said = str(caught.value)
    for fault in wanted:
        assert said.count(fault) == 1, said


def test_a_file_with_faults_without_end_has_a_message_with_one() -> None:
    files = {f"../{at}": FILE for at in range(5000)}
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps({**MANIFEST, "files": files}).encode(), "m.json")
    assert "m.json: 5,001 things to correct" in str(caught.value)
    assert len(str(caught.value)) < 20_000
