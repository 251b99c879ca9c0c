"""`baton log`: show, export, import and forget records of the traffic log."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pipeline.arrays import Index
from pipeline.clock import SystemClock
from pipeline.disk import replacing
from pipeline.errors import DataError, InvalidInput
from pipeline.features import Features
from pipeline.schema import Schema
from pipeline.traffic.export.layout import Named
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord
from pipeline.traffic.restore import Restored, RestoreReport, restore
from serving.cli.api import DEFAULT_SERVER, AdminClient
from serving.cli.click_log import click_log
from serving.cli.log_tail import What, labelled, predictions, show
from serving.cli.options import Reason, Server, Token, Why
from serving.cli.output import Output, emit, print_json, say
from serving.config import Config, parse_duration
from serving.wiring.export import export_log, fields_of, schema_of
from serving.wiring.state import installation_secret
from serving.wiring.traffic import open_traffic_log

if TYPE_CHECKING:
    from transfer.data import Log

__all__ = ["app"]

LOOK_EVERY_S = 0.5
FORGET_TIMEOUT_S = 600.0

app = typer.Typer(help="Traffic log: show, export, import and forget predictions and labels.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file")]
Endpoint = Annotated[str, typer.Option(help="Only of this endpoint")]
FromServer = Annotated[
    str, typer.Option("--server", help="Admin API of an installation elsewhere; without it, that of --config is read")
]
Format = Annotated[Output, typer.Option("-o", "--output", help="table for people, json for programs")]


@app.command()
def tail(
    config: ConfigFile = Path("baton.yaml"),
    endpoint: Endpoint = "",
    what: Annotated[What, typer.Option(help="Labelled rows, or predictions as they were answered")] = What.labelled,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of entries")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Show new entries until Ctrl-C")] = False,
    output: Format = Output.table,
) -> None:
    """Show the newest entries; as JSON one object per line.

    Example: baton log tail --endpoint ranker
    """
    with _opened(config) as (log, _):
        pages = labelled(log, number) if what is What.labelled else predictions(log, number)
        for page in pages:
            shown = [entry for entry in page if not endpoint or entry["endpoint"] == endpoint]
            if output is Output.json:
                for entry in shown:
                    print_json(entry)
            elif shown:
                show(what, shown)
            if page:
                continue
            if not follow:
                return
            try:
                time.sleep(LOOK_EVERY_S)
            except KeyboardInterrupt:
                return


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Parquet file to write")],
    config: ConfigFile = Path("baton.yaml"),
    endpoint: Endpoint = "",
    since: Annotated[
        str, typer.Option(help="Only predictions made from then on: 1h ago, as 30m, 1h or 7d, or a time in UTC")
    ] = "",
    until: Annotated[str, typer.Option(help="Only predictions made before then, in the same forms")] = "",
    drop: Annotated[
        list[str] | None, typer.Option(help="Field, or column of the log, to leave out; may be repeated")
    ] = None,
    rekey: Annotated[
        list[str] | None,
        typer.Option(help="Field whose ids are hashed again with a key of this export alone; may be repeated"),
    ] = None,
    server: FromServer = "",
    token: Token = "",
    reason: Reason = "",
    output: Format = Output.table,
) -> None:
    """Write labelled rows as Parquet: a column per field (ids as hashes), scores of each arm, labels with all their revisions,
    and the keys to join them to tables of your own. With --server the rows are those of an installation elsewhere, and its
    audit has the export.

    Ids of fields are hashes without a key: see --rekey before you give a file away.

    Example: baton log export rows.parquet --endpoint ranker --since 1h --rekey user_id --drop age
    """
    if not out.absolute().parent.is_dir():
        raise InvalidInput(f"there is no directory {out.absolute().parent} to write {out.name} into", "out")
    now_ms = SystemClock().wall_ms()
    asked: dict[str, Any] = {
        "endpoint": endpoint,
        "since_ms": _time_ms(since, now_ms, "since"),
        "until_ms": _time_ms(until, now_ms, "until"),
    }
    if server:
        fields = {**asked, "drop": drop or [], "rekey": rekey or [], "reason": reason}
        client = AdminClient(server, token=token)
        with replacing(out) as staging, client.download("/log/export", fields) as file, open(staging, "wb") as target:
            shutil.copyfileobj(file, target)
        rows = _rows_of(out)
    else:
        rows = export_log(Config.load(config), out, drop=drop or [], rekey=rekey or [], say=say, **asked)
    result = {"file": str(out), "rows": rows, "bytes": out.stat().st_size}
    emit(output, result, "", tuple(result), [tuple(result.values())])


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A file of `baton log export`, or a dataset.yaml that describes a log")
    ],
    config: ConfigFile = Path("baton.yaml"),
    endpoint: Annotated[str, typer.Option(help="Endpoint of the rows; an exported file names its own")] = "",
    cache: Annotated[Path, typer.Option(help="Folder for the prepared form of a described log")] = Path(".baton/cache"),
    output: Format = Output.table,
) -> None:
    """Import labelled rows into the log, for the worker to learn from; they do not count as evidence of a rollout.

    Existing rows stay, so an import can be repeated. Rows of a described log have no scores; what its `sampling` says is kept
    as their inclusion probability, and rows of one request with different ones become several predictions.

    Example: baton log import rows.parquet --endpoint ranker
    """
    with _opened(config) as (log, settings):
        predictions = (
            _described(source, endpoint, cache, settings)
            if source.suffix in (".yaml", ".yml")
            else _exported(source, endpoint, settings, log.now_ms())
        )
        done = restore(log, PredictionIds(installation_secret(settings)), predictions)
        labelled = 0
        while entries := log.join(log.now_ms()):
            labelled += entries
        if done.left_out:
            say(f"{done.left_out} rows were left out: an earlier import wrote their predictions without them")
        if done.predictions and done.newest_ms < log.now_ms() - 1000 * settings.traffic.retention_s:
            say(
                "all of it is older than traffic.retention: it goes once the worker has read it, and without a worker at "
                "the control process's next look"
            )
        result = _report(done) | {"labelled_entries": labelled}
        emit(output, result, "", tuple(result), [tuple(result.values())])


@app.command()
def forget(
    key: Annotated[str, typer.Option(help="Routing key of the user")] = "",
    prediction: Annotated[
        str, typer.Option(help="Id of one of the user's predictions; all of the same routing key are deleted")
    ] = "",
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Delete all records of a user, including records not yet written to the log. This cannot be undone.

    Example: baton log forget --key user:712 --reason 'request of 3 May'
    """
    body = {"routing_key": key, "prediction_id": prediction, "reason": reason}
    result = AdminClient(server, token=token).post("/log/forget", body, timeout=FORGET_TIMEOUT_S)
    emit(output, result, "", tuple(result), [tuple(result.values())])


@app.command()
def hold(
    key: Annotated[str, typer.Argument(help="Routing key of the user")] = "",
    prediction: Annotated[str, typer.Option(help="Id of one of the user's predictions, in place of the key")] = "",
    reason: Why = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """Keep all records of a user, those to come too: retention does not remove them, and they cannot be forgotten.

    The log and the list of holds have a hash of the key, so give the case as the reason.

    Example: baton log hold user:712 --reason 'case 2026-17'
    """
    body = {"routing_key": key, "prediction_id": prediction, "reason": reason}
    _show_holds([AdminClient(server, token=token).post("/log/hold", body)], output)


@app.command()
def holds(server: Server = DEFAULT_SERVER, token: Token = "", output: Format = Output.table) -> None:
    """List the holds: the hash of each key, who ordered it, why and since when.

    Example: baton log holds
    """
    _show_holds(AdminClient(server, token=token).get("/log/holds")["holds"], output)


@app.command()
def release(
    user: Annotated[str, typer.Argument(help="Routing key of the user")] = "",
    prediction: Annotated[str, typer.Option(help="Id of one of the user's predictions, in place of the key")] = "",
    key: Annotated[str, typer.Option(help="Hash of the key as `baton log holds` has it, in place of the key")] = "",
    reason: Reason = "",
    server: Server = DEFAULT_SERVER,
    token: Token = "",
    output: Format = Output.table,
) -> None:
    """End a hold. Retention removes what is too old at its next pass, within a minute.

    Example: baton log release user:712 --reason 'case closed'
    """
    body = {"routing_key": user, "prediction_id": prediction, "key": key, "reason": reason}
    _show_holds([AdminClient(server, token=token).post("/log/release", body)], output)


def _show_holds(found: list[dict[str, Any]], output: Output) -> None:
    rows = [
        (h["key"], datetime.fromtimestamp(h["since_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), h["actor"], h["reason"])
        for h in found
    ]  # fmt: skip
    emit(output, {"holds": found}, "", ("key", "since", "by", "reason"), rows)


def _report(done: RestoreReport) -> dict[str, Any]:
    report = asdict(done)
    del report["newest_ms"]
    return report


@contextmanager
def _opened(config: Path) -> Iterator[tuple[TrafficLog, Config]]:
    settings = Config.load(config)
    with closing(open_traffic_log(settings)) as log:
        yield log, settings


def _time_ms(text: str, now_ms: int, option: str) -> int | None:
    """A time of the command line in Unix milliseconds: a duration before now, or a time in UTC. Raises: InvalidInput."""
    if not text:
        return None
    with suppress(ValueError):
        return now_ms - round(1000 * parse_duration(text))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"{option}: {text!r} is no time; write a duration before now, as 30m, 1h or 7d, or a time in UTC, as 2026-05-03T14:00",
            option,
        ) from None
    return round(when.replace(tzinfo=when.tzinfo or UTC).timestamp() * 1000)


def _rows_of(path: Path) -> int:
    """Rows of a Parquet file. Raises: DataError: it is not whole."""
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no whole Parquet file: {error}") from None


def _exported(source: Path, endpoint: str, settings: Config, now_ms: int) -> Iterable[Restored]:
    from pipeline.traffic.export.reading import read_fields, read_rows

    for name, fields in read_fields(source).endpoints.items():
        own = Named.of(fields_of(settings, endpoint or name, say)).endpoints.get(endpoint or name)
        if own is not None and own != fields:
            there, here = (", ".join(chain.from_iterable(by_kind.values())) for by_kind in (fields, own))
            raise DataError(
                f"{source}: rows of endpoint {name!r} have the fields {there}, and endpoint {endpoint or name!r} has {here}"
            )
    for restored in read_rows(source, now_ms):
        record = restored.record
        if not settings.traffic.keep_text:  # a log that is to hold no texts gets none from a file either
            record = replace(record, request_id="", candidate_texts=())
        if endpoint and endpoint != record.endpoint:
            record = replace(record, endpoint=endpoint, request_key=0)
        yield replace(restored, record=record)


def _described(source: Path, endpoint: str, cache: Path, settings: Config) -> Iterable[Restored]:
    if not endpoint:
        raise InvalidInput("say by --endpoint whose traffic the rows are to be", "endpoint")
    schema = schema_of(endpoint, settings)
    log = click_log(source, cache, like=schema)
    _check_schema(log, source, endpoint, schema)
    for request in log.requests():
        # A record has one inclusion probability. Where a log kept rows of one request by different shares, its rows become
        # one prediction for each of them.
        for part, probability in enumerate(np.unique(request.probability)[::-1]):
            index = np.flatnonzero(request.probability == probability).astype(np.int32)
            features = request.features if len(index) == request.features.n else _some(request.features, schema, index)
            record = PredictionRecord(
                prediction_id=f"{log.name}\0{request.request}" + (f"\0{part}" if part else ""),
                time_ms=request.time_ms,
                endpoint=endpoint,
                arm="stable",
                bundle=log.name,
                version=0,
                features=features,
                scores=np.full(len(index), np.nan, np.float32),
                overridden=True,
                inclusion_probability=float(probability),
            )
            every = np.arange(len(index), dtype=np.int32)
            yield Restored(record, every, request.labels[index], np.full(len(index), -1, np.int32))


def _some(features: Features, schema: Schema, index: Index) -> Features:
    """Some candidates of a request, context kept once."""
    return Features.from_context(schema, features.rows(schema, index))


def _check_schema(log: Log, source: Path, endpoint: str, schema: Schema) -> None:
    """Check that the log has the endpoint's fields; other rows would never be used, or mean something else."""
    described, wanted = ([(f.name, f.kind) for f in s.fields] for s in (log.schema, schema))
    if described != wanted:
        odd = next((f"{a} where {b} is wanted" for a, b in zip(described, wanted, strict=False) if a != b), "")
        raise DataError(
            f"{source}: its fields are not those of endpoint {endpoint!r}: "
            f"{odd or f'{len(described)} fields where {len(wanted)} are wanted'}"
        )
    for own, other in zip(log.schema.fields, schema.fields, strict=True):
        if (own.separator, own.missing) != (other.separator, other.missing):
            key = "separator" if own.separator != other.separator else "missing"
            raise DataError(
                f"{source}: field {own.name!r}: {key} is {getattr(own, key)!r} here, and {getattr(other, key)!r} for "
                f"endpoint {endpoint!r}; leave it out or write the same",
                own.name,
            )
