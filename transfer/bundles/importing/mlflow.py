"""MLflow model folder: the file MLmodel says which flavours of a model lie beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.documents import parse_yaml
from pipeline.errors import BundleError

__all__ = ["MLMODEL", "flavour_of"]

MLMODEL = "MLmodel"
MLMODEL_BYTES = 1 << 20
_FLAVOURS = ("onnx", "lightgbm", "xgboost", "sklearn", "pytorch")
"""In order of preference where a folder has several."""
_DATA_KEYS = {
    "onnx": "data",
    "lightgbm": "data",
    "xgboost": "data",
    "sklearn": "pickled_model",
    "pytorch": "model_data",
}
_PICKLES = (".pkl", ".pickle", ".joblib", ".pth", ".pt", ".skops")


def flavour_of(folder: Path) -> tuple[str, Path, bool]:
    """The flavour of a folder that is imported, its file, and whether loading it may run code.

    Raises:
        BundleError: MLmodel cannot be read, there is no flavour that is imported, or its file lies outside the folder.
    """
    place = folder / MLMODEL
    try:
        if place.stat().st_size > MLMODEL_BYTES:
            raise BundleError(f"{place} has more than {MLMODEL_BYTES:,} bytes", MLMODEL)
        said = parse_yaml(place.read_text("utf-8"))
        flavours = said["flavors"]
        names = sorted(flavours)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BundleError(f"{place}: there are no flavors in it: {error}", MLMODEL) from None
    kind = next((name for name in _FLAVOURS if isinstance(flavours.get(name), Mapping)), None)
    if kind is None:
        raise BundleError(
            f"{place}: its flavors are {', '.join(map(str, names))}; imported are {', '.join(_FLAVOURS)}. Log the model with one "
            "of these, mlflow.onnx for example",
            MLMODEL,
        )
    flavour: Mapping[str, Any] = flavours[kind]
    where = flavour.get(_DATA_KEYS[kind]) or flavour.get("data")
    if not isinstance(where, str):
        raise BundleError(f"{place}: flavor {kind} has no {_DATA_KEYS[kind]}, the name of its file", MLMODEL)
    root = os.path.realpath(folder)
    file = os.path.realpath(os.path.join(root, where))
    if not file.startswith(root + os.sep):
        raise BundleError(f"{place}: flavor {kind} names {where!r}, outside the folder", MLMODEL)
    if kind == "pytorch" and os.path.isdir(file):
        program = os.path.join(file, "model.pt2")  # what MLflow 3 writes unless told otherwise; refused by its name
        file = program if os.path.isfile(program) else os.path.join(file, "model.pth")
    if not os.path.isfile(file):
        raise BundleError(f"{place}: flavor {kind} names {where!r}, which is no file of the folder", MLMODEL)
    # A wrapper of scikit-learn's interface is a pickle whatever the file is called.
    wrapped = kind in ("sklearn", "pytorch") or file.endswith(_PICKLES)
    return kind, Path(file), wrapped
