"""Lane: the one writer of a folder of the traffic log.

Records are appended to the folder's current file first, then their rows are committed to its index: what is in a file and
not in the index was never written, and the next append overwrites it. Readers of any process are in `lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.clock import Clock
from pipeline.traffic.lanes.rows import ScoresEntry
from pipeline.traffic.record import RecordHead

__all__ = ["Lane"]


class Lane:
    """Writer of one lane's folder, which this process holds until it closes it or ends.

    Any thread may call it, one at a time. What a method returned for survives `kill -9`; what `put_feedback` returned for
    survives power loss, with every record appended before. Other records reach the disk within about a second.

    Args:
        root: folder of all lanes, created if absent.
        preferred: number of the folder; the next one that no process holds if another process holds it.
        file_bytes: size at which the next record file is begun.

    Raises:
        InvalidInput: the folder's index is something else, or was written by a newer Baton.
        NotReady: the folder cannot be opened; all methods raise it if the disk is full, read-only or failing, and then
            nothing was written.
    """

    def __init__(self, root: Path, preferred: int, clock: Clock, file_bytes: int = 64 << 20) -> None:
        raise NotImplementedError

    @property
    def number(self) -> int:
        """The folder that was claimed."""
        raise NotImplementedError

    def append(self, records: Sequence[tuple[RecordHead, bytes]]) -> int:
        """Commit packed records with their heads, in order, as one group; the number of new ones.

        A prediction id written before is left as it is: by this lane, or by another one where the id itself names
        another lane.
        """
        raise NotImplementedError

    def put_scores(self, entries: Sequence[ScoresEntry]) -> int:
        """Commit other arms' scores as one group; the number of new ones. A version's scores are written once."""
        raise NotImplementedError

    def put_feedback(self, entries: Sequence[tuple[str, int, str]]) -> None:
        """Commit feedback for the join: (prediction id, Unix milliseconds when it came, text)."""
        raise NotImplementedError

    def trim(self, seq: int) -> None:
        """Remove feedback up to this seq of the inbox: the join has it."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush to disk and let go of the folder; later use raises NotReady."""
        raise NotImplementedError
