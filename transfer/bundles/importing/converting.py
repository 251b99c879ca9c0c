"""Conversion of trees, pipelines and modules to ONNX, with the codes of their categories.

Each way gives an ONNX model and a specification that knows more than the schema file did: in which order the model reads its
columns, and which number stands for which category. What the converters make of it is held against the model's own answers
by `--check`; they work with 32-bit floats where the model may have had 64.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import onnx

from pipeline.errors import BundleError, DataError
from pipeline.hashing import canonical
from transfer.bundles.importing.onnx_file import OnnxFile
from transfer.bundles.importing.spec import ImportSpec
from transfer.bundles.importing.trusted import module_in, unpickled

__all__ = ["converted"]

OPSET_VERSION = 15
_TRACED_ROWS = 4


def converted(kind: str, file: Path, spec: ImportSpec) -> tuple[OnnxFile, ImportSpec]:
    """A model of a kind (lightgbm, xgboost, sklearn, pytorch) as ONNX, and what its schema file did not say.

    Raises:
        ImportError: a package that converts it is not installed.
        BundleError, DataError: the model does not fit the fields. Also whatever a converter raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "lightgbm":
            return _lightgbm(file, spec)
        if kind == "xgboost":
            return _xgboost(file, spec)
        model = unpickled(file) if kind == "sklearn" else module_in(file)
        return _module(model, file, spec) if kind == "pytorch" else _estimator(model, file, spec)


def _lightgbm(file: Path, spec: ImportSpec) -> tuple[OnnxFile, ImportSpec]:
    if file.suffix in (".pkl", ".pickle", ".joblib"):
        model = unpickled(file)
        booster = getattr(model, "booster_", model)
    else:
        import lightgbm

        booster = lightgbm.Booster(model_file=str(file))
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    names = list(booster.feature_name())
    spec = _named(spec, names, file)
    codes = _pandas_codes(booster, names, file)
    labels = getattr(model, "classes_", None) if file.suffix in (".pkl", ".pickle", ".joblib") else None
    made = convert_lightgbm(
        model if labels is not None else booster,
        initial_types=[("x", FloatTensorType([None, len(names)]))],
        zipmap=False,
        target_opset=OPSET_VERSION,
    )
    known = {field: codes[name] for name, field in zip(names, spec.read, strict=True) if name in codes}
    return OnnxFile(made, file), _with_codes(spec, known)


def _pandas_codes(booster: Any, names: Sequence[str], file: Path) -> dict[str, dict[str, float]]:
    """Codes of the categories of a data frame, which LightGBM keeps beside the trees."""
    categories = getattr(booster, "pandas_categorical", None) or []
    if not categories:
        return {}
    said = re.search(r"^feature_infos=(.*)$", booster.model_to_string(num_iteration=1), re.M)
    infos = said[1].split(" ") if said else []
    which = [name for name, info in zip(names, infos, strict=False) if not info.startswith("[") and info != "none"]
    if len(which) != len(categories):
        raise DataError(
            f"{file}: {len(categories)} columns had categories and {len(which)} are split by them; give the codes of ids in the "
            "schema file",
            "codes",
        )
    return {
        name: {canonical(value): float(code) for code, value in enumerate(values)}
        for name, values in zip(which, categories, strict=True)
    }


def _xgboost(file: Path, spec: ImportSpec) -> tuple[OnnxFile, ImportSpec]:
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    if file.suffix in (".pkl", ".pickle", ".joblib"):
        model = unpickled(file)
        booster = model.get_booster() if hasattr(model, "get_booster") else model
    else:
        booster = xgboost.Booster(model_file=str(file))
    count = booster.num_features()
    names = list(booster.feature_names or [])
    spec = _named(spec, names, file, count)
    booster.feature_names = [f"f{i}" for i in range(count)]  # what the converter understands
    made = convert_xgboost(booster, initial_types=[("x", FloatTensorType([None, count]))], target_opset=OPSET_VERSION)
    return OnnxFile(made, file), spec


def _estimator(model: Any, file: Path, spec: ImportSpec) -> tuple[OnnxFile, ImportSpec]:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    _register()
    names = [str(name) for name in getattr(model, "feature_names_in_", [])]
    spec = _named(spec, names, file, getattr(model, "n_features_in_", None))
    kinds = {f.name: f.kind for f in spec.fields}
    by_code = {*spec.codes, *spec.index}
    if names and any(kinds[f] == "id" and f not in by_code for f in spec.read):
        types = {True: StringTensorType, False: FloatTensorType}
        initial = [
            (name, types[kinds[field] == "id" and field not in by_code]([None, 1]))
            for name, field in zip(names, spec.read, strict=True)
        ]
        spec = spec.model_copy(update={"inputs": dict(zip(names, spec.read, strict=True))})
    else:
        initial = [("x", FloatTensorType([None, len(spec.read)]))]
    made = to_onnx(model, initial_types=initial, target_opset={"": OPSET_VERSION, "ai.onnx.ml": 3})
    return OnnxFile(made, file), spec


def _register() -> None:
    """Teach the converter the trees of other packages that stand at the end of pipelines, where these are installed."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"], "raw_scores": [True, False]}
    try:
        from lightgbm import LGBMClassifier
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

        update_registered_converter(LGBMClassifier, "LightGbmLGBMClassifier", calculate_linear_classifier_output_shapes, convert_lightgbm, options=options)  # fmt: skip
    except ImportError:
        pass
    try:
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
        from xgboost import XGBClassifier

        update_registered_converter(XGBClassifier, "XGBoostXGBClassifier", calculate_linear_classifier_output_shapes, convert_xgboost, options=options)  # fmt: skip
    except ImportError:
        pass


def _module(model: Any, file: Path, spec: ImportSpec) -> tuple[OnnxFile, ImportSpec]:
    import inspect

    import torch

    if not isinstance(model, torch.nn.Module):
        raise BundleError(
            f"{file} holds a {type(model).__name__}, not a whole torch.nn.Module; save the module", file.name
        )
    taken = [n for n, p in inspect.signature(model.forward).parameters.items() if p.default is p.empty]
    kinds = {f.name: f.kind for f in spec.fields}
    single = len(taken) == 1 and taken[0] not in kinds and taken[0] not in spec.inputs
    fields = {name: spec.columns_of(name, single) for name in taken}
    unknown = next((name for name, mine in fields.items() if not {*mine} <= {*kinds}), None)
    if unknown is not None:
        raise DataError(
            f"{file}: argument {unknown!r} of the module's forward is no field; say under `inputs` of which fields it is made",
            unknown,
        )
    by_number = {
        n: torch.int64 if all(kinds[f] != "number" for f in mine) else torch.float32 for n, mine in fields.items()
    }
    example = tuple(torch.zeros(_TRACED_ROWS, len(mine), dtype=by_number[name]) for name, mine in fields.items())
    buffer = BytesIO()
    torch.onnx.export(
        model.eval(), example, cast(Any, buffer), dynamo=False, opset_version=17, input_names=taken, output_names=["answer"],
        dynamic_axes={name: {0: "n"} for name in (*taken, "answer")},
    )  # fmt: skip
    return OnnxFile(onnx.load_from_string(buffer.getvalue()), file), spec


def _named(spec: ImportSpec, names: Sequence[str], file: Path, count: int | None = None) -> ImportSpec:
    """The specification with the model's own order of columns, where it says none and the model's names are fields."""
    fields = {f.name for f in spec.fields}
    if spec.columns is None and names and set(names) <= fields:
        spec = spec.model_copy(update={"columns": tuple(names)})
    wanted = len(names) or count
    if wanted is not None and len(spec.read) != wanted:
        said = f": {', '.join(names)}" if names else ""
        raise DataError(
            f"{file}: the model reads {wanted} columns{said}; the schema file names {len(spec.read)}: {', '.join(spec.read)}. Name "
            "under `columns` the fields that stand for them, in the model's order",
            "columns",
        )
    return spec


def _with_codes(spec: ImportSpec, codes: Mapping[str, dict[str, float]]) -> ImportSpec:
    own = {name: known for name, known in codes.items() if name not in spec.codes and name not in spec.index}
    return spec.model_copy(update={"codes": {**spec.codes, **own}})
