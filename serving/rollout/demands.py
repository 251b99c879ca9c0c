"""Demands of a rollout file that a promotion by hand would pass: what the steps up to its target still lack.

Each is the reason for which `reconcile` would hold at that step if it looked now. A step that is skipped is one too: its stay
and what the candidate would have shown there are never seen.
"""

from __future__ import annotations

from dataclasses import replace

from serving.rollout.reconcile import Context, reconcile
from serving.rollout.state import Advance, Phase

__all__ = ["unmet_demands"]


def unmet_demands(context: Context, target: int) -> tuple[str, ...]:
    """Reasons for which the steps after the present one, up to `target`, are not entered now; empty: all is met."""
    found: dict[str, None] = {}
    # A version that waits is no demand of a step, and the kill switch is looked at by the next pass.
    observed = replace(context.observed, versions=(), stable_versions=(), killed=None)
    for step in range(context.state.step, target):
        state = replace(context.state, step=step, phase=Phase.PROGRESSING)
        decision = reconcile(replace(context, state=state, observed=observed, next_look_ms=0))
        if step > context.state.step:
            found[f"step {step} (weight {context.spec.steps[step].weight:g}) is skipped"] = None
        if not isinstance(decision.event, Advance):
            found[decision.reason] = None
    return tuple(found)
