"""Snapshot of the state in the home: what its processes saw of the store last, for the time when the store is lost.

Lanes start from it while the store cannot be read, and `baton state restore` fills the store again with it. Every process
of a home writes the one file, when what it sees has changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipeline.clock import Clock
from pipeline.disk import replacing
from pipeline.errors import InvalidInput
from serving.rollout.document import StateDocument
from serving.state.kill import KillFlag

__all__ = ["SnapshotFile", "StateSnapshot"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StateSnapshot:
    """A document of the state with the kill flags that machines share. `time_ms`: when it was written, Unix milliseconds."""

    document: StateDocument = field(default_factory=StateDocument)
    killed: Mapping[str, KillFlag] = field(default_factory=dict)
    time_ms: int = 0

    def to_json(self) -> str:
        """As JSON text."""
        killed = {name: asdict(flag) for name, flag in self.killed.items()}
        return json.dumps({"time_ms": self.time_ms, "killed": killed, "document": self.document.to_json()}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> StateSnapshot:
        """The inverse of `to_json`. Raises: ValueError: it is of another form."""
        data = json.loads(text)
        try:
            killed = {str(name): KillFlag(**flag) for name, flag in data["killed"].items()}
            return cls(StateDocument.from_json(data["document"]), killed, int(data["time_ms"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks or spoils a part: {error}") from None


class SnapshotFile:
    """The file of a home's snapshot. `keep` is for one thread of a process."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self._clock = path, clock
        self._kept = ""
        self._failed = False

    def read(self) -> StateSnapshot | None:
        """The snapshot; None: there is none.

        Raises:
            InvalidInput: it is damaged.
        """
        try:
            return StateSnapshot.from_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInput(f"{self.path} cannot be read: {error.strerror}", "snapshot") from None
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{self.path} is no snapshot of a state: {error}", "snapshot") from None

    def known_or_none(self) -> StateSnapshot | None:
        """The snapshot; None where there is none, or a damaged one, which the log names."""
        try:
            return self.read()
        except InvalidInput as error:
            log.error("%s", error)
            return None

    def known(self) -> StateSnapshot:
        """The snapshot; an empty one where there is none."""
        return self.known_or_none() or StateSnapshot()

    def keep(self, document: StateDocument | None, killed: Mapping[str, KillFlag]) -> None:
        """Write what this process sees, where it has changed. `document`: None: nothing has been seen yet."""
        if document is None or not document.identity:
            return
        seen = StateSnapshot(replace(document, version=0), killed).to_json()
        if seen == self._kept:
            return
        try:
            with replacing(self.path, durable=True) as staging:
                staging.write_text(StateSnapshot(document, killed, self._clock.wall_ms()).to_json())
        except OSError as error:
            if not self._failed:
                log.error("the snapshot of the state is not written: %s", error)
            self._failed = True
            return
        self._kept, self._failed = seen, False
