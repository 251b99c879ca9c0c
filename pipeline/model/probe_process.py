"""Probe process: loads the networks of a version and proves them, within limits of processor time and memory.

Run by `pipeline.model.probe` as `python -m pipeline.model.probe_process`. A foreign network may loop for ever, take all
memory or crash ONNX Runtime; here that costs nobody else anything. It reads one npz archive from standard input and writes
one JSON object. It imports little, since every new version waits for it.
"""

from __future__ import annotations

import ctypes
import io
import json
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model.proof import Run, Sample, Unproved, prove

__all__ = ["main", "opened"]

_PDEATHSIG_OPTION = 1
_OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "out of memory")


def main() -> None:
    """Read the order, prove, answer."""
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    order = json.loads(arrays.pop("order").tobytes())
    _step_aside(order["seconds"])
    sys.stdout.write(json.dumps(_answer(order, arrays)))


def _answer(order: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime  # noqa: F401 - before the limit of memory, which is for networks alone

    places = {name.removeprefix("places_"): arrays.pop(name) for name in list(arrays) if name.startswith("places_")}
    sample = Sample(arrays, places, arrays.pop("request"), order["whole"])
    _limit_memory(order["bytes"])
    taken, peak = _held("VmRSS"), _held("VmHWM")
    try:
        networks = {file: opened(path) for file, path in order["files"].items()}
        unanswered = prove(networks, sample).unanswered
        return {"unanswered": unanswered, "bytes": after - taken if (after := _held("VmHWM")) > peak else 0}
    except Unproved as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"died": "memory"}
    except Exception as error:  # ONNX Runtime raises its own types
        if any(words in str(error) for words in _OUT_OF_MEMORY):
            return {"died": "memory"}
        return {"refused": f"ONNX Runtime cannot run it: {error}"}


def opened(network: str | bytes) -> tuple[list[str], Run]:
    """The names of a network's inputs, and what runs it; of a file's path or its bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return [value.name for value in session.get_inputs()], lambda feeds: session.run(["logit"], feeds)[0]


def _step_aside(seconds: float) -> None:
    """End with the parent, after `seconds` of processor time, and before any other process where memory runs out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG_OPTION, int(signal.SIGKILL), 0, 0, 0)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    whole = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory(count: int) -> None:
    """Allow `count` bytes of data beyond what the interpreter and ONNX Runtime have taken."""
    taken = _held("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (taken + count, taken + count))


def _held(what: str) -> int:
    """Bytes of memory of this process, by a line of /proc/self/status; 0 where there is none."""
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[what].split()[0]) << 10
    return 0


if __name__ == "__main__":
    main()
