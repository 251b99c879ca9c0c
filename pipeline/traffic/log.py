"""Interface of the traffic log: predictions in, labels in, labelled rows out.

Lanes write predictions and feedback, the shadow lane writes the other arm's scores, the control process joins, worker
and analysis read labelled rows. Stores: `pipeline.traffic.local`, `pipeline.traffic.redis`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Protocol

from pipeline.arrays import F32, I32

__all__ = [
    "ACCEPTED",
    "DUPLICATE",
    "EXPIRED",
    "INVALID",
    "EndpointStats",
    "Exposure",
    "FeedbackEntry",
    "FeedbackReply",
    "Labelled",
    "Outcome",
    "Requested",
    "Retained",
    "Scores",
    "TrafficLog",
    "TrafficStats",
    "Unscored",
]

ACCEPTED, DUPLICATE, EXPIRED, INVALID = "accepted", "duplicate", "expired", "invalid"


@dataclass(frozen=True, slots=True)
class Exposure:
    """A candidate that was shown, named by its index in request order or by the hash of the caller's candidate id.

    `name` is that id itself, in what a client sends; in the log it is always hashed.
    """

    index: int | None = None
    candidate_id: int | None = None
    position: int = -1
    time_ms: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A label in 0..1 for a candidate, which is named as in `Exposure`. `final`: no other label will follow."""

    index: int | None = None
    label: float = 1.0
    candidate_id: int | None = None
    time_ms: int = 0
    final: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackEntry:
    """Feedback of a client on one prediction, named by its id, or by the caller's own request id at an endpoint."""

    prediction_id: str = ""
    exposed: Sequence[Exposure] = ()
    outcomes: Sequence[Outcome] = ()
    exposed_all: bool = False
    request_id: str = ""
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackReply:
    """One status of ACCEPTED, DUPLICATE, EXPIRED or INVALID per exposure and per outcome, in order; `reason` where invalid.

    Args:
        endpoint: of the prediction; "" where it is not known (yet).
        delay_ms: from the prediction to this feedback; None where the prediction is not known.
        late: whether the join had closed the prediction by then, or was due to: its rows changed after the attribution window.
    """

    exposed: tuple[str, ...]
    outcomes: tuple[str, ...]
    reason: str = ""
    endpoint: str = ""
    delay_ms: int | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """One arm's scores on all candidates of a prediction, float32 `[n]`."""

    arm: str
    bundle: str
    version: int
    scores: F32


@dataclass(frozen=True, slots=True)
class Labelled:
    """Mature rows of one prediction: one entry of the labelled log. Without rows: it closed and was never shown.

    Args:
        seq: position in the labelled log; grows by one, never reused. A reader's position is the last seq it has read.
        endpoint: of the record, which a reader of other endpoints need not look at.
        revision: 0 for the rows as they matured; higher when a late label changed some of them, or when rows were shown
            or matured after the others had been written (only those are here).
        time_ms: when the prediction was made, by the log's clock: never later than when it was written. That of `record` may
            be another where a clock was set.
        indices: int32 `[m]`, exposed candidates in request order.
        labels: float32 `[m]`; positions: int32 `[m]`, -1 where unknown.
        previous: float32 `[m]`, the label that a revision replaces; NaN for a row that was not written before.
        record: the packed prediction record (`pipeline.traffic.record.unpack`).
        other: the other arm's scores where the shadow lane has them.
    """

    seq: int
    prediction_id: str
    endpoint: str
    revision: int
    time_ms: int
    indices: I32
    labels: F32
    positions: I32
    previous: F32
    record: bytes
    other: tuple[Scores, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """Totals of one endpoint's predictions since they are counted by endpoint.

    Args:
        labelled_rows: rows that the join has given out.
        watermark_ms: time of the last prediction closed, Unix milliseconds, 0 before the first.
    """

    labelled_rows: int = 0
    watermark_ms: int = 0

    @classmethod
    def of(cls, totals: Mapping[str, int]) -> dict[str, EndpointStats]:
        """By endpoint, from totals by name; those of an endpoint are named `KIND/ENDPOINT`."""
        names = [name.partition("/") for name in totals]
        return {
            endpoint: cls(*(totals.get(f"{each.name}/{endpoint}", 0) for each in fields(cls)))
            for endpoint in sorted({endpoint for _, slash, endpoint in names if slash})
        }


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """Totals of the log since it was created, and the state of the join.

    Args:
        predictions, feedback, labelled_entries, labelled_rows: totals; retention does not reduce them.
        parked_refused: parts of parked feedback that did not fit their prediction.
        parked_expired: feedback entries whose prediction never came.
        open_predictions: written and not closed; parked: feedback entries that wait for their prediction.
        late: closed predictions with feedback or rows to be written as revisions.
        watermark_ms: time of the last prediction closed, Unix milliseconds, 0 before the first.
        oldest_open_ms: age of the first open prediction, 0 without one.
        last_seq: last seq of the labelled log; bytes: size of the store.
        damaged: records that a reader found damaged on the disk and passed over; each is counted once.
        endpoints: by endpoint.
        begun_seq: seq that the labelled log begins after; not 0 where it was made in place of one that was lost.
    """

    predictions: int
    feedback: int
    labelled_entries: int
    labelled_rows: int
    parked_refused: int
    parked_expired: int
    open_predictions: int
    parked: int
    late: int
    watermark_ms: int
    oldest_open_ms: int
    last_seq: int
    bytes: int
    damaged: int = 0
    endpoints: Mapping[str, EndpointStats] = field(default_factory=dict)
    begun_seq: int = 0


@dataclass(frozen=True, slots=True)
class Retained:
    """Result of retention: rows deleted, and rows that had to stay.

    Args:
        predictions, feedback, labelled, parked: deleted.
        unread, unjoined: old predictions that stay for a reader, and for the join.
        over_bytes: size above the limit, since the rest is not read yet.
        kept: old predictions that stay since their routing key is held.
    """

    predictions: int = 0
    feedback: int = 0
    labelled: int = 0
    parked: int = 0
    unread: int = 0
    unjoined: int = 0
    over_bytes: int = 0
    kept: int = 0

    @property
    def held_back(self) -> bool:
        """Whether something is older or larger than allowed: a reader or the join is behind, or dead."""
        return bool(self.unread or self.unjoined or self.over_bytes)

    def __add__(self, other: Retained) -> Retained:
        return Retained(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Requested(NamedTuple):
    """Prediction in the log: its id, when it was made (Unix milliseconds), and its number of candidates."""

    prediction_id: str
    time_ms: int
    n: int


class Unscored(NamedTuple):
    """Predictions without another arm's scores, each with the place after it, and how far the log was looked through.

    Args:
        found: (place, record).
        place: after all that was looked at, what has scores and what is of other endpoints included; where the call began
            if there was nothing to look at.
    """

    found: list[tuple[str, bytes]]
    place: str


class TrafficLog(Protocol):
    """Store of traffic. All times are Unix milliseconds by the log's own clock (`now_ms`), whatever a caller's clock says."""

    @property
    def window_ms(self) -> int:
        """Attribution window: how long after its exposure a row waits for a label before it counts as 0."""

    @property
    def late_limit_ms(self) -> int:
        """Age up to which a prediction can be labelled."""

    def now_ms(self) -> int:
        """The time by the log's own clock, which is that of the store: one for all processes and machines that share it."""

    def append_predictions(self, records: Sequence[bytes]) -> None:
        """Commit packed prediction records. Writing one twice changes nothing. One of the future counts as made now."""

    def append_scores(self, scores: Sequence[tuple[str, Scores]]) -> None:
        """Commit another arm's scores for predictions by id."""

    def append_feedback(self, entries: Sequence[FeedbackEntry], now_ms: int) -> list[FeedbackReply]:
        """Commit exposures and labels; a reply per entry. What is ACCEPTED survives any crash."""

    def join(self, now_ms: int, limit: int = 1000) -> int:
        """Move mature predictions into the labelled log, in prediction order; the number of entries written."""

    def labelled(self, after: int, limit: int = 256) -> list[Labelled]:
        """Entries of the labelled log with seq > after, in order."""

    def unscored(
        self, after: str, before_ms: int, limit: int = 256, endpoints: Collection[str] | None = None
    ) -> Unscored:
        """The next predictions after a place that were made before `before_ms` and have no other arm's scores.

        It ends at the first prediction of a lane that is younger, so that a place never passes one which may be missed
        later. Records of other endpoints than those named are not read.
        """

    def predictions(self, after: str, limit: int = 256) -> list[tuple[str, bytes]]:
        """Predictions after a place, in the order in which each lane wrote them: (place, record).

        A place is a text that the log gives out; the empty one is the beginning. Nothing appears before it later.
        """

    def near_end(self, count: int) -> str:
        """A place after which the newest `count` predictions stand, with some before them."""

    def latest(self, endpoint: str, limit: int) -> list[bytes]:
        """Up to `limit` records of an endpoint, the newest first, among the newest few of all."""

    def records(self, prediction_ids: Sequence[str]) -> dict[str, bytes]:
        """The records of those predictions that are written, in the order asked."""

    def requested(self, request_keys: Sequence[int]) -> dict[int, list[Requested]]:
        """The newest predictions, two at most, by the key of their caller's request id (`requests.request_key`); a key that
        no prediction has is left out."""

    def commit_position(self, reader: str, seq: int) -> None:
        """Store the position of `reader`: it has processed the labelled log up to `seq`. Retention does not pass it; it never
        goes back."""

    def position(self, reader: str) -> int:
        """Position of a reader, 0 if it never committed one."""

    def stats(self, now_ms: int) -> TrafficStats:
        """Totals, and the state of the join."""

    def retain(
        self,
        before_ms: int,
        protect_seq: int | None = None,
        max_bytes: int | None = None,
        keep: Collection[int] = (),
    ) -> Retained:
        """Delete predictions made before `before_ms` with all that belongs to them, then the oldest while the log is
        larger than `max_bytes`.

        Args:
            keep: routing hashes whose predictions stay, however old.
            protect_seq: labelled entries after this seq are kept with their predictions; without it, those after the
                position of the slowest reader that committed one.
        """

    def forget(self, routing_hash: int, now_ms: int) -> int:
        """Delete every record of one user; the number of predictions deleted.

        Predictions made by `now_ms` that are written later are refused, and feedback parked for them is deleted.
        """

    def close(self) -> None:
        """Write what is buffered and release the store."""
