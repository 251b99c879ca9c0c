"""`baton score`: score the rows of a log or a file with a bundle, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import typer

from pipeline.bundle.bundle import Bundle
from pipeline.disk import replacing
from pipeline.errors import InvalidInput
from serving.cli.output import Output, emit, say
from serving.config import Config
from serving.wiring.bundles import open_repository

__all__ = ["score"]

ADDED = ("score", "logit")


def score(
    bundle: Annotated[
        str, typer.Option(help="The bundle's directory; or NAME or NAME/VERSION of the repository of --config")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="dataset.yaml; or a Parquet or CSV file with a column per field, which needs no label and no time"
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .csv")],
    config: Annotated[
        Path, typer.Option("--config", help="Configuration file of the repository, where --bundle is a name")
    ] = Path("baton.yaml"),
    cache: Annotated[Path, typer.Option(help="Folder for what sorting a log spills to disk")] = Path(".baton/cache"),
    output: Annotated[
        Output, typer.Option("-o", "--output", help="table for people, json for programs")
    ] = Output.table,
) -> None:
    """Score every row and write a row for each: its keys, its label where there is one, `score` (calibrated) and `logit`.

    Of a dataset.yaml the keys are time, request, routing_key and the candidate's ids; of a plain file all columns.

    Example: baton score --bundle home/bundles/ranker/2 --data dataset.yaml --out scores.parquet
    """
    from pipeline.model.frame import rows_of
    from pipeline.model.scorer import Scorer
    from transfer.data import Dataset
    from transfer.data.keyed import keyed_rows, plain_rows

    described = data.suffix in (".yaml", ".yml")
    if not described and data.suffix not in (".parquet", ".csv"):
        raise InvalidInput(f"--data {data}: dataset.yaml, .parquet or .csv was expected", "data")
    rows = finite = 0
    total = labels = 0.0
    with Scorer(_found(bundle, config)) as scorer, _writer(out) as write:
        parts = keyed_rows(Dataset.load(data).like(scorer.schema), cache) if described else plain_rows(data)
        for part in parts:
            logits = scorer.logits(rows_of(part.frame, scorer.schema))
            scores = scorer.scores(logits)
            keys = part.keys
            if clash := [name for name in ADDED if name in keys.column_names]:
                keys = keys.rename_columns([f"own_{name}" if name in clash else name for name in keys.column_names])
            write(keys.append_column("score", pa.array(scores)).append_column("logit", pa.array(logits)))
            rows, finite = rows + len(scores), finite + int(np.isfinite(scores).sum())
            total += float(np.nansum(scores, dtype=np.float64))
            if described:
                labels += float(np.nansum(keys.column("label").to_numpy(), dtype=np.float64))
        manifest = scorer.bundle.manifest
    if rows > finite:
        say(f"{rows - finite} rows have no finite score: they are NaN in the file")
    result: dict[str, Any] = {
        "file": str(out),
        "bundle": f"{manifest.name}/{manifest.version}",
        "rows": rows,
        "mean_score": total / finite if finite else None,
        **({"mean_label": labels / rows if rows else None} if described else {}),
    }
    emit(output, result, "", tuple(result), [tuple(result.values())])


def _found(bundle: str, config: Path) -> Bundle:
    if Path(bundle).is_dir():
        return Bundle.open(Path(bundle))
    name, _, version = bundle.partition("/")
    if not config.exists():
        raise InvalidInput(
            f"--bundle {bundle}: there is no such directory, and no {config} that names a repository", "bundle"
        )
    return open_repository(Config.load(config)).open(name, version, verify=True)


@contextmanager
def _writer(out: Path) -> Iterator[Callable[[pa.Table], None]]:
    """What writes tables to a file, which appears once it is complete, for its owner alone."""
    kinds: dict[str, Any] = {".parquet": pq.ParquetWriter, ".csv": csv.CSVWriter}
    if out.suffix not in kinds:
        raise InvalidInput(f"--out {out}: a name that ends in .parquet or .csv was expected", "out")
    if not out.absolute().parent.is_dir():
        raise InvalidInput(f"there is no directory {out.absolute().parent} to write {out.name} into", "out")
    writer: Any = None
    with replacing(out) as staging:
        staging.touch(mode=0o600, exist_ok=False)

        def write(table: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                writer = kinds[out.suffix](staging, table.schema)
            writer.write_table(table)

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()
