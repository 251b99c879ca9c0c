"""Parts of a traffic log in a home: their condition before anything opens them.

The log of this version is a folder, that of version 0.1 one database, which may be there until it is brought over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.traffic.lanes.files import file_path
from pipeline.traffic.lanes.index import SCHEMA_VERSION, index_path
from pipeline.traffic.local.file import FORMAT_VERSION
from pipeline.traffic.local.upgrade import LAST_FORMAT_VERSION
from pipeline.traffic.prediction import given_out
from serving.config import Config
from serving.wiring.databases import ADVICE, HomeDatabase

__all__ = ["TrafficParts"]

RECENT_ROWS = 10_000
_OLD_TABLES = frozenset(
    {"predictions", "records", "scores", "feedback", "parked", "labelled", "watermark", "counters", "positions"}
)
_LABELS_TABLES = frozenset({"lanes", "open", "feedback", "parked", "late", "labelled", "forgotten", "counters"})
_LANE_TABLES = frozenset({"files", "predictions", "scores", "inbox"})


class TrafficParts:
    """The traffic log of a home, read only."""

    def __init__(self, config: Config) -> None:
        folder = config.traffic_folder
        self._old = HomeDatabase(config.old_traffic_db, _OLD_TABLES, LAST_FORMAT_VERSION)
        self._labels = HomeDatabase(_labels(folder), _LABELS_TABLES, FORMAT_VERSION)
        self._lanes = [HomeDatabase(index_path(lane), _LANE_TABLES, SCHEMA_VERSION) for lane in _lane_folders(folder)]

    @property
    def there(self) -> bool:
        """Whether there is a log."""
        return self._old.there or self._labels.there

    @property
    def name(self) -> str:
        """Its name in the home."""
        return self._labels.path.parent.name if self._labels.there or not self._old.there else self._old.path.name

    def faults(self, check_s: float) -> Iterator[str]:
        """What is wrong with it, each with what to do. `check_s`: longest time for the pages of each database, in seconds."""
        found = False
        for database in (self._old, self._labels, *self._lanes):
            for fault in database.faults(check_s):
                found = True
                yield fault
        if self._lanes and not self.there:
            yield f"{self._labels.path} is missing beside predictions: {ADVICE}, or move the whole home away"
        for lane in () if found else self._lanes:
            # The newest may be one that power loss took: its records are damaged, and the lane goes on.
            query = (
                "SELECT number FROM files WHERE predictions + scores > 0 AND number < (SELECT max(number) FROM files)"
            )
            for (number,) in lane.rows(query):
                path = file_path(lane.path.parent, int(str(number)))
                # Retention removes a file and then its row.
                if not path.exists() and lane.rows("SELECT 1 FROM files WHERE number = ?", number):
                    yield f"{path} is missing, with predictions that others name: {ADVICE}"

    def used(self) -> bool:
        """Whether it has predictions."""
        return any(database.rows("SELECT 1 FROM predictions LIMIT 1") for database in (self._old, *self._lanes))

    def last_seq(self) -> int:
        """Last entry of the labelled log."""
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'labelled'"
        return max([0, *(int(str(seq)) for database in (self._old, self._labels) for (seq,) in database.rows(query))])

    def answered(self) -> set[object]:
        """Endpoints that lanes of this home have answered lately; imported predictions do not count."""
        query = "SELECT endpoint, prediction_id FROM predictions ORDER BY seq DESC LIMIT ?"
        rows = (row for database in (self._old, *self._lanes) for row in database.rows(query, RECENT_ROWS))
        return {endpoint for endpoint, prediction_id in rows if given_out(str(prediction_id))}


def _labels(folder: Path) -> Path:
    return folder / "labels.db"


def _lane_folders(folder: Path) -> list[Path]:
    """Folders of lanes that have begun."""
    lanes = folder / "lanes"
    found = (path for path in lanes.iterdir() if path.name.isdecimal()) if lanes.is_dir() else ()
    return sorted(path for path in found if index_path(path).exists())
