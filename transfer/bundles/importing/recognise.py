"""Recognition of a model from elsewhere: what a path holds, and the way by which it becomes a bundle.

Nothing here runs what a file holds. A pickle runs any code that its writer chose when it is loaded, so it is refused unless the
caller says that the source is trusted; a `.pt2` holds pickles beside its program; a `.so` is a program.
Next stops: `mlflow` (folders), `converting` (trees, pipelines, modules), `network` (ONNX).
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import BundleError, DataError, InvalidInput
from pipeline.model.probe import ProbeLimits
from transfer.bundles.importing.mlflow import MLMODEL, flavour_of
from transfer.bundles.importing.network import import_network
from transfer.bundles.importing.onnx_file import OnnxFile
from transfer.bundles.importing.parity import Check
from transfer.bundles.importing.spec import ImportSpec
from transfer.bundles.importing.writing import Fit, Imported

__all__ = ["import_model", "recognised"]

_BY_SUFFIX = {
    ".onnx": "onnx",
    **dict.fromkeys((".txt", ".lgb", ".lightgbm"), "lightgbm"),
    **dict.fromkeys((".json", ".ubj", ".xgb"), "xgboost"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), "sklearn"),
    **dict.fromkeys((".pt", ".pth"), "pytorch"),
}
_PICKLES = ("sklearn", "pytorch")
_REFUSED = {
    ".pt2": (
        "torch.export.load is no loading of data alone: it unpickles the constants and example inputs inside, which may run any "
        "code. Export the program to ONNX where it was made: torch.onnx.export(program, 'model.onnx')"
    ),
    ".skops": (
        "files of skops are not read. Save the pipeline with serialization_format='cloudpickle' and say --trust-pickle, or export "
        "it to ONNX"
    ),
    ".so": "it is a program, of AOTInductor for example, and is never loaded. Export the model to ONNX instead",
}


def recognised(path: Path, *, trust_pickle: bool = False) -> tuple[str, Path]:
    """What a path holds (onnx, lightgbm, xgboost, sklearn or pytorch), and the file of it.

    Raises:
        BundleError: it is not known, or not loaded from a source that is not trusted; the message says what to do.
    """
    if path.is_dir():
        if (path / MLMODEL).is_file():
            kind, file, pickled = flavour_of(path)
        else:
            found = sorted(path.glob("*.onnx"))
            if len(found) != 1:
                raise BundleError(
                    f"{path} is no MLflow model folder (there is no {MLMODEL}), and holds {len(found)} ONNX files; name the file",
                    path.name,
                )
            kind, file, pickled = "onnx", found[0], False
    else:
        if not path.is_file():
            raise BundleError(f"{path}: there is no such file", path.name)
        kind, file = _BY_SUFFIX.get(path.suffix, ""), path
        pickled = kind in _PICKLES
    if file.suffix in _REFUSED:
        raise BundleError(f"{file}: {_REFUSED[file.suffix]}", file.name)
    if not kind:
        known = ", ".join(sorted(_BY_SUFFIX))
        raise BundleError(
            f"{path}: what it holds is not known from its name; known are {known} and MLflow folders", path.name
        )
    if (pickled or file.suffix in (".pkl", ".pickle", ".joblib", ".pt", ".pth")) and not trust_pickle:
        raise BundleError(
            f"{file} is a pickle: loading it runs whatever code its writer chose. If you trust its source, say --trust-pickle; "
            "else export the model to ONNX where it was made",
            file.name,
        )
    return kind, file


def import_model(
    path: Path,
    spec: ImportSpec,
    out: Path,
    *,
    name: str,
    limits: ProbeLimits | None = None,
    check: Check | None = None,
    fit: Fit | None = None,
    trust_pickle: bool = False,
) -> Imported:
    """Write a model from elsewhere as a bundle; its kind is recognised.

    Args:
        path: a file, or an MLflow model folder.
        spec, out, name, limits, check, fit: as `transfer.bundles.importing.network.import_network`.
        trust_pickle: whether files may be loaded that may run any code.

    Raises:
        BundleError: it is not known, not trusted or cannot be used; nothing is left behind.
        DataError: the specification contradicts itself or the model.
        InvalidInput: a package that converts it is not installed.
    """
    kind, file = recognised(path, trust_pickle=trust_pickle)
    if kind == "onnx":
        source = OnnxFile.read(file)
    else:
        from transfer.bundles.importing.converting import converted

        try:
            source, spec = converted(kind, file, spec)
        except ImportError as error:
            raise InvalidInput(
                f"{file}: the package {error.name or error} is needed to convert it; install Baton with the extra `import`",
                "import",
            ) from None
        except (BundleError, DataError, InvalidInput):
            raise
        except Exception as error:  # whatever a library raises at a file that it cannot read or convert
            raise BundleError(f"{file} cannot be read or converted as {kind}: {str(error)[:500]}", file.name) from None
    return import_network(source, spec, out, name=name, limits=limits or ProbeLimits(), check=check, fit=fit)
