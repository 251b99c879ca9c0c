"""Explanation of a verdict in the audit: the figures that it used, beside the same figures computed again.

The audit keeps with the figures the sums that they were computed from, so they can be computed again in a moment. It keeps
the place up to which the labelled log had been read, too, and the log keeps the rows: asked for `rows`, or for a verdict
without sums, they are read again from the same start to the same end. Where retention has removed rows, or the verdict rests
on counters of the lanes, the explanation names the reason instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.arrays import Arrays
from pipeline.schema import Schema
from pipeline.traffic.log import TrafficLog
from serving.rollout.analysis import new_analysis, new_table
from serving.rollout.look import Look
from serving.rollout.state import RolloutState
from serving.rollout.store import AuditEntry, StoredRollout
from serving.rollout.sums import selection
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.outcome import OutcomeSums
from serving.rollout.sums.packed import unpack_sums

__all__ = ["AuditExplanation", "ComparedFigure", "explain"]

_BATCH_ENTRIES = 256
_CLOSE_RATIO = 1e-6
"""Sums of the same rows in another order of batches differ by rounding only."""


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure: the value that the verdict used, and the value computed now."""

    name: str
    used: Any
    recomputed: Any
    same: bool


@dataclass(frozen=True, slots=True)
class AuditExplanation:
    """An audit entry with its figures.

    Args:
        entry: as stored.
        figures: used against recomputed; empty where nothing can be compared (`note` has the reason).
        verdict: of the guards and the next step's bounds on the recomputed figures.
        same: whether all figures agree, None where none could be computed.
        note: which sums or rows they were computed from, or why from none.
    """

    entry: AuditEntry
    figures: tuple[ComparedFigure, ...]
    verdict: str
    same: bool | None
    note: str


def explain(
    entry: AuditEntry,
    stored: StoredRollout | None,
    basis: bytes | None,
    log: TrafficLog,
    schema: Callable[[str], Schema],
    *,
    rows: bool = False,
) -> AuditExplanation:
    """Recompute the figures of a verdict.

    Args:
        entry: of the audit; stored: its rollout, None for a change without a rollout.
        basis: packed sums of the verdict, None where none are stored.
        log: read over the rows that the verdict used, where `rows` are asked for or there are no sums.
        schema: inputs of a bundle by name.
    """
    evidence = entry.evidence
    if stored is None or not evidence:
        return AuditExplanation(entry, (), "", None, f"{entry.actor} decided this; it rests on no figures")
    if "observed" in evidence:
        return AuditExplanation(
            entry,
            (),
            "",
            None,
            "it rests on counters of the lanes at that moment, which are not stored elsewhere: see evidence.observed",
        )
    if "unmet" in evidence:
        note = f"{entry.actor} decided this; not met was: {'; '.join(evidence['unmet'])}"
        return AuditExplanation(entry, (), "", None, note)
    if "blocks" not in evidence:
        return AuditExplanation(entry, (), "", None, "it rests on what the gate measured, see the version's manifest")
    state = RolloutState.from_json({**entry.before["state"], "marks": []})
    kept = None if basis is None else unpack_sums(basis)
    if kept is not None and kept[1]["blocks"].shape[1] != selection.COLUMNS:
        kept = None  # an older version kept fewer sums
    if kept is None or rows:
        table, note = _from_rows(stored, state, int(evidence["seq"]), kept, log, schema)
    else:
        head, arrays = kept
        table = new_table(stored.spec)
        table.restore(head["table"], arrays)
        table.outcome = OutcomeSums(arrays["outcome"], arrays.get("outcome_before"))
        note = f"the sums that the verdict rests on, of the labelled log up to {head['seq']}"
    look = Look(stored.spec, state, table)
    breach = next(look.breaches(), None)
    last = state.step + 1 == len(stored.spec.steps)
    lacking = "" if breach or last else look.not_yet()  # adds the figures that a step up needs to `seen`
    figures = tuple(_figure(name, evidence[name], look.seen[name]) for name in look.seen if name in evidence)
    same = all(figure.same for figure in figures)
    verdict = "nothing is broken, and there is no next step" if last else "the next step's evidence is there"
    verdict = f"breached: {breach[1]}" if breach else f"holds: {lacking}" if lacking else verdict
    return AuditExplanation(entry, figures, verdict, same, note)


def _from_rows(
    stored: StoredRollout,
    state: RolloutState,
    until: int,
    kept: tuple[dict[str, Any], Arrays] | None,
    log: TrafficLog,
    schema: Callable[[str], Schema],
) -> tuple[BlockTable, str]:
    """The table of blocks from the log's entries up to a place, merged as the verdict's was (`kept`), without the rows that it
    left out; and which entries there were."""
    analysis = new_analysis(stored.spec, state.evidence_seq, schema)
    if kept is None:
        analysis.cap = None  # version 0.1 capped no key
    elif analysis.cap is not None:
        analysis.cap.restore_busy(kept[1])
    analysis.begin_evidence(state.evidence_from_ms, state.evidence_version)
    analysis.refuse(state.refused_versions, state.evidence_from_ms)
    analysis.begin_phase(state.step, state.weight, state.entered_ms)
    read, wanted = 0, until - state.evidence_seq
    while entries := log.labelled(analysis.seq, _BATCH_ENTRIES):
        mine = [entry for entry in entries if entry.seq <= until]
        analysis.add(mine)
        read += len(mine)
        if len(mine) < len(entries):
            break
    table = analysis.refresh()
    if kept is not None:
        table.outcome.before = kept[1].get("outcome_before")
    table.merge(0 if kept is None else int(kept[0]["table"]["doublings"]))
    note = f"{read} predictions of the labelled log, {state.evidence_seq + 1} to {until}"
    if read < wanted:
        note += f"; {wanted - read} more have been removed by retention"
    return table, note


def _figure(name: str, used: Any, recomputed: Any) -> ComparedFigure:
    if isinstance(used, (int, float)) and isinstance(recomputed, (int, float)):
        return ComparedFigure(
            name, used, recomputed, math.isclose(used, recomputed, rel_tol=_CLOSE_RATIO, abs_tol=_CLOSE_RATIO)
        )
    return ComparedFigure(name, used, recomputed, used == recomputed)
