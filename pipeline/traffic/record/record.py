"""What a prediction record says, apart from how it is written: a request as it was answered, and its keys in a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from pipeline.arrays import F32, I32, I64, Mask
from pipeline.features import Features
from pipeline.hashing import NO_BUCKET

__all__ = ["ARMS", "HeadScores", "PredictionRecord", "RecordHead", "Texts"]

ARMS = ("stable", "candidate", "direct")


class Texts(Sequence[str]):
    """Texts that lie end to end in one, each cut out when it is asked for: most readers of a record want none.

    Args:
        whole: all of them. ends: `[n]`, where each ends, rising up to the length of `whole`.

    >>> list(Texts("item-7item-12", [6, 13]))
    ['item-7', 'item-12']
    """

    __slots__ = ("_ends", "_whole")

    def __init__(self, whole: str, ends: Sequence[int] | I32) -> None:
        self._whole, self._ends = whole, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._whole[self._ends[at - 1] if at else 0 : self._ends[at]]


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Scores float32 `[n]` of one more head of the network that answered, or of another arm, in request order."""

    arm: str
    head: str
    scores: F32


@dataclass(slots=True, eq=False)  # frozen, setting its fields would take as long as a third of writing them
class PredictionRecord:
    """One answered request. Nobody changes one.

    Args:
        prediction_id: as given to the client.
        time_ms: Unix time of the answer, milliseconds.
        endpoint: name that the client called.
        arm: that answered: `stable`, `candidate` or `direct` (a model called by name, outside every analysis).
        bundle, version: the model version that answered.
        features: hashed features of the `n` candidates, context once. Without any part they were not recorded.
        fields: the columns of the features (`Schema.columns`); empty: they are those of the version that answered.
        scores: float32 `[n]`, calibrated probabilities in request order.
        routing_hash: keyed 64-bit hash of the routing key, 0 without one.
        overridden: whether the caller chose the arm; such rows are not analysed.
        bucket: of the routing key (`pipeline.hashing.bucket`), which its arm follows from at every weight; `HELD_BUCKET`: a key that
            stays on stable; `NO_BUCKET`: not known.
        candidate_ids: int64 `[n]` hashes of the caller's candidate ids, or None.
        network: file of the bundle that the scores come from; empty: not known.
        stable_version, candidate_version: of the models that the endpoint's arms had at that time, 0 without one.
        inclusion_probability: above 0 and at most 1, with which an answer such as this one is recorded.
        request_key: of the caller's request id at this endpoint (`pipeline.traffic.requests.request_key`), 0 without one.
        request_id, candidate_texts: request id and `[n]` candidate ids as the caller wrote them; empty: not kept.
        heads: further scores of the same candidates.
        recall_scores: float32 `[n]`, scores of the stage before, as the caller sent them; None: none were sent.
        keep_fraction: of the candidates that were scored; below 1 where load was shed.
        load: expected wait in the queue when the request came, seconds; 0 also where it is not known.
        cached: bool `[n]`, scores that a cache gave; None: no cache.
    """

    prediction_id: str
    time_ms: int
    endpoint: str
    arm: str
    bundle: str
    version: int
    features: Features
    scores: F32
    routing_hash: int = 0
    overridden: bool = False
    candidate_ids: I64 | None = None
    network: str = ""
    stable_version: int = 0
    candidate_version: int = 0
    inclusion_probability: float = 1.0
    request_id: str = ""
    candidate_texts: Sequence[str] = ()
    heads: tuple[HeadScores, ...] = ()
    recall_scores: F32 | None = None
    keep_fraction: float = 1.0
    load: float = 0.0
    cached: Mask | None = None
    request_key: int = 0
    fields: str = ""
    bucket: int = NO_BUCKET


class RecordHead(NamedTuple):
    """Keys of a record in a log; attributes as of `PredictionRecord`, and `n`, the number of candidates."""

    prediction_id: str
    time_ms: int
    endpoint: str
    n: int
    routing_hash: int
    arm: str
    request_key: int = 0
