"""Command `baton bundle`: inspect and verify a model version on disk, import a model from elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from pipeline.bundle.bundle import WARMUP, Bundle, Manifest
from pipeline.errors import BundleError
from pipeline.model.warmup import read_warmup
from serving.cli.output import Output, emit, say
from transfer.architecture_names import is_known, unknown_architecture

__all__ = ["app"]

app = typer.Typer(help="Inspect model versions on disk; import models from elsewhere.", no_args_is_help=True)

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
         m.tables[f.table_name].rows if f.kind != "number" else None, f.transform or f.pooling)
        for f in m.model_schema.fields
    ]  # fmt: skip
    emit(output, None, "fields", ("field", "role", "kind", "table", "width", "rows", "transform/pooling"), fields)


def _foreign(manifest: Manifest, own: Collection[str] = ()) -> str:
    """What is to be known of an architecture that is neither of the zoo nor of `own`; "" for any other."""
    if is_known(manifest.architecture, own):
        return ""
    return f"{unknown_architecture(manifest.architecture)}. Lanes serve the bundle's network, which needs no class"


@app.command("import-onnx")
def import_onnx(
    file: Annotated[Path, typer.Argument(help="An ONNX network, or a tree or linear model converted to ONNX")],
    schema: Annotated[Path, typer.Option(help="YAML: fields, columns, codes, see docs/transfer.md")],
    out: Annotated[Path, typer.Option(help="Directory of the bundle; must not exist yet")],
    name: Annotated[str, typer.Option(help="Bundle name; default: the file's")] = "",
    timeout: Annotated[
        float, typer.Option(min=1, help="Processor time in seconds that loading and trying the network may take")
    ] = 20.0,
    output: Format = Output.table,
) -> None:
    """Make a frozen teacher of a model from elsewhere: it serves and teaches, and does not learn.

    Example: baton bundle import-onnx model.onnx --schema schema.yaml --out teacher
    """
    from pipeline.model.probe import ProbeLimits
    from transfer.bundles.import_onnx import ImportSpec
    from transfer.bundles.import_onnx import import_onnx as run

    imported = run(file, ImportSpec.load(schema), out, name=name or file.stem, limits=ProbeLimits(timeout))
    for warning in imported.warnings:
        say(f"warning: {warning}")
    m = imported.bundle.manifest
    result: dict[str, object] = {
        "bundle": str(out),
        "name": m.name,
        "fields": len(m.model_schema.fields),
        "read": ", ".join(m.hyperparameters["columns"]),
        "codes": sum(table.rows for table in m.tables.values()),
        "no score without": ", ".join(imported.missing),
    }
    emit(output, result, f"wrote {out}", tuple(result), [tuple(result.values())])


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
            if name.startswith("training/"):
                bundle.tensors(name)
    if note := _foreign(m, arch or ()):
        raise BundleError(f"{folder}: {note}", "architecture")
    result = {"bundle": m.name, "version": m.version, "files": len(m.files), "ok": True}
    emit(output, result, "", ("bundle", "version", "files", "ok"), [tuple(result.values())])
