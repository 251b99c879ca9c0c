"""Killed with SIGKILL at random moments, a worker ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worker_world import fill, models, open_log

from transfer.online.checkpoint import Checkpoints


@pytest.mark.long
@pytest.mark.parametrize(("seed", "kills", "requests"), [(20261121, 24, 700)])
def test_kills_cost_no_row_and_no_bit(seed: int, kills: int, requests: int, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    models(undisturbed)
    log = open_log(undisturbed)
    fill(log, requests)
    log.close()
    shutil.copytree(undisturbed, killed)
    # Both in a process that begins with one thread: the order of sums is part of the result.
    for folder, times in ((undisturbed, 0), (killed, kills)):
        command = [
            sys.executable,
            str(Path(__file__).parents[2] / "support" / "worker_kills.py"),
            str(folder),
            str(seed),
            str(times),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": ""}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert ended.returncode == 0, ended.stderr
        assert int(ended.stdout) == times, f"seed {seed}"
    expected, found = Checkpoints(undisturbed / "worker").load(), Checkpoints(killed / "worker").load()
    assert expected is not None
    assert found is not None
    place, arrays = expected
    other, other_arrays = found
    assert place.position == other.position > 0, f"seed {seed}"
    assert (place.batches, place.trained_rows, place.held_rows) == (other.batches, other.trained_rows, other.held_rows)
    for file, tensors in arrays.items():
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, other_arrays[file][key], f"{file} {key}, seed {seed}")
