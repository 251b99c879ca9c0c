"""Killed with SIGKILL at random moments, a worker ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import worker_kills
from worker_world import fill, models, open_log

from transfer.checkpoint import Checkpoints


@pytest.mark.parametrize(
    ("seed", "kills", "requests"),
    [pytest.param(11, 2, 100, id="few"), pytest.param(20261121, 24, 700, id="many", marks=pytest.mark.long)],
)
def test_kills_cost_no_row_and_no_bit(seed: int, kills: int, requests: int, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    models(undisturbed)
    log = open_log(undisturbed)
    fill(log, requests)
    log.close()
    shutil.copytree(undisturbed, killed)
    here = Path(__file__).parent
    command = [sys.executable, str(here / "worker_kills.py"), str(killed), str(seed), str(kills)]
    # One thread in the parent as well: the order of sums is part of the result.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        worker_kills.live(undisturbed)
    finally:
        torch.set_num_threads(threads)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == kills, f"seed {seed}"
    expected, found = Checkpoints(undisturbed / "worker").load(), Checkpoints(killed / "worker").load()
    assert expected is not None
    assert found is not None
    place, arrays = expected
    other, other_arrays = found
    assert place.position == other.position > 0, f"seed {seed}"
    assert (place.batches, place.trained_rows, place.held_rows) == (other.batches, other.trained_rows, other.held_rows)
    for file, tensors in arrays.items():
        for key, tensor in tensors.items():
            # Which rows await publication depends on what was published before the kill, and on nothing that is learned.
            if not key.endswith("touched"):
                np.testing.assert_array_equal(tensor, other_arrays[file][key], err_msg=f"{file} {key}, seed {seed}")
