"""The parameter `timeout` of Open Inference: a deadline, or a queue timeout where the policy lets requests set one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from handmade import SCHEMA, random_rows
from installation import Installation, running
from jam import Jam
from tritonclient.utils import InferenceServerException

from pipeline.features import Features


@pytest.mark.parametrize(("allow", "code"), [(False, "DEADLINE_EXCEEDED"), (True, "RESOURCE_EXHAUSTED")])
def test_what_a_timeout_means_is_a_setting(tmp_path: Path, allow: bool, code: str) -> None:
    made = Installation(tmp_path / "home", engine={"workers": 1, "allow_timeout_override": allow})
    rows = Features.from_context(SCHEMA, random_rows(np.random.default_rng(1), 20, made.tables)).rows(SCHEMA)
    inputs = []
    bags = [b.values[b.offsets[:-1].clip(max=len(b.values) - 1)].reshape(-1, 1) for b in rows.bags]
    for name, kind, values in [
        ("ids", "INT64", rows.ids),
        ("numbers", "FP32", rows.numbers),
        *((f"bag:{f.name}", "INT64", bag) for f, bag in zip(SCHEMA.bags, bags, strict=True)),
    ]:
        inputs.append(triton.InferInput(name, values.shape, kind))
        inputs[-1].set_data_from_numpy(np.ascontiguousarray(values))
    with running(made.config) as lane:
        jam = Jam(lane)
        client = triton.InferenceServerClient(lane.target)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("ranker", inputs, timeout=50_000, client_timeout=60)
        client.close()
        jam.release()
    made.store.close()
    assert code in str(caught.value.status())
