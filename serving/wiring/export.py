"""Export of labelled rows as configured: the fields of each endpoint, and what is left out or hashed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from pipeline.errors import BatonError, InvalidInput
from pipeline.schema import Schema
from pipeline.traffic.export.writing import export_rows
from pipeline.traffic.redaction import Redaction
from serving.config import Config
from serving.wiring.bundles import open_repository
from serving.wiring.state import stored_endpoints
from serving.wiring.traffic import open_traffic_log

__all__ = ["export_log", "fields_of", "schema_of"]


def export_log(
    config: Config,
    target: Path | IO[bytes],
    *,
    endpoint: str = "",
    since_ms: int | None = None,
    until_ms: int | None = None,
    drop: Sequence[str] = (),
    rekey: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Write labelled rows as Parquet to a file or a stream; the number of rows. See `export_rows`.

    Args:
        drop, rekey: fields or columns, see `Redaction`; with them the rows are of one endpoint.
        say: is told what whoever gets the file should know.

    Raises:
        InvalidInput: an endpoint or a field is unknown. NotReady: log or state cannot be read.
    """
    with closing(open_traffic_log(config)) as log:
        redaction = None
        if drop or rekey:
            endpoint = endpoint or _only_endpoint(config, say)
            versions = _schemas_of_versions(config)
            redaction = Redaction(schema_of(endpoint, config), drop, rekey, versions)
        rows = export_rows(
            log,
            target,
            endpoint=endpoint,
            since_ms=since_ms,
            until_ms=until_ms,
            fields=fields_of(config, endpoint, say),
            schema_of=_schemas_of_versions(config),
            redaction=redaction,
        )
        for column in redaction.kept() if redaction is not None else ():
            say(f"still in the file: {column}")
        if damaged := log.stats(log.now_ms()).damaged:
            say(f"records of the log that are damaged and left out: {damaged}")
    return rows


def fields_of(config: Config, endpoint: str, say: Callable[[str], None]) -> dict[str, Schema]:
    """The fields of the endpoints of an export, of all where none is named."""
    found = {}
    for name in [endpoint] if endpoint else sorted({*config.endpoints, *stored_endpoints(config)}):
        try:
            found[name] = schema_of(name, config)
        except BatonError as error:
            say(f"fields of endpoint {name} are not known by name: {error}")
    return found


def schema_of(endpoint: str, config: Config) -> Schema:
    """The fields that an endpoint's stable arm takes. Raises: InvalidInput: there is no such endpoint."""
    arms: dict[str, Any] = {**config.endpoints, **stored_endpoints(config)}
    if endpoint not in arms:
        raise InvalidInput(f"there is no endpoint {endpoint!r}; there are {sorted(arms) or 'none'}", "endpoint")
    spec = arms[endpoint].stable
    return open_repository(config).open(spec.bundle, spec.version).manifest.model_schema


def _only_endpoint(config: Config, say: Callable[[str], None]) -> str:
    """The endpoint whose fields are meant where none is named."""
    names = sorted({*config.endpoints, *stored_endpoints(config)})
    if len(names) != 1:
        raise InvalidInput(f"say by --endpoint whose fields these are; there are {names or 'none'}", "endpoint")
    say(f"rows of endpoint {names[0]}")
    return names[0]


def _schemas_of_versions(config: Config) -> Callable[[str, int], Schema | None]:
    repository = open_repository(config)

    def of_version(bundle: str, version: int) -> Schema | None:
        try:
            return repository.manifest(bundle, str(version)).model_schema
        except BatonError:
            return None  # it was removed, or was never here

    return of_version
