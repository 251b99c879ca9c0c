"""Command `baton bundle`: inspect and verify a model version on disk, import a model from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.bundle.bundle import WARMUP, Bundle, Manifest
from pipeline.bundle.remote_spec import CODES
from pipeline.clock import SystemClock
from pipeline.errors import BundleError
from pipeline.model.warmup import read_warmup
from serving.cli.bundle_place import BundlePlace, ConfigFile, Out, place_of
from serving.cli.import_remote import import_remote
from serving.cli.output import Output, emit, say
from serving.cli.publish import publish
from transfer.architecture_names import is_known, unknown_architecture

if TYPE_CHECKING:
    from transfer.bundles.importing.writing import Imported

__all__ = ["app"]

app = typer.Typer(help="Inspect model versions on disk; import models from elsewhere.", no_args_is_help=True)

app.command()(publish)
app.command("import-remote")(import_remote)

Folder = Annotated[Path, typer.Argument(help="The bundle's directory, for example .baton/bundles/ranker-deepfm/1")]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]


@app.command()
def inspect(folder: Folder, output: Format = Output.table) -> None:
    """Show what a bundle is: architecture, fields, tables, calibration, metrics, lineage.

    Example: baton bundle inspect .baton/bundles/ranker-deepfm/1
    """
    bundle = Bundle.open(folder, verify=False)
    m = bundle.manifest
    if output is Output.json:
        emit(output, m.model_dump(mode="json", by_alias=True), "", (), ())
        return
    facts = [
        ("name", m.name),
        ("version", m.version),
        ("architecture", m.architecture),
        *((("note", note),) if (note := _foreign(m)) else ()),
        ("lineage", f"base {m.base} + deltas {', '.join(m.deltas)}" if m.base else "base"),
        ("parent", m.parent or "none"),
        (
            "gate",
            "not judged" if m.gate is None else "passed" if m.gate.passed else "refused: " + "; ".join(m.gate.reasons),
        ),
        ("learns on", "no, frozen" if bundle.frozen and m.base is None else "yes"),
        ("calibration", f"alpha {m.calibration.alpha:.4f}, beta {m.calibration.beta:+.4f}"),
        *(
            (
                f"{name} at birth",
                "-" if value is None else f"{value:,.0f}" if value.is_integer() else f"{value:.4f}",
            )
            for name, value in sorted(m.metrics.items())
        ),
        ("bytes", f"{sum(f.bytes for f in m.files.values()):,}"),
    ]
    emit(output, None, f"{m.name} {m.version}", ("what", "value"), facts)
    fields = [
        (f.name, f.role, f.kind, f.table_name if f.kind != "number" else None, f.width,
         m.tables[f.table_name].rows if f.table_name in m.tables and f.kind != "number" else None, f.transform or f.pooling)
        for f in m.model_schema.fields
    ]  # fmt: skip
    emit(output, None, "fields", ("field", "role", "kind", "table", "width", "rows", "transform/pooling"), fields)


def _foreign(manifest: Manifest, own: Collection[str] = ()) -> str:
    """What is to be known of an architecture that is neither of the zoo nor of `own`; "" for any other."""
    if is_known(manifest.architecture, own):
        return ""
    return f"{unknown_architecture(manifest.architecture)}. Lanes serve the bundle's network, which needs no class"


SchemaFile = Annotated[Path, typer.Option(help="YAML: fields, columns, codes, see docs/import.md")]
BundleName = Annotated[str, typer.Option(help="Bundle name; default: that of a directory NAME/N, else the file's")]
Seconds = Annotated[
    float, typer.Option(min=1, help="Processor time in seconds that loading and trying the network may take")
]
CheckFile = Annotated[
    Path | None,
    typer.Option(
        help="Parquet or CSV: a column per field and the model's own answer as score or expected; all rows are compared"
    ),
]
Tolerance = Annotated[float, typer.Option(min=0, help="Largest difference of log-odds that --check allows")]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load files that may run any code, from a source that you trust")
]


@app.command("import")
def import_model(
    path: Annotated[
        Path,
        typer.Argument(help="An ONNX file, an MLflow model folder, a LightGBM or XGBoost file, a scikit-learn pickle"),
    ],
    schema: SchemaFile,
    out: Out = None,
    name: BundleName = "",
    config: ConfigFile = Path("baton.yaml"),
    check: CheckFile = None,
    tolerance: Tolerance = 1e-3,
    calibrate: Annotated[Path | None, typer.Option(help="dataset.yaml: fit alpha and beta on its labels")] = None,
    trust_pickle: TrustPickle = False,
    timeout: Seconds = 20.0,
    output: Format = Output.table,
) -> None:
    """Make a teacher of a model from elsewhere: its kind is recognised, its tables become the bundle's, its answers are
    compared.

    Example: baton bundle import mlflow-model --schema schema.yaml --out teacher --check rows.parquet
    """
    from transfer.bundles.importing.recognise import import_model as run

    place = place_of(out, name, config, path.stem)
    _import(run, path, schema, place, check, tolerance, calibrate, timeout, output, trust_pickle=trust_pickle)


@app.command("import-onnx")
def import_onnx(
    file: Annotated[Path, typer.Argument(help="An ONNX network, or a tree or linear model converted to ONNX")],
    schema: SchemaFile,
    out: Out = None,
    name: BundleName = "",
    config: ConfigFile = Path("baton.yaml"),
    check: CheckFile = None,
    tolerance: Tolerance = 1e-3,
    timeout: Seconds = 20.0,
    output: Format = Output.table,
) -> None:
    """Make a frozen teacher of an ONNX file: as `import`, of this one kind.

    Example: baton bundle import-onnx model.onnx --schema schema.yaml --out teacher
    """
    from transfer.bundles.importing.network import import_onnx as run

    place = place_of(out, name, config, file.stem)
    _import(run, file, schema, place, check, tolerance, None, timeout, output)


def _import(
    run: Callable[..., Imported],
    path: Path,
    schema: Path,
    place: BundlePlace,
    check: Path | None,
    tolerance: float,
    calibrate: Path | None,
    timeout: float,
    output: Output,
    **more: bool,
) -> None:
    from pipeline.model.probe import ProbeLimits
    from transfer.bundles.importing.parity import Check
    from transfer.bundles.importing.spec import ImportSpec
    from transfer.quality.calibrating import fit_bundle

    spec = ImportSpec.load(schema)
    compared = None if check is None else Check(check, tolerance)
    fit = None if calibrate is None else partial(fit_bundle, data=calibrate)
    with place.held(), place.staged() as folder:
        imported = run(
            path, spec, folder, name=place.name, limits=ProbeLimits(timeout), check=compared, fit=fit, **more
        )
        bundle = place.put(imported.bundle, SystemClock().wall_ms())
    written = place.written(bundle)
    for warning in imported.warnings:
        say(f"warning: {warning}")
    m, parity = bundle.manifest, imported.parity
    result: dict[str, object] = {
        "bundle": written,
        "name": m.name,
        "version": m.version,
        "fields": len(m.model_schema.fields),
        "read": ", ".join(m.hyperparameters["columns"]),
        "codes": sum(table.rows for table in m.tables.values()),
        "no score without": ", ".join(imported.missing),
        "rows compared": 0 if parity is None else parity.rows,
        "largest difference": None if parity is None else parity.worst_probability,
        "calibration": f"alpha {m.calibration.alpha:.4f}, beta {m.calibration.beta:+.4f}",
    }
    emit(output, result, f"wrote {written}", tuple(result), [tuple(result.values())])


@app.command()
def verify(
    folder: Folder,
    arch: Annotated[
        list[str] | None,
        typer.Option(help="Class of your own that the bundle may name, as package.module:Class; nothing is imported"),
    ] = None,
    output: Format = Output.table,
) -> None:
    """Check every file against its hash, the network's graph, tables, warm-up rows and training state, and the name of
    its architecture; exit code 1 when anything is wrong.

    Example: baton bundle verify .baton/bundles/ranker-deepfm/1
    """
    bundle = Bundle.open(folder, verify=True)
    m = bundle.manifest
    if m.servable:
        for table in m.tables:
            bundle.table(table)
        if WARMUP in m.files:
            read_warmup(bundle.file(WARMUP), m.model_schema)
        for name in m.files:
            if name.startswith(("training/", CODES)):
                bundle.tensors(name)
    if note := _foreign(m, arch or ()):
        raise BundleError(f"{folder}: {note}", "architecture")
    result = {"bundle": m.name, "version": m.version, "files": len(m.files), "ok": True}
    emit(output, result, "", ("bundle", "version", "files", "ok"), [tuple(result.values())])
