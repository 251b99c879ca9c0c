"""The labelled stream as the worker reads it: whose rows, in which batches, with which scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, Rows
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import Labelled, Scores
from pipeline.traffic.record import PredictionRecord, pack, unpack
from transfer.online.stream import Fields, StreamBatch, held_out, read_batches

SCHEMA = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))
OTHER_SCHEMA = Schema(fields=(*SCHEMA.fields, FieldSpec(name="shop", role="candidate")))
HOLDOUT = 0.2


class Kept:
    """A labelled log in memory; only reading matters here."""

    def __init__(self, entries: Sequence[Labelled]) -> None:
        self._entries = entries

    def labelled(self, after: int, limit: int = 256) -> list[Labelled]:
        return [entry for entry in self._entries if entry.seq > after][:limit]

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"reading batches needs no {name}")


def entry(
    seq: int,
    n: int = 3,
    *,
    endpoint: str = "ranker",
    arm: str = "stable",
    schema: Schema = SCHEMA,
    overridden: bool = False,
    other: Sequence[Scores] = (),
    previous: float = np.nan,
    revision: int = 0,
) -> Labelled:
    ids = np.full((n, len(schema.ids)), 1000 + seq, np.int64)
    features = Features.from_context(schema, Rows(ids, np.empty((n, 0), np.float32)))
    scores = np.full(n, 0.25, np.float32)
    record = PredictionRecord(
        f"p{seq}", seq, endpoint, arm, "teacher", 1, features, scores, overridden=overridden
    )  # fmt: skip
    return Labelled(
        seq=seq,
        prediction_id=f"p{seq}",
        endpoint=endpoint,
        revision=revision,
        time_ms=seq,
        indices=np.arange(n, dtype=np.int32),
        labels=np.ones(n, np.float32),
        positions=np.full(n, -1, np.int32),
        previous=np.full(n, previous, np.float32),
        record=pack(record),
        other=tuple(other),
    )


def batches(entries: Sequence[Labelled], rows: int = 1, after: int = 0) -> list[StreamBatch]:
    return list(read_batches(Kept(entries), "ranker", Fields(SCHEMA), after, rows=rows, holdout=HOLDOUT))


def seen(batch: StreamBatch) -> set[int]:
    """Seqs of the entries in a batch."""
    return {int(i) - 1000 for part in (batch.train, batch.held) for i in part.rows.ids[:, 0]}


TRAINED = next(i for i in range(1, 100) if not held_out(f"p{i}", HOLDOUT))


@pytest.mark.parametrize(
    "foreign",
    [
        {"endpoint": "other"},
        {"endpoint": "teacher", "arm": "direct"},
        {"arm": "direct"},
        {"schema": OTHER_SCHEMA},
    ],
    ids=["endpoint", "model by name", "direct", "schema"],
)
def test_rows_of_others_are_passed_over(foreign: dict[str, object]) -> None:
    mine = [entry(seq) for seq in range(1, 40, 2)]
    others = [entry(seq, **foreign) for seq in range(2, 41, 2)]  # type: ignore[arg-type]
    mixed = sorted([*mine, *others], key=lambda e: e.seq)
    found, expected = batches(mixed, rows=6), batches(mine, rows=6)
    assert expected
    assert [b.last for b in found] == [b.last for b in expected]
    assert [seen(b) for b in found] == [seen(b) for b in expected]
    assert batches(others) == []


def test_a_damaged_record_is_passed_over() -> None:
    whole = entry(TRAINED)
    assert batches([replace(whole, record=whole.record[:-8])]) == []


def test_rows_whose_arm_the_caller_chose_are_rows() -> None:
    (found,) = batches([entry(TRAINED, overridden=True)])
    assert len(found.train) == 3


def test_scores_are_those_of_the_exposed_rows_and_nan_where_an_arm_is_silent() -> None:
    other = Scores("candidate", "student", 1, np.array([0.1, 0.2, 0.3], np.float32))
    shown = replace(
        entry(TRAINED, other=[other]),
        indices=np.array([2, 0], np.int32),
        labels=np.array([1, 0], np.float32),
        previous=np.array([np.nan, 1], np.float32),
    )
    (found,) = batches([shown])
    np.testing.assert_array_equal(found.train.stable, np.float32([0.25, 0.25]))
    np.testing.assert_array_equal(found.train.candidate, np.float32([0.3, 0.1]))
    np.testing.assert_array_equal(found.train.labels, np.float32([1, 0]))
    np.testing.assert_array_equal(found.train.previous, np.float32([np.nan, 1]))
    (alone,) = batches([entry(TRAINED, arm="candidate")])
    assert np.isnan(alone.train.stable).all()
    np.testing.assert_array_equal(alone.train.candidate, np.full(3, 0.25, np.float32))


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=60), st.integers(1, 12))
def test_resumed_after_any_batch_the_rest_is_the_same(shape: list[tuple[int, bool]], rows: int) -> None:
    log = [entry(seq, n, endpoint="ranker" if mine else "other") for seq, (n, mine) in enumerate(shape, 1)]
    whole = batches(log, rows)
    for at, batch in enumerate(whole):
        assert len(batch.train) >= rows
        rest = batches(log, rows, after=batch.last)
        assert [(b.last, seen(b)) for b in rest] == [(b.last, seen(b)) for b in whole[at + 1 :]]
    trained = {s for b in whole for s in {int(i) - 1000 for i in b.train.rows.ids[:, 0]}}
    assert not any(held_out(f"p{s}", HOLDOUT) for s in trained)


def test_a_prediction_that_would_fill_the_memory_is_passed_over() -> None:
    """A context's bag is copied to every row: 8 MB in the log would be 80 GB here."""
    schema = Schema(fields=(*SCHEMA.fields, FieldSpec(name="seen", kind="bag", role="context", separator=",")))
    n, many = 10_000, 1_000_000
    small = entry(1, n)
    bag = Bag(0, np.array([0, many], np.int32), np.zeros(many, np.int64))
    features = replace(unpack(small.record).features, bags=(bag,))
    vast = replace(small, record=pack(replace(unpack(small.record), features=features)))
    assert list(read_batches(Kept([vast]), "ranker", Fields(schema), 0, rows=1, holdout=HOLDOUT)) == []
    with pytest.raises(InvalidInput, match="at most"):
        features.rows(None)
