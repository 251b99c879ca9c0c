"""Pickles of a source that the caller trusts: the only place that loads a file which may run any code.

`recognise` calls the converters that come here only with `--trust-pickle`, which a person says of one file.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

__all__ = ["module_in", "unpickled"]


def unpickled(file: Path) -> Any:
    """The object in a pickle, or in a file of joblib."""
    if file.suffix == ".joblib":
        import joblib

        return joblib.load(file)
    with file.open("rb") as pickled:
        return pickle.load(pickled)


def module_in(file: Path) -> Any:
    """The module in a file of torch.save."""
    import torch

    return torch.load(file, map_location="cpu", weights_only=False)
