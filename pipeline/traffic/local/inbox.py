"""Entries of the lanes' inboxes: feedback that lanes have written and the join has not taken in yet.

Each lane writes to its own inbox, so two entries on one prediction may lie in two of them. An entry names those it came
after, and is taken in after them: what a client sends in turn counts in turn, whatever lanes it reaches and whatever clocks
say. Who writes an entry has read the inboxes before, so entries never wait for each other in a circle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.traffic.feedback import dump_entry, load_entry
from pipeline.traffic.log import FeedbackEntry

__all__ = ["Pending", "in_turn", "pack_entry"]


class Pending(NamedTuple):
    """One entry of an inbox.

    Args:
        lane, seq: whose inbox, and its place there.
        text: as `pack_entry` wrote it.
    """

    lane: int
    seq: int
    prediction_id: str
    received_ms: int
    text: str

    @property
    def after(self) -> dict[int, int]:
        """The entries of other lanes that count before this one: by lane, the last of them."""
        named = self.text.partition("\n")[0]
        return {int(lane): int(seq) for lane, seq in (pair.split(":") for pair in named.split())}

    @property
    def entry(self) -> FeedbackEntry | None:
        """What a client said; None: the prediction was refused since its user is forgotten, and so is what was said."""
        said = self.text.partition("\n")[2]
        return load_entry(self.prediction_id, said) if said else None


def pack_entry(entry: FeedbackEntry | None, after: Iterable[Pending] = ()) -> str:
    """Text of an entry that came after others."""
    last: dict[int, int] = {}
    for other in after:
        last[other.lane] = max(last.get(other.lane, 0), other.seq)
    named = " ".join(f"{lane}:{seq}" for lane, seq in last.items())
    return f"{named}\n{'' if entry is None else dump_entry(entry)}"


def in_turn(inboxes: Mapping[int, Iterable[Pending]], taken: Mapping[int, int]) -> Iterator[Pending]:
    """Entries of all inboxes, each inbox in its order and each entry after those that it names; the inboxes take turns.

    Args:
        taken: by lane, the last entry taken in before. An entry that names one that is neither taken nor here stays, with
            those behind it.
    """
    left = {lane: deque(entries) for lane, entries in inboxes.items()}
    done = dict.fromkeys(left, 0) | dict(taken)
    moved = True
    while moved:
        moved = False
        for lane, entries in left.items():
            # A lane without a folder was removed by hand: nothing waits for it.
            if entries and all(done[other] >= seq for other, seq in entries[0].after.items() if other in done):
                entry = entries.popleft()
                done[lane] = entry.seq
                moved = True
                yield entry
