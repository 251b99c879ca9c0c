"""Labelled rows to figures, against a recomputation from the plain rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features import Features
from pipeline.metrics import auc, bias, logloss
from pipeline.traffic.log import Labelled, Scores
from pipeline.traffic.record import PredictionRecord, pack, unpack
from serving.rollout.analysis import RolloutAnalysis
from serving.rollout.figures import PhaseFigures
from serving.rollout.sums.view import EvidenceView

BLOCK_MS = 100


@dataclass
class Row:
    """One exposed row with both scores."""

    time_ms: int
    arm: str
    label: float
    stable: float
    candidate: float
    paired: bool
    version: int


def entry(
    seq: int,
    time_ms: int,
    rng: np.random.Generator,
    *,
    arm: str = "stable",
    n: int = 8,
    paired: bool = True,
    overridden: bool = False,
    endpoint: str = "ranker",
    version: int = 1,
    bundle: str = "new",
) -> Labelled:
    scores = {"stable": rng.uniform(0.05, 0.6, n), "candidate": rng.uniform(0.05, 0.6, n)}
    other = "candidate" if arm == "stable" else "stable"
    names = {"stable": ("old", 9), "candidate": (bundle, version)}
    shown = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False)).astype(np.int32)
    record = PredictionRecord(
        f"p{seq}", time_ms, endpoint, arm, *names[arm], Features(n), scores[arm].astype(np.float32), 0, overridden
    )
    others = (Scores(other, *names[other], scores[other].astype(np.float32)),) if paired else ()
    labels = (rng.random(len(shown)) < 0.4).astype(np.float32)
    unknown = np.full(len(shown), np.nan, np.float32)
    return Labelled(
        seq,
        f"p{seq}",
        endpoint,
        0,
        time_ms,
        shown,
        labels,
        np.full(len(shown), -1, np.int32),
        unknown,
        pack(record),
        others,
    )


def rows_of(entries: list[Labelled]) -> list[Row]:
    """The last label of every exposed row of the entries that count."""
    rows: dict[tuple[str, int], Row] = {}
    for one in entries:
        record = unpack(one.record)
        if record.overridden or record.endpoint != "ranker":
            continue
        for at, label in zip(one.indices, one.labels, strict=True):
            own = float(record.scores[at])
            theirs = float(one.other[0].scores[at]) if one.other else np.nan
            stable, candidate = (own, theirs) if record.arm == "stable" else (theirs, own)
            version = record.version if record.arm == "candidate" else one.other[0].version if one.other else 0
            rows[one.prediction_id, int(at)] = Row(
                record.time_ms, record.arm, float(label), stable, candidate, bool(one.other), version
            )
    return list(rows.values())


def stream(rng: np.random.Generator, entries: int, revise: float = 0.2) -> list[Labelled]:
    made: list[Labelled] = []
    seq = 0
    for at in range(entries):
        seq += 1
        made.append(
            entry(
                seq,
                1000 + at * 17,
                rng,
                arm="candidate" if rng.random() < 0.3 else "stable",
                paired=rng.random() < 0.9,
                overridden=rng.random() < 0.05,
                endpoint="ranker" if rng.random() < 0.95 else "another",
            )
        )
        if rng.random() < revise:
            old = made[rng.integers(len(made))]
            if old.revision == 0 and not any(o.prediction_id == old.prediction_id and o.revision for o in made):
                keep = rng.random(len(old.indices)) < 0.5
                if keep.any():
                    seq += 1
                    made.append(
                        replace(
                            old,
                            seq=seq,
                            revision=1,
                            indices=old.indices[keep],
                            labels=1 - old.labels[keep],
                            positions=old.positions[keep],
                            previous=old.labels[keep],
                        )
                    )
    return made


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_figures_equal_a_recomputation_from_the_rows(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    entries = stream(rng, 120)
    analysis = RolloutAnalysis("ranker", "new", BLOCK_MS)
    analysis.begin_phase(0, 0.0, 0)
    analysis.begin_phase(1, 5.0, 2000)
    for start in range(0, len(entries), batch):
        analysis.add(entries[start : start + batch])
    analysis.add(entries)  # read again: nothing is counted twice
    table = analysis.refresh()
    rows = rows_of(entries)
    paired = [row for row in rows if row.paired]
    snapshot = analysis.snapshot()
    assert (snapshot.exposed, snapshot.paired) == (len(rows), len(paired))
    json.dumps(asdict(snapshot))
    for figures, mine in zip(
        snapshot.phases,
        ([r for r in paired if r.time_ms < 2000], [r for r in paired if r.time_ms >= 2000]),
        strict=True,
    ):
        y = np.array([r.label for r in mine])
        assert figures.rows == len(mine)
        assert figures.labels == pytest.approx(y.sum())
        for arm, measured in (("stable", figures.stable), ("candidate", figures.candidate)):
            p = np.array([getattr(r, arm) for r in mine])
            assert measured.logloss == pytest.approx(logloss(y, p))
            if y.sum():
                assert measured.bias == pytest.approx(bias(y, p))
            exact = auc(y, p)
            assert (measured.auc is None) == np.isnan(exact)
            if measured.auc is not None and measured.auc_bound is not None:
                assert abs(measured.auc - exact) <= measured.auc_bound + 1e-9
        served = [r for r in mine if r.arm == "candidate"]
        assert figures.served_by_candidate == figures.served.rows == len(served)
    chosen = table.select(0)
    newest = max(row.time_ms // BLOCK_MS for row in rows)
    for time, clicks, candidate, n, exposed, served in zip(
        chosen.time, chosen.clicks, chosen.candidate, chosen.rows, chosen.exposed, chosen.served, strict=True
    ):
        block = [r for r in rows if r.time_ms // BLOCK_MS == time // BLOCK_MS]
        both = [r for r in block if r.paired]
        assert time // BLOCK_MS < newest, "the newest block is still open"
        assert (exposed, n) == (len(block), len(both))
        assert clicks == pytest.approx(sum(r.label for r in both))
        assert candidate == pytest.approx(sum(r.candidate for r in both))
        assert served == pytest.approx(sum(r.candidate for r in both if r.arm == "candidate"))


def test_auc_difference_of_a_block() -> None:
    rng = np.random.default_rng(3)
    analysis = RolloutAnalysis("ranker", "new", 1000)
    entries = [entry(seq, 10_000 + seq, rng, n=50) for seq in range(1, 31)]
    analysis.add([*entries, entry(31, 12_000, rng)])
    rows = rows_of(entries)
    y = np.array([r.label for r in rows])
    apart = auc(y, np.array([r.candidate for r in rows])) - auc(y, np.array([r.stable for r in rows]))
    assert analysis.refresh().select(0).auc_delta[0] == pytest.approx(apart, abs=0.01)


def test_rows_of_another_candidate_and_unknown_late_labels_are_no_pairs() -> None:
    rng = np.random.default_rng(4)
    analysis = RolloutAnalysis("ranker", "new", BLOCK_MS)
    lost = entry(1, 1000, rng, paired=False)
    analysis.add([lost])
    found = entry(1, 1000, np.random.default_rng(4))
    late = replace(found, seq=2, revision=1, previous=found.labels, labels=1 - found.labels)
    analysis.add([late])
    analysis.add([entry(3, 1010, rng, bundle="former")])
    assert (analysis.paired, analysis.snapshot().coverage) == (0, 0.0)
    assert analysis.refresh().select(0, until_ms=10_000).clicks.sum() == 0


def test_blocks_scored_by_an_older_candidate_are_not_evidence_on_a_newer_one() -> None:
    rng = np.random.default_rng(5)
    analysis = RolloutAnalysis("ranker", "new", BLOCK_MS)
    for seq, (time, version) in enumerate([(1000, 1), (1110, 1), (1120, 2), (1210, 2), (1390, 2)], 1):
        analysis.add([entry(seq, time, rng, version=version)])
    table = analysis.refresh()
    assert table.select(0).blocks == 3
    table.begin(0, version=2)
    assert EvidenceView(table).all().time.tolist() == [1200]
    assert table.select(1100).blocks == 2


def test_runs_of_blocks_without_clicks_are_an_outage() -> None:
    from serving.rollout.sums import selection
    from serving.rollout.sums.blocks import BlockTable

    table = BlockTable(BLOCK_MS)
    lines = np.zeros((8, selection.COLUMNS))
    lines[:, selection.STABLE] = 8.0
    lines[:, selection.CLICKS] = [7, 0, 9, 0, 0, 0, 8, 8]  # one empty block happens; three with 24 expected do not
    table.fill(0, lines)
    assert table.select(0).silent().tolist() == [False, False, False, True, True, True, False]


def test_phase_figures_survive_json() -> None:
    rng = np.random.default_rng(6)
    analysis = RolloutAnalysis("ranker", "new", BLOCK_MS)
    analysis.begin_phase(0, 0.0, 0)
    analysis.add([entry(seq, 1000 + 30 * seq, rng) for seq in range(1, 40)])
    figures = analysis.phase_figures(0)
    assert PhaseFigures.from_json(json.loads(json.dumps(asdict(figures)))) == figures


@pytest.mark.parametrize(("served_bias", "moved"), [(0.0, False), (0.10, True)])
def test_a_population_that_serving_changes_is_seen(served_bias: float, moved: bool) -> None:
    from serving.rollout.sums import selection
    from serving.rollout.sums.blocks import BlockTable

    rng = np.random.default_rng(7)
    table = BlockTable(BLOCK_MS)
    lines = np.zeros((201, selection.COLUMNS))
    lines[:, selection.SERVED_CLICKS] = rng.poisson(60, 201)
    lines[:, selection.SERVED] = 60 * (1 + served_bias)
    lines[:, selection.CLICKS] = rng.poisson(140, 201) + lines[:, selection.SERVED_CLICKS]
    lines[:, selection.CANDIDATE] = 140 + lines[:, selection.SERVED]
    table.fill(0, lines)
    assert table.select(0).population_moved(0.0125, 50) is moved


def test_rows_with_a_score_that_is_not_finite_are_counted_and_in_no_figure() -> None:
    rng = np.random.default_rng(8)
    whole, holed = (RolloutAnalysis("ranker", "new", BLOCK_MS) for _ in range(2))
    for one in (whole, holed):
        one.begin_phase(0, 0.0, 0)
    for seq in range(1, 40):
        made = entry(seq, 1000 + seq * 17, rng, arm="candidate" if seq % 3 else "stable")
        ill = {int(at) for at in made.indices if (at + seq) % 4 == 0}
        record = unpack(made.record)
        own, theirs = record.scores.copy(), made.other[0].scores.copy()
        for at in ill:
            (own if at % 2 else theirs)[at] = (np.nan, np.inf)[at % 3 == 0]
        other = (replace(made.other[0], scores=theirs),)
        holed.add([replace(made, record=pack(replace(record, scores=own)), other=other)])
        sound = np.array([int(at) not in ill for at in made.indices])
        named = ("indices", "labels", "positions", "previous")
        whole.add([replace(made, **{name: getattr(made, name)[sound] for name in named})])
    found, wanted = holed.snapshot(), whole.snapshot()
    assert found.not_finite == found.exposed - wanted.exposed > 20
    assert found.phases[0].stable == wanted.phases[0].stable
    assert found.phases[0].candidate == wanted.phases[0].candidate
    assert found.paired == wanted.paired
    json.dumps(asdict(found), allow_nan=False)
