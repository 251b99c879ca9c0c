"""Figures of a rollout for display: of each stay at a step, and of each slice of the traffic. They decide nothing.

They are computed from the sums of `analysis`. Every interval is a confidence sequence (`evidence`), so it holds however
often it is read, and every figure comes with the rows, clicks or requests behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.metrics import Sums
from pipeline.reliability import calibration_error, deciles, score_stability, stability
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.evidence import Limits, finite
from serving.rollout.sums.outcome import ARMS, OutcomeSums
from serving.rollout.sums.packed import pack_sums, unpack_sums
from serving.rollout.sums.selection import ROWS, Selection
from serving.rollout.sums.slices import Slices
from serving.rollout.sums.stay import StaySums

__all__ = [
    "ArmFigures",
    "Interval",
    "LongRunFigures",
    "PhaseFigures",
    "RolloutFigures",
    "SliceFigures",
    "field_stability",
    "outcome_figures",
    "pack_figures",
    "phase_figures",
    "slice_figures",
    "unpack_figures",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its limits and the number of blocks behind them; None: no figure yet."""

    value: float | None
    low: float | None
    high: float | None
    blocks: int

    @classmethod
    def of(cls, limits: Limits) -> Interval:
        """Limits as plain numbers."""
        return cls(finite(limits.mean), finite(limits.low), finite(limits.high), limits.blocks)


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """Figures of one arm on the rows of a stay. None: no figure yet.

    Args:
        rows, clicks: behind the figures.
        auc, auc_bound: from the histogram; the exact one lies within the bound.
        logloss: mean, nats.
        bias, low, high: relative bias and its limits.
        calibration_error: mean distance of score and click rate over tenths.
        score_psi: population stability index of the arm's scores against the rollout's first stay.
        deciles: rows, clicks, mean, rate and bias by tenth of the scores, rising.
        blocks: behind the limits of the bias.
    """

    rows: int
    auc: float | None
    auc_bound: float | None
    logloss: float | None
    bias: float | None
    low: float | None
    high: float | None
    clicks: float = 0.0
    calibration_error: float | None = None
    score_psi: float | None = None
    deciles: tuple[dict[str, float | None], ...] = ()
    blocks: int = 0


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """Figures of the rows predicted during one stay at a step. `rows` have both arms' scores; `labels`: clicks on them."""

    step: int
    weight: float
    entered_ms: int
    rows: int
    labels: float
    served_by_candidate: int
    stable: ArmFigures
    candidate: ArmFigures
    served: ArmFigures
    """The candidate on the rows that it answered itself."""
    requests: dict[str, int] = field(default_factory=dict)
    """Requests with a routing key that each arm answered; at full weight those of stable are the holdout's."""
    outcome: dict[str, Interval] = field(default_factory=dict)
    """Labels of exposed rows per such request: `stable`, `candidate` and their `difference`; limits over groups of keys."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PhaseFigures:
        """The inverse of `dataclasses.asdict`."""
        arms = {
            name: ArmFigures(**{**data[name], "deciles": tuple(data[name].get("deciles", ()))})
            for name in ("stable", "candidate", "served")
        }
        outcome = {name: Interval(**value) for name, value in data.get("outcome", {}).items()}
        return cls(**{**data, **arms, "outcome": outcome})


@dataclass(frozen=True, slots=True)
class SliceFigures:
    """Figures of both arms on the rows of one slice of the traffic, over the whole rollout.

    `logloss_delta` is the candidate's LogLoss minus stable's, nats per row.
    """

    field: str
    segment: str
    rows: int
    clicks: float
    share: float
    stable: Interval
    candidate: Interval
    logloss_delta: Interval


@dataclass(frozen=True, slots=True)
class LongRunFigures:
    """Long-run effect of a hand-over so far, see `long_run`.

    Args:
        since_ms: entry of the last step; until_ms: when the routing of the endpoint changed, None while it lasts.
        holdout: fraction of keys that stay on stable.
        requests: with a routing key, by the arm that answered; at full weight those of stable are the holdout's.
        outcome: labels of exposed rows per such request: `stable`, `candidate`, their `difference`.
    """

    since_ms: int
    until_ms: int | None
    weight: float
    holdout: float
    requests: dict[str, int]
    outcome: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class RolloutFigures:
    """All figures of a rollout now, as plain numbers.

    `segments` holds the slices of each field, and `psi` each field's population stability index: the distribution of its
    rows over its slices in the present stay against the first one. `long_run` is set once the last step was entered.
    `not_finite` counts exposed rows that are left out because a score of theirs is NaN or infinite, `left_out` those that are
    because their key has too many; neither is `exposed` a second time.
    """

    seq: int
    newest_ms: int | None
    exposed: int
    paired: int
    overridden: int
    coverage: float | None
    phases: tuple[PhaseFigures, ...]
    segments: tuple[SliceFigures, ...] = ()
    psi: dict[str, float | None] = field(default_factory=dict)
    long_run: LongRunFigures | None = None
    not_finite: int = 0
    left_out: int = 0


def pack_figures(figures: RolloutFigures) -> bytes:
    """All figures of an ended rollout, to be stored in place of its sums."""
    return pack_sums({"figures": asdict(figures)}, {})


def unpack_figures(packed: bytes) -> RolloutFigures | None:
    """What `pack_figures` packed, without the long-run effect, which goes on; None for anything else, such as sums."""
    found = unpack_sums(packed)
    if found is None or "figures" not in found[0]:
        return None
    data = found[0]["figures"]
    slices = (
        {**each, **{name: Interval(**each[name]) for name in ("stable", "candidate", "logloss_delta")}}
        for each in data["segments"]
    )
    return RolloutFigures(
        **{
            **data,
            "phases": tuple(map(PhaseFigures.from_json, data["phases"])),
            "segments": tuple(SliceFigures(**each) for each in slices),
            "long_run": None,
        }
    )


def phase_figures(stay: StaySums, first: StaySums, chosen: Selection, error: float) -> PhaseFigures:
    """Figures of a stay with its blocks; `first` is the stay that populations are compared with."""
    arms = {"stable": stay.stable.numbers(), "candidate": stay.candidate.numbers(), "served": stay.served.numbers()}
    before = {"stable": first.stable.numbers(), "candidate": first.candidate.numbers()}
    return PhaseFigures(
        step=stay.step,
        weight=stay.weight,
        entered_ms=stay.entered_ms,
        rows=arms["candidate"].rows,
        labels=arms["candidate"].clicks,
        served_by_candidate=arms["served"].rows,
        stable=_arm(arms["stable"], before["stable"], chosen.bias_limits("stable", error)),
        candidate=_arm(arms["candidate"], before["candidate"], chosen.bias_limits("candidate", error)),
        served=_arm(arms["served"], before["candidate"], chosen.served_limits(error)),
        requests={arm: stay.outcome.requests(arm) for arm in ARMS},
        outcome=outcome_figures(stay.outcome, error),
    )


def outcome_figures(sums: OutcomeSums, error: float) -> dict[str, Interval]:
    """Outcome per request of each arm and their difference; the limits' `blocks` are groups of keys. Where outcomes of the keys from
    before are known, `unadjusted` is the difference without them."""
    found = {arm: Interval.of(sums.limits(arm, error)) for arm in ARMS} | {
        "difference": Interval.of(sums.difference(error))
    }
    return found if sums.before is None else found | {"unadjusted": Interval.of(sums.plain_difference(error))}


def slice_figures(table: BlockTable, slices: Slices | None, error: float) -> tuple[SliceFigures, ...]:
    """Figures of every slice, by field, most rows first."""
    if slices is None:
        return ()
    total, all_rows = float(table.select(0).rows.sum()), table.rows(0)
    found = []
    for part in table.slices:
        chosen = table.numbers(table.lines(all_rows, part))
        rows = float(chosen.rows.sum())
        if rows <= 0:
            continue
        found.append(
            SliceFigures(
                field=part[0],
                segment=slices.name(part),
                rows=round(rows),
                clicks=float(chosen.clicks.sum()),
                share=rows / total,
                stable=Interval.of(chosen.bias_limits("stable", error)),
                candidate=Interval.of(chosen.bias_limits("candidate", error)),
                logloss_delta=Interval.of(chosen.loss_limits(error)),
            )
        )
    return tuple(sorted(found, key=lambda figures: (figures.field, -figures.rows)))


def field_stability(table: BlockTable, slices: Slices | None, entered_ms: Sequence[int]) -> dict[str, float | None]:
    """Population stability index by field, between the blocks of the first stay and those of the last."""
    if slices is None or len(entered_ms) < 2:
        return {}
    spans = table.rows(entered_ms[0], entered_ms[1]), table.rows(entered_ms[-1])
    found: dict[str, float | None] = {}
    for name in slices.fields:
        mine = [part for part in table.slices if part[0] == name]
        before, now = (np.array([float(table.lines(rows, part)[:, ROWS].sum()) for part in mine]) for rows in spans)
        found[name] = finite(stability(before, now))
    return found


def _arm(sums: Sums, first: Sums, limits: Limits) -> ArmFigures:
    return ArmFigures(
        rows=sums.rows,
        auc=finite(sums.auc),
        auc_bound=finite(sums.binned.bound()),
        logloss=finite(sums.logloss),
        bias=finite(sums.bias),
        low=finite(limits.low),
        high=finite(limits.high),
        clicks=sums.clicks,
        calibration_error=finite(calibration_error(sums)),
        score_psi=finite(score_stability(first, sums)),
        deciles=tuple(asdict(tenth) for tenth in deciles(sums)),
        blocks=limits.blocks,
    )
