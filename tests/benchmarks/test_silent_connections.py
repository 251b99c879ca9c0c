"""A short form of `python -m benchmarks.silent_connections`: a kill works while strangers hold connections to all ports."""

from __future__ import annotations

import pytest

from benchmarks.silent_connections import PORTS, measure


@pytest.mark.long
@pytest.mark.parametrize("tls", [False, True])
def test_silent_connections_keep_no_operator_out(tls: bool) -> None:
    (row,) = measure(connections=400, limit=512, tls=tls, stands=[PORTS])
    assert row.descriptors < row.limit, row
    assert max(row.healthz_s, row.rest_s, row.machine_s) < 20, row  # answered at all; how fast is the script's to say
