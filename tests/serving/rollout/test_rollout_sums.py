"""Sums of evidence are the same bit for bit whatever the order of entries, batches, restarts and merges; and bounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_world import SCHEMA
from rollout_world import SPEC as SHORT

from pipeline.arrays import Array
from pipeline.errors import InvalidInput
from pipeline.features import Features, IdPart, NumberPart
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import Labelled, Scores
from pipeline.traffic.record import PredictionRecord, pack
from serving.rollout.analysis import RolloutAnalysis, new_analysis, new_table
from serving.rollout.sums import selection
from serving.rollout.sums.blocks import MAX_TABLE_ROWS, BlockTable
from serving.rollout.sums.packed import pack_sums, unpack_sums
from serving.rollout.sums.scale import UNITS, checked
from serving.rollout.sums.view import EvidenceView

SPEC = SHORT.model_copy(
    update={"analysis": SHORT.analysis.model_copy(update={"block": 30.0, "interval": 30.0, "breach_window": 1500.0})}
)
SLICED = SPEC.model_copy(update={"analysis": SPEC.analysis.model_copy(update={"segments": ("tab", "price")})})
BLOCK_MS = SPEC.analysis.block_ms
LATE_BLOCKS = 100
"""Most blocks by which an entry comes after others in these tests: less than what a table keeps fine."""
BUSY = 12_345
"""A routing key that makes half of the requests in these tests."""


def analysis(most_blocks: int = 0) -> RolloutAnalysis:
    made = new_analysis(SLICED, 0, lambda _: SCHEMA, new_table(SLICED, most_blocks))
    made.begin_phase(0, 0.0, 0)
    made.begin_phase(1, 10.0, 40 * BLOCK_MS)
    return made


def history(rng: np.random.Generator, number: int, block: int) -> list[Labelled]:
    """Entries of one prediction in the order in which they come: rows, then late rows, late labels and labels again."""
    n, arm = 4, "candidate" if rng.random() < 0.3 else "stable"
    other = "candidate" if arm == "stable" else "stable"
    names = {"stable": ("old", 1), "candidate": ("new", int(rng.integers(1, 3)))}
    scores = rng.uniform(0.01, 0.6, (2, n)).astype("f4")
    price = rng.choice([0.0, 3.0, np.nan], (n, 1)).astype("f4")
    tab = IdPart(np.zeros(1, np.int32), rng.integers(1, 20, (1, 1)))
    features = Features(n, (tab,), (NumberPart(np.zeros(1, np.int32), price),))
    name, at = f"p{number}", block * BLOCK_MS + int(rng.integers(BLOCK_MS))
    key = BUSY if rng.random() < 0.5 else int(rng.integers(0, 1 << 62)) * int(rng.random() < 0.9)
    record = PredictionRecord(name, at, "ranker", arm, *names[arm], features, scores[0], key, rng.random() < 0.05)
    others = (Scores(other, *names[other], scores[1]),) if rng.random() < 0.9 else ()
    labels: dict[int, float] = {}
    entries: list[Labelled] = []
    for revision in range(int(rng.integers(1, 4))):
        rows = np.sort(rng.choice(n, int(rng.integers(1, n + 1)), replace=False)).astype(np.int32)
        now = rng.choice([0.0, 0.0, 1.0, 0.3], len(rows)).astype("f4")
        before = np.array([labels.get(int(row), np.nan) for row in rows], "f4")
        labels |= dict(zip(rows.tolist(), now.tolist(), strict=True))
        none = np.full(len(rows), -1, np.int32)
        entries.append(Labelled(0, name, "ranker", revision, at, rows, now, none, before, pack(record), others))
    return entries


def shuffled(histories: list[tuple[int, list[Labelled]]], rng: np.random.Generator) -> list[Labelled]:
    """An order in which they may come: those of one prediction in turn, and none later than LATE_BLOCKS."""
    placed = []
    for block, entries in histories:
        places = np.sort(block + rng.uniform(0, LATE_BLOCKS, len(entries)))
        placed += list(zip(places.tolist(), entries, strict=True))
    placed.sort(key=lambda one: one[0])
    return [replace(entry, seq=seq) for seq, (_, entry) in enumerate(placed, 1)]


def fed(made: RolloutAnalysis, entries: list[Labelled], rng: np.random.Generator, restarts: int = 0) -> RolloutAnalysis:
    """Add entries in batches of any size, through as many restarts."""
    at = 0
    stops = sorted(rng.integers(0, len(entries), restarts).tolist())
    while at < len(entries):
        size = int(rng.integers(1, 60))
        made.add(entries[at : at + size])
        at += size
        if rng.random() < 0.1:
            made.refresh()
        if stops and at >= stops[0]:
            stops.pop(0)
            again = new_analysis(SLICED, 0, lambda _: SCHEMA, new_table(SLICED, 0))
            assert again.restore(made.save())
            made = again
    return made


def sums_of(made: RolloutAnalysis) -> dict[str, Array | list[int]]:
    """All sums, in an order that does not depend on when they came."""
    table = made.refresh()
    kinds = [(kind, row) for kind, row in table.kinds() if kind != "past"]
    rows = np.array([row for _, row in kinds])
    slices = sorted(table.slices)
    found: dict[str, Array | list[int]] = {
        "blocks": table.sums[rows],
        "slices": table.parts[rows][:, [table.slices[part] for part in slices]],
        "names": [code for _, code in slices],
        "counts": [made.exposed, made.paired, made.overridden, made.not_finite, made.left_out, table.doublings],
    }
    for at, stay in enumerate(made.stays):
        head, arrays = stay.save()
        found |= {f"stay {at} {name}": array for name, array in arrays.items()}
        found[f"stay {at} losses"] = head["losses"]
    return found


def assert_same(one: RolloutAnalysis, other: RolloutAnalysis) -> None:
    first, second = sums_of(one), sums_of(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_order_of_entries_restarts_and_merges_gives_the_same_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    few = np.random.default_rng(seed + 1)
    histories = [(block, history(few, block, block)) for block in range(640) if few.random() < 0.9]
    plain = fed(analysis(), shuffled(histories, rng), rng)
    assert plain.table.doublings >= 2, "blocks were merged"
    assert plain.left_out > 20, "predictions of the busy key were left out"
    assert_same(plain, fed(analysis(), shuffled(histories, rng), rng, restarts=5))
    whole = fed(analysis(10_000), shuffled(histories, rng), rng)
    assert whole.table.doublings == 0
    for made in (plain, whole):
        made.refresh()
    merged, single = (made.table.select(0, part=None).lines for made in (plain, whole))
    added = [at for at in range(selection.ROWS, selection.COLUMNS) if at not in (selection.AUC_DELTA,)]
    np.testing.assert_allclose(merged[:, added].sum(0), single[:, added].sum(0), rtol=1e-12)
    assert EvidenceView(plain.table).since(0).blocks == EvidenceView(whole.table).since(0).blocks


def keyed(number: int, block: int, key: int, label: float = 0.0) -> list[Labelled]:
    """An entry of one prediction with a row of this key, and one that sets its label right."""
    scores = np.array([0.2], "f4")
    name, at, rows = f"k{number}", block * BLOCK_MS, np.zeros(1, np.int32)
    record = PredictionRecord(name, at, "ranker", "stable", "old", 1, Features(1), scores, key)
    labels, before, none = np.array([label], "f4"), np.array([np.nan], "f4"), np.full(1, -1, np.int32)
    other = (Scores("candidate", "new", 1, scores),)
    first = Labelled(0, name, "ranker", 0, at, rows, labels, none, before, pack(record), other)
    return [first, replace(first, revision=1, labels=1 - labels, previous=labels)]


def capped(
    key_cap: float, per_block: int, busy: int, keys: int, blocks: int = 400
) -> tuple[RolloutAnalysis, list[Labelled]]:
    """Sums of `per_block` predictions a block, `busy` of them of one key and the others of so many; and all later labels."""
    spec = SPEC.model_copy(update={"analysis": SPEC.analysis.model_copy(update={"key_cap": key_cap})})
    made = new_analysis(spec, 0, lambda _: SCHEMA)
    made.begin_phase(0, 0.0, 0)
    rng, later = np.random.default_rng(5), []
    hashes = rng.integers(1, 1 << 62, keys).tolist()
    for block in range(blocks):
        found = [
            keyed(block * per_block + at, block, BUSY if at < busy else hashes[int(rng.integers(keys))], float(at % 2))
            for at in range(per_block)
        ]
        made.add([replace(first, seq=made.seq + 1 + at) for at, (first, _) in enumerate(found)])
        later += [again for _, again in found]
    return made, later


def test_a_key_that_is_busy_for_hours_counts_for_its_share_and_the_rest_is_told_as_left_out() -> None:
    made, later = capped(0.01, 40, 8, 5000, blocks=330)
    lines = made.refresh().select(0)
    hour = lines.time < 2 * 128 * BLOCK_MS
    assert (lines.left_out[hour] == 0).all(), "what a key does is known when its hour and one more are over"
    assert (lines.exposed + lines.left_out == 40).all()
    kept = 8 - lines.left_out[~hour].mean()
    assert kept / 40 == pytest.approx(0.01, abs=0.003)
    assert lines.left_out_fraction() == pytest.approx(made.left_out / (40 * 330), rel=0.05)
    assert made.snapshot().left_out == made.left_out
    before = lines.clicks.sum()
    made.add([replace(again, seq=made.seq + 1 + at) for at, again in enumerate(later)])
    after = made.refresh().select(0)
    assert before + after.clicks.sum() == after.rows.sum(), "labels are taken back of the rows that were counted"
    assert (after.lines[:, selection.ROWS] == lines.lines[:, selection.ROWS]).all()


@pytest.mark.parametrize(
    ("key_cap", "busy", "keys", "left_out"),
    [(0.0, 8, 5000, False), (0.5, 8, 5000, False), (0.01, 8, 40, False), (0.01, 8, 5000, True), (0.01, 0, 5000, False)],
)
def test_nothing_is_left_out_without_a_cap_or_where_keys_are_few(
    key_cap: float, busy: int, keys: int, left_out: bool
) -> None:
    made, _ = capped(key_cap, 20, busy, keys, blocks=300)
    assert (made.left_out > 0) is left_out


def sliced_traffic(blocks: int, fields: int, rng: np.random.Generator) -> list[Labelled]:
    """A prediction of 33 rows per block, with `fields` fields of 40 values each."""
    n, columns = 33, np.arange(fields, dtype=np.int32)
    unknown, none = np.full(n, np.nan, "f4"), np.full(n, -1, np.int32)
    made = []
    for block in range(blocks):
        scores = rng.uniform(0.01, 0.6, (2, n)).astype("f4")
        features = Features(n, (IdPart(columns, rng.integers(1, 40, (n, fields))),))
        record = PredictionRecord(str(block), block * BLOCK_MS, "ranker", "stable", "old", 1, features, scores[0])
        labels = (rng.random(n) < 0.3).astype("f4")
        other = (Scores("candidate", "new", 1, scores[1]),)
        rows = np.arange(n, dtype=np.int32)
        entry = Labelled(
            block + 1, str(block), "ranker", 0, block * BLOCK_MS, rows, labels, none, unknown, pack(record), other
        )
        made.append(entry)
    return made


@pytest.mark.parametrize(
    ("blocks", "seconds"),
    [(900, 5.0), pytest.param(2 * 24 * 120, 3600.0, marks=pytest.mark.long)],
)
def test_blocks_of_days_with_16_sliced_fields_stay_within_the_bound(blocks: int, seconds: float) -> None:
    names = [f"f{at}" for at in range(16)]
    schema = Schema(fields=tuple(FieldSpec(name=name, role="candidate", kind="id") for name in names))
    looked = SPEC.analysis.model_copy(update={"segments": tuple(names), "breach_window": seconds * BLOCK_MS / 30_000})
    spec = SPEC.model_copy(update={"analysis": looked})
    made = new_analysis(spec, 0, lambda _: schema)
    made.begin_phase(0, 0.0, 0)
    rng, most = np.random.default_rng(3), 0
    for start in range(0, blocks, 300):
        chunk = sliced_traffic(min(300, blocks - start), 16, rng)
        moved = [replace(e, seq=e.seq + start, time_ms=e.time_ms + start * BLOCK_MS) for e in chunk]
        made.add(moved)
        most = max(most, made.table.size)
    table = made.refresh()
    assert len(table.slices) == 16 * 33
    fewest = table.fine + 64 + 96
    assert most <= max(MAX_TABLE_ROWS, fewest * (1 + len(table.slices)))
    assert table.doublings >= 1
    assert table.sums.nbytes + table.parts.nbytes < 64 << 20
    assert len(made.save()) < 16 << 20
    evidence = EvidenceView(table).all()
    assert float(evidence.rows.sum()) >= 33 * (blocks - 2 - (1 << table.doublings))
    assert len(evidence.lines) >= 50


def test_what_an_outage_or_an_older_candidate_scored_is_no_evidence_after_it_was_merged() -> None:
    table, whole = (BlockTable(100, 20, most) for most in (0, 10_000))
    for one in (table, whole):
        one.begin(0, 2)
    lines = np.zeros((1200, selection.COLUMNS))
    lines[:, selection.ROWS], lines[:, selection.STABLE], lines[:, selection.VERSION] = 100, 8, 2
    lines[:, selection.CLICKS] = 8 + np.arange(1200) % 3 - 1
    lines[[40, 80], selection.CLICKS] = 0  # a block without a click happens
    lines[203:301, selection.CLICKS] = 0  # labels are missing
    lines[500:503, selection.VERSION] = 1
    for at, line in enumerate(lines):
        for one in (table, whole):
            one.fill(at, line[None])
    assert table.doublings == 3
    assert not EvidenceView(table).silent
    merged, single = EvidenceView(table).since(0), EvidenceView(whole).since(0)
    assert merged.blocks == single.blocks == 1199 - 98 - 3
    for column in (selection.CLICKS, selection.ROWS, selection.STABLE):
        assert merged.lines[:, column].sum() == single.lines[:, column].sum()
    all_of_one_length = EvidenceView(table).all()
    groups = (all_of_one_length.time / 100).astype(int) >> table.doublings
    assert len(set(groups.tolist())) == len(groups)
    assert single.blocks - all_of_one_length.blocks < 8, "only the last one is not complete"
    assert table.select(0).rows.sum() == whole.select(0).rows.sum(), "what is no evidence is shown"


def test_new_evidence_begins_with_single_blocks() -> None:
    table = BlockTable(100, 20, 0)
    lines = np.zeros((1000, selection.COLUMNS))
    lines[:, [selection.ROWS, selection.CLICKS, selection.STABLE]] = 10, 2, 2
    table.fill(0, lines)
    assert table.doublings > 0
    table.begin(100_000, 0)
    assert EvidenceView(table).all().blocks == table.doublings == 0
    table.fill(1000, lines[:60])
    assert (EvidenceView(table).all().blocks, len(EvidenceView(table).all().lines)) == (59, 59)
    table.fill(1060, lines)
    assert table.size <= table.most
    assert table.select(0).rows.sum() == 10 * (1000 + 60 + 1000 - 1), "those before are merged, not dropped"


def test_limits_of_merged_blocks_are_those_of_the_same_evidence() -> None:
    rng = np.random.default_rng(4)
    lines = np.zeros((1025, selection.COLUMNS))
    lines[:, selection.ROWS] = 1000
    lines[:, selection.CLICKS] = rng.poisson(200, 1025)
    lines[:, selection.CANDIDATE] = 201
    lines[:, selection.AUC_DELTA] = rng.normal(0.001, 0.01, 1025)
    table, whole = (BlockTable(100, 20, most) for most in (0, 10_000))
    for one in (table, whole):
        one.fill(0, lines)
    merged, single = EvidenceView(table).all(), EvidenceView(whole).all()
    assert merged.blocks == single.blocks == 1024
    assert len(merged.lines) == 1024 >> table.doublings < len(single.lines)
    now, before = merged.bias_limits("candidate", 0.025), single.bias_limits("candidate", 0.025)
    assert now.mean == pytest.approx(before.mean)
    assert now.high - now.low == pytest.approx(before.high - before.low, rel=0.2)
    assert merged.auc_mean() == pytest.approx(single.auc_mean(), abs=1e-9)
    wide, narrow = (each.auc_test(-0.002, 0.05, 50).limits for each in (merged, single))
    assert wide.mean / (1 << table.doublings) == pytest.approx(narrow.mean)
    assert (wide.high - wide.mean) / (1 << table.doublings) == pytest.approx(narrow.high - narrow.mean, rel=0.2)


def test_sums_that_would_wrap_around_are_refused() -> None:
    checked(np.array([1 << 62, -(1 << 62)]))
    with pytest.raises(InvalidInput, match="shorten block") as caught:
        checked(np.array([(1 << 62) + 1]))
    assert caught.value.field == "analysis.block"
    table = BlockTable(100)
    line = np.zeros((1, selection.COLUMNS))
    line[0, selection.CLICKS] = 2.0**33
    with pytest.raises(InvalidInput):
        table.fill(0, line)
    assert UNITS * (1 << 32) <= 1 << 62, "a line holds four thousand million rows"


@given(st.binary(max_size=40))
def test_what_nobody_packed_is_no_sums(junk: bytes) -> None:
    assert unpack_sums(junk) is None
    whole = pack_sums({"a": 1}, {"b": np.arange(5)})
    assert unpack_sums(whole[:-1]) is None
    assert unpack_sums(whole + junk[:1]) is None or not junk
    assert unpack_sums(whole) is not None
