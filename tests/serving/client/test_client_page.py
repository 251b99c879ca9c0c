"""Every example of docs/client.md, run in the order of the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane

from pipeline.features import Features
from serving.client import RankingClient

PAGE = Path(__file__).parents[3] / "docs" / "client.md"


def test_the_page_runs(
    served: tuple[Installation, RunningLane], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, lane = served
    authority = trustme.CA()
    ours = authority.issue_cert("caller@example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "caller.pem")
    ours.private_key_pem.write_to_path(tmp_path / "caller.key")
    (tmp_path / "baton.token").write_text("baton_k_s\n")
    monkeypatch.chdir(tmp_path)
    rows = random_rows(np.random.default_rng(3), 20, made.tables)
    names: dict[str, Any] = {
        "target": lane.target,
        "other_target": lane.target,
        "schema": SCHEMA,
        "rows": rows,
        "features": Features.from_context(SCHEMA, rows.slice(0, 3)),
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, example {number}", "exec"), names)
    finally:
        client = names.get("client")
        assert isinstance(client, RankingClient)
        client.close()
    assert names["options"].authorization() == [("authorization", "Bearer baton_k_s")]
    assert names["options"].tls.credentials()
    assert len(names["answer"].scores) == 3
