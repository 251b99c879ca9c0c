"""Service directory: the replicas that clients can reach. Each replica announces itself again and again.

Here in files of `home`; `serving.state.redis.directory` keeps it in the Redis that machines share. Clients that cannot read
it use headless DNS or Envoy instead (docs/scaling.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pipeline.clock import Clock
from pipeline.disk import replacing
from pipeline.errors import NotReady
from serving.runtime.status import FRESH_S

__all__ = ["FileDirectory", "ServiceDirectory", "ServiceRecord", "parse_record", "target_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:#+-]{0,199}")
_NODE = re.compile(r"[ -~]{0,200}")
_ADDRESS = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A replica: its name, host:port of its lanes, and the node that it is on."""

    replica: str
    address: str
    node: str = ""


class ServiceDirectory(Protocol):
    """Records of the replicas that answer."""

    def announce(self, record: ServiceRecord) -> None:
        """Write the record of a replica that answers; good for `FRESH_S` seconds. Raises: NotReady."""

    def withdraw(self, replica: str) -> None:
        """Remove the record of a replica that ends. Raises: NotReady."""

    def replicas(self) -> list[ServiceRecord]:
        """Replicas that answer, sorted by name. Raises: NotReady."""


def target_of(records: Sequence[ServiceRecord]) -> str:
    """A gRPC target of all replicas, for numeric addresses; clients spread over it with the policy round_robin.

    >>> target_of([ServiceRecord("a", "10.0.0.1:8001"), ServiceRecord("b", "10.0.0.2:8001")])
    'ipv4:10.0.0.1:8001,10.0.0.2:8001'
    """
    scheme = "ipv6" if records and records[0].address.startswith("[") else "ipv4"
    return f"{scheme}:" + ",".join(record.address for record in records)


def parse_record(text: str | bytes) -> tuple[ServiceRecord, int] | None:
    """A record and the time of its announcement, Unix milliseconds (0: it has none); None of a text of another form.

    Clients are sent to the address, so it is a host and a port and nothing else.
    """
    try:
        raw = json.loads(text)
        record, time_ms = ServiceRecord(raw["replica"], raw["address"], raw.get("node", "")), raw.get("time_ms", 0)
        named = _NAME.fullmatch(record.replica) and _ADDRESS.fullmatch(record.address) and _NODE.fullmatch(record.node)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (record, time_ms) if named and type(time_ms) is int else None


class FileDirectory:
    """Directory of one machine: a file per replica."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    def announce(self, record: ServiceRecord) -> None:
        try:
            with replacing(self._path(record.replica)) as staging:
                staging.write_text(json.dumps({**asdict(record), "time_ms": self._clock.wall_ms()}))
        except OSError as error:
            raise NotReady(f"the record of replica {record.replica} cannot be written: {error}") from None

    def withdraw(self, replica: str) -> None:
        self._path(replica).unlink(missing_ok=True)

    def replicas(self) -> list[ServiceRecord]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                parsed = parse_record(path.read_bytes())
            except OSError:
                continue  # withdrawn since the folder was listed
            if parsed is not None and abs(self._clock.wall_ms() - parsed[1]) <= 1000 * FRESH_S:
                found.append(parsed[0])
        return found

    def _path(self, replica: str) -> Path:
        return self._folder / f"{replica}.json"
