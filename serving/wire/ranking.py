"""Conversion of RankRequest to features (columns by name in any order, raw values hashed), and of scores to RankResponse.

It knows nothing of endpoints, arms or engines. One codec per schema serves many threads at once; its only state is a table
of known column layouts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.arrays import F32, I32, I64, Array
from pipeline.errors import InvalidInput
from pipeline.event import Event
from pipeline.features import Bag, Features, IdPart, NumberPart, refuse_infinite
from pipeline.hashing import hash_bag_column, hash_column, hash_value
from pipeline.reading import Missing
from pipeline.schema import FieldSpec, Schema
from serving.wire.packed import PackedRankResponse, original

__all__ = ["RankCodec", "candidate_hash", "candidate_hashes", "rank_response"]

_KEPT_LAYOUTS = 256


def candidate_hash(candidate_id: str) -> int:
    """The hash under which a caller's candidate id is recorded and found again by feedback."""
    return hash_value("candidate_id", candidate_id)


def candidate_hashes(candidate_ids: Sequence[str]) -> I64 | None:
    """`candidate_hash` of each, int64 `[n]`; None without ids."""
    if not candidate_ids:
        return None
    return np.fromiter((candidate_hash(c) for c in candidate_ids), np.int64, len(candidate_ids))


def rank_response(request: Any, event: Event, bundle: str, version: str) -> bytes:
    """A RankResponse as bytes: the scores in request order, or the best `top_k` of them."""
    assert event.scores is not None
    scores = event.scores
    response = PackedRankResponse(
        prediction_id=event.prediction_id,
        arm=event.arm,
        version=version,
        bundle=bundle,
        degraded=event.degraded,
        request_id=request.request_id,
    )
    if request.top_k:
        best = np.argsort(-scores, kind="stable")[: request.top_k]
        response.ranking.indices = best.astype("<u4").tobytes()
        response.ranking.scores = scores[best].astype("<f4", copy=False).tobytes()
        if request.candidate_ids:
            response.ranking.candidate_ids.extend(request.candidate_ids[i] for i in best.tolist())
    else:
        response.scores = scores.astype("<f4", copy=False).tobytes()
    answer: bytes = response.SerializeToString()
    return answer


@dataclass(slots=True)
class _Side:
    """Content of one half of a request, context or candidates, as read so far."""

    role: str
    n: int | None
    seen: set[str] = field(default_factory=set)
    ids: list[tuple[I32, I64]] = field(default_factory=list)
    numbers: list[tuple[I32, F32]] = field(default_factory=list)
    bags: list[Bag] = field(default_factory=list)

    def rows(self, count: int, name: str) -> None:
        if self.n is None:
            self.n = count
        if count != self.n:
            where = "context has one row" if self.role == "context" else f"{self.n} candidates"
            raise InvalidInput(f"field {name!r} holds {count} values where {where} were expected", name)


class RankCodec:
    """Decoder of requests for one schema.

    Args:
        schema: of the requests: the fields of the model that will answer, or of both arms of an endpoint.
        max_candidates: most rows of one request.
        optional: names of fields that a request may leave out; they are missing then.
    """

    def __init__(self, schema: Schema, max_candidates: int, optional: Collection[str] = ()) -> None:
        self.schema = schema
        self.optional = frozenset(optional)
        self._missing: dict[frozenset[str], Missing] = {}
        self.max_candidates = max_candidates
        self._fields = {f.name: f for f in schema.fields}
        self._column = {f.name: i for group in (schema.ids, schema.numbers, schema.bags) for i, f in enumerate(group)}
        self._layouts: dict[tuple[str, str, tuple[str, ...]], I32] = {}

    def decode(self, request: Any, data: bytes | None = None) -> Features:
        """Features of a RankRequest, as declared or as its packed twin.

        Args:
            data: the packed twin's bytes. If the twin is faulty, the message as declared is decoded from them instead.

        Raises:
            InvalidInput: a field is missing, unknown, sent twice, of the wrong kind or length, on the wrong side, or
                infinite; there are no candidates, too many, or equal candidate ids.
        """
        try:
            return self._decode(request)
        except InvalidInput:
            if data is None:
                raise
        return self._decode(original(data))

    def _decode(self, request: Any) -> Features:
        named = len(request.candidate_ids)
        self._check_size(named)
        if named and len(set(request.candidate_ids)) != named:
            raise InvalidInput("candidate_ids must be unique within a request", "candidate_ids")
        context = _Side("context", 1)
        candidates = _Side("candidate", named or None)
        self._side(request.context, context)
        self._side(request.candidates, candidates)
        count = candidates.n or 0
        if count == 0:
            raise InvalidInput("a request needs at least one candidate", "candidates")
        self._check_size(count)
        missing = self._left_out(context.seen | candidates.seen)
        recall = request.recall_scores
        recall_count = len(recall) // 4 if isinstance(recall, bytes) else len(recall)
        if recall_count not in (0, count):
            raise InvalidInput(
                f"recall_scores holds {recall_count} numbers for {count} candidates; send one each or none",
                "recall_scores",
            )
        ids = [IdPart(*part) for part in (*_merge(context.ids), *_merge(candidates.ids))]
        numbers = [NumberPart(*part) for part in (*_merge(context.numbers), *_merge(candidates.numbers))]
        if missing is None:
            return Features(count, tuple(ids), tuple(numbers), (*context.bags, *candidates.bags))
        bags = (*context.bags, *candidates.bags, *missing.bags)
        return Features(count, (*ids, *missing.ids), (*numbers, *missing.numbers), bags)

    @staticmethod
    def rows_hint(request: Any) -> int:
        """Candidates of a packed request, if its head shows them; 0: unknown."""
        matrix = request.candidates.ids
        if request.candidate_ids:
            return len(request.candidate_ids)
        return len(matrix.values) // (8 * len(matrix.fields)) if matrix.fields else 0

    def _check_size(self, count: int) -> None:
        if count > self.max_candidates:
            raise InvalidInput(
                f"{count} candidates are more than the {self.max_candidates} of one request; send several requests",
                "candidates",
            )

    def _left_out(self, seen: set[str]) -> Missing | None:
        """The parts of the fields that were left out and may be; None where all were sent."""
        if len(seen) == len(self._fields):
            return None
        absent = frozenset(self._fields.keys() - seen)
        known = self._missing.get(absent)
        if known is None:
            field = next((f for f in self.schema.fields if f.name in absent - self.optional), None)
            if field is not None:
                place = "context" if field.role == "context" else "candidates"
                raise InvalidInput(f"field {field.name!r} is missing; send it in {place}", field.name)
            known = Missing(self.schema, absent)
            if len(self._missing) < _KEPT_LAYOUTS:
                self._missing[absent] = known
        return known

    def _side(self, rows: Any, side: _Side) -> None:
        if rows.HasField("ids"):
            side.ids.append(self._matrix(rows.ids, "id", np.dtype("<i8"), side))
        if rows.HasField("numbers"):
            columns, values = self._matrix(rows.numbers, "number", np.dtype("<f4"), side)
            refuse_infinite(values, self.schema.numbers, columns)
            side.numbers.append((columns, values))
        for column in rows.columns:
            self._single(column, side)

    def _matrix(self, matrix: Any, kind: str, dtype: np.dtype[Any], side: _Side) -> tuple[I32, Array]:
        fields = tuple(matrix.fields)
        columns = self._layout(kind, side.role, fields)
        _claim(side, fields)
        values = _array(matrix.values, dtype, fields[0] if fields else kind)
        width = len(columns)
        if not width:
            raise InvalidInput(f"the matrix of {kind}s of the {side.role} names no fields", fields[0] if fields else "")
        if len(values) % width:
            raise InvalidInput(
                f"the matrix of {kind}s of the {side.role} holds {len(values)} values, no multiple of its "
                f"{width} fields",
                fields[0],
            )
        side.rows(len(values) // width, fields[0])
        return columns, values.reshape(-1, width)

    def _layout(self, kind: str, role: str, fields: tuple[str, ...]) -> I32:
        known = self._layouts.get((kind, role, fields))
        if known is not None:
            return known
        for name in fields:
            self._expect(name, kind, role)
            if fields.count(name) > 1:
                raise InvalidInput(f"field {name!r} is sent twice", name)
        columns = np.array([self._column[name] for name in fields], np.int32)
        if len(self._layouts) < _KEPT_LAYOUTS:
            self._layouts[kind, role, fields] = columns
        return columns

    def _expect(self, name: str, kind: str | None, role: str) -> FieldSpec:
        field = self._fields.get(name)
        if field is None:
            raise InvalidInput(f"field {name!r} is not known; the fields are {sorted(self._fields)}", name)
        if field.role != role:
            right = "context" if field.role == "context" else "candidates"
            wrong = "candidates" if field.role == "context" else "context"
            raise InvalidInput(f"field {name!r} belongs to {right} and was sent in {wrong}", name)
        if kind is not None and field.kind != kind:
            raise InvalidInput(f"field {name!r} is of kind {field.kind} and was sent as {kind}", name)
        return field

    def _single(self, column: Any, side: _Side) -> None:
        name = column.field
        which = column.WhichOneof("values")
        field = self._expect(name, None, side.role)
        _claim(side, (name,))
        if which is None:
            raise InvalidInput(f"field {name!r} has no values", name)
        if (field.kind, which) not in _READERS:
            raise InvalidInput(f"field {name!r} is of kind {field.kind} and was sent as {which}", name)
        at = np.array([self._column[name]], np.int32)
        content = getattr(column, which)
        if field.kind == "bag":
            side.bags.append(self._bag(field, which, content, side))
            return
        if field.kind == "number":
            values = _array(content.values, np.dtype("<f4"), name)
            refuse_infinite(values[:, None], self.schema.numbers, at)
            side.rows(len(values), name)
            side.numbers.append((at, values[:, None]))
            return
        if which == "ids":
            ids = _array(content.values, np.dtype("<i8"), name)
        elif which == "integers":
            ids = hash_column(name, _array(content.values, np.dtype("<i8"), name), field.missing_texts, field.index)
        else:
            ids = hash_column(name, pa.array(list(content.values), pa.string()), field.missing_texts, field.index)
        side.rows(len(ids), name)
        side.ids.append((at, ids[:, None]))

    def _bag(self, field: FieldSpec, which: str, content: Any, side: _Side) -> Bag:
        name = field.name
        if which == "strings":
            texts = pa.array(list(content.values), pa.string())
            offsets, values = hash_bag_column(name, texts, field.separator or "", field.missing_texts, field.index)
        else:
            values = _array(content.values, np.dtype("<i8"), name)
            bounds = _array(content.offsets, np.dtype("<u4"), name).astype(np.int64)
            if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(values) or (np.diff(bounds) < 0).any():
                raise InvalidInput(
                    f"field {name!r}: offsets must start at 0, never fall, and end at the number of values, {len(values)}",
                    name,
                )
            if (values == 0).any():
                raise InvalidInput(f"field {name!r}: 0 only ever pads and is no element of a bag; leave it out", name)
            offsets = bounds.astype(np.int32)
        side.rows(len(offsets) - 1, name)
        return Bag(self._column[name], offsets, values)


_READERS = {
    ("id", "ids"),
    ("id", "integers"),
    ("id", "strings"),
    ("number", "numbers"),
    ("bag", "bags"),
    ("bag", "strings"),
}


def _claim(side: _Side, names: tuple[str, ...]) -> None:
    both = side.seen.intersection(names) if side.seen else ()
    if both:
        raise InvalidInput(f"field {min(both)!r} is sent twice", min(both))
    side.seen.update(names)


def _array(values: Any, dtype: np.dtype[Any], name: str) -> Array:
    if not isinstance(values, bytes):
        return np.fromiter(values, dtype, len(values))
    if len(values) % dtype.itemsize:
        raise InvalidInput(f"field {name!r}: {len(values)} bytes are no whole number of {dtype.name} values", name)
    return np.frombuffer(values, dtype)


def _merge(parts: list[tuple[I32, Array]]) -> list[tuple[I32, Array]]:
    """Single columns as one part: later work costs per part, not per column."""
    if len(parts) < 2:
        return parts
    return [(np.concatenate([c for c, _ in parts]), np.concatenate([v for _, v in parts], axis=1))]
