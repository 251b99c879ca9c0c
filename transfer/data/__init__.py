"""Click logs to learn from and to replay: read from files that a `dataset.yaml` describes, or generated.

`open_log` is the entry point. It gives a `Log`, which `log.py` defines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.schema import Schema
from transfer.data.generator import GeneratedLog
from transfer.data.log import Log, LogChunk, LogRequest
from transfer.data.reader import LogReader
from transfer.data.source import Dataset

__all__ = ["Dataset", "GeneratedLog", "Log", "LogChunk", "LogReader", "LogRequest", "open_log"]


def open_log(dataset: str | Path | None, cache: str | Path, *, like: Schema | None = None, **generator: Any) -> Log:
    """The log that a descriptor describes, or, without one, a generated log.

    Args:
        dataset: path of a `dataset.yaml`, or None.
        cache: directory of prepared files; made if absent.
        like: schema of the model that the rows are for: a field whose texts for missing values, or whose index, the
            descriptor does not say has those of the model.
        generator: arguments of `GeneratedLog`; used without a descriptor only.

    Raises:
        DataError: the descriptor or its files cannot be used.
        InvalidInput: an argument of the generator is out of range.
    """
    if dataset is None:
        return GeneratedLog(**generator)
    described = Dataset.load(dataset)
    return LogReader(described if like is None else described.like(like), Path(cache))
