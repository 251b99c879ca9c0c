"""`baton bundle import-remote`: a bundle for a model that stays on its server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput
from serving.cli.bundle_place import Out, place_of
from serving.cli.output import Output, emit, say
from serving.config import Config
from serving.config.remote import RemoteConfig

if TYPE_CHECKING:
    from transfer.bundles.remote.importing import RemoteFile, TensorThere

    Tensors = Mapping[str, TensorThere] | None

__all__ = ["import_remote"]


def import_remote(
    spec: Annotated[Path, typer.Argument(help="YAML: server, fields, inputs, outputs, codes; see docs/remote.md")],
    out: Out = None,
    name: Annotated[str, typer.Option(help="Bundle name; default: that of a directory NAME/N, else the file's")] = "",
    config: Annotated[
        Path, typer.Option("--config", help="Configuration file: its repository, and its section `remote`")
    ] = Path("baton.yaml"),
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Do not ask the server; then say all datatypes and shapes that are not usual"),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Parquet or CSV: a column per field and the model's own answer as score or expected; all rows are compared"
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference of log-odds that --check allows")] = 1e-3,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Make an arm of a model that stays on its server (Triton, KServe, MLServer, another Baton): it serves and teaches.

    Example: baton bundle import-remote triton.yaml --name ranker-triton
    """
    from serving.lane.remote import RemoteServers, on_this_machine
    from transfer.bundles.remote.importing import TensorThere
    from transfer.bundles.remote.importing import import_remote as run
    from transfer.bundles.remote.importing import load_remote_file as load

    place = place_of(out, name, config, spec.stem)
    file = load(spec)
    settings = (Config.load(config) if config.exists() else Config()).remote
    inputs = outputs = None
    if not offline:
        metadata = RemoteServers(settings, SystemClock()).metadata(file.remote)
        inputs, outputs = (
            {tensor.name: TensorThere(tensor.datatype, tuple(tensor.shape)) for tensor in tensors}
            for tensors in (metadata.inputs, metadata.outputs)
        )
    compared = 0 if check is None else _compare(check, tolerance, file, settings, inputs, outputs)
    with place.held():
        bundle = run(file, place.target, name=place.name, number=place.number or "1", inputs=inputs, outputs=outputs)
    made, server = bundle.remote_spec(), file.remote
    if not on_this_machine(server.target) and server.target not in settings.addresses:
        say(f"lanes may not call {server.target} yet: add it to remote.addresses in {config}")
    result: dict[str, object] = {
        "bundle": place.written(bundle),
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "server": server.address,
        "model": server.model,
        "inputs": ", ".join(made.inputs),
        "output": f"{made.output.name}[{made.output.column}], a {made.output.kind}",
        "asked": not offline,
        "rows compared": compared,
    }
    emit(output, result, f"wrote {place.written(bundle)}", tuple(result), [tuple(result.values())])


def _compare(
    rows: Path, tolerance: float, file: RemoteFile, settings: RemoteConfig, inputs: Tensors, outputs: Tensors
) -> int:
    """Ask the server for every row of a file and compare; the number of rows. Nothing is left behind.

    Raises:
        BundleError: a row's answer differs by more than the tolerance.
    """
    from serving.cli.remote_teacher import scorer_of
    from transfer.bundles.importing.parity import Check
    from transfer.bundles.remote.importing import import_remote as run

    if inputs is None:
        raise InvalidInput("--check asks the server for each row, so it does not go with --offline", "check")
    with TemporaryDirectory(prefix="baton-remote-") as folder:
        bundle = run(file, Path(folder) / "bundle", name="checked", inputs=inputs, outputs=outputs)
        logit = bundle.remote_spec().output.kind == "logit"
        with scorer_of(settings, bundle) as scorer:
            return Check(rows, tolerance).compare(bundle, logit=logit, source=file.remote.address, by=scorer).rows
