"""Explanation of a verdict in the audit: the figures that it used, beside the same figures computed again from the log.

The audit keeps the figures and the place up to which the labelled log had been read; the log keeps the rows. Read again
from the same start to the same end, with the same rollout file, the figures must be the same. Where retention has removed
rows, or the verdict rests on counters of the lanes, the explanation names the reason instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.schema import Schema
from pipeline.traffic.log import TrafficLog
from serving.rollout.analysis import RolloutAnalysis, new_analysis
from serving.rollout.look import Look
from serving.rollout.state import RolloutState
from serving.rollout.store import AuditEntry, StoredRollout

__all__ = ["AuditExplanation", "ComparedFigure", "explain"]

_BATCH_ENTRIES = 256
_CLOSE_RATIO = 1e-6
"""Sums of the same rows in another order of batches differ by rounding only."""


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure: the value that the verdict used, and the value computed from the log now."""

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
        note: which rows were read, or why none were.
    """

    entry: AuditEntry
    figures: tuple[ComparedFigure, ...]
    verdict: str
    same: bool | None
    note: str


def explain(
    entry: AuditEntry, stored: StoredRollout | None, log: TrafficLog, schema: Callable[[str], Schema]
) -> AuditExplanation:
    """Recompute the figures of a verdict.

    Args:
        entry: of the audit; stored: its rollout, None for a change without a rollout.
        log: read over the rows that the verdict used.
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
    if "blocks" not in evidence:
        return AuditExplanation(entry, (), "", None, "it rests on what the gate measured, see the version's manifest")
    state = RolloutState.from_json({**entry.before["state"], "marks": []})
    analysis = new_analysis(stored.spec, state.evidence_seq, schema)
    analysis.begin_evidence(state.evidence_from_ms, state.evidence_version)
    analysis.begin_phase(state.step, state.weight, state.entered_ms)
    read = _read(analysis, log, int(evidence["seq"]))
    look = Look(stored.spec, state, analysis.refresh())
    breach = look.breach()
    lacking = "" if breach else look.not_yet()  # adds the figures that a step up needs to `seen`
    figures = tuple(_figure(name, evidence[name], look.seen[name]) for name in look.seen if name in evidence)
    same = all(figure.same for figure in figures)
    note = f"{read} predictions of the labelled log, {state.evidence_seq + 1} to {evidence['seq']}"
    if read < int(evidence["seq"]) - state.evidence_seq:
        note += f"; {int(evidence['seq']) - state.evidence_seq - read} more have been removed by retention"
    verdict = (
        f"breached: {breach[1]}" if breach else f"holds: {lacking}" if lacking else "the next step's evidence is there"
    )
    return AuditExplanation(entry, figures, verdict, same, note)


def _read(analysis: RolloutAnalysis, log: TrafficLog, until: int) -> int:
    """Add the log's entries up to a place; returns how many it still had."""
    read = 0
    while entries := log.labelled(analysis.seq, _BATCH_ENTRIES):
        wanted = [entry for entry in entries if entry.seq <= until]
        analysis.add(wanted)
        read += len(wanted)
        if len(wanted) < len(entries):
            break
    return read


def _figure(name: str, used: Any, recomputed: Any) -> ComparedFigure:
    if isinstance(used, (int, float)) and isinstance(recomputed, (int, float)):
        return ComparedFigure(
            name, used, recomputed, math.isclose(used, recomputed, rel_tol=_CLOSE_RATIO, abs_tol=_CLOSE_RATIO)
        )
    return ComparedFigure(name, used, recomputed, used == recomputed)
