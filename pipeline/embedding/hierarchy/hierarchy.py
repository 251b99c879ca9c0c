"""Configured tiers of a process, and how the tiers of a model version are opened from them.

Versions on one base share its rows. So where local segments are among the tiers, the rows that a version's deltas have
touched are looked up first, whatever the configured order, and the other tiers hold rows of the base only. A version's
rows are then exact, publishing and rolling back invalidate nothing, and untouched rows stay hits. Without local segments,
a tier that versions share (Redis) returns rows near the version, of an age that is bounded and measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.bundle.bundle import Bundle
from pipeline.clock import Clock, SystemClock
from pipeline.embedding.device.tier import DeviceSource, DeviceTier
from pipeline.embedding.hierarchy.tally import LookupTally
from pipeline.embedding.segment.generations import Stack, open_stack
from pipeline.embedding.segment.tier import SegmentTier
from pipeline.embedding.tier import Generation, Group, Tier, TierSource

__all__ = ["SEGMENT", "Hierarchy", "generation_of"]

SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Tiers of a process, in the order of lookup.

    Args:
        tiers: in the order of lookup; `SEGMENT` stands for the local segments.
        budget: seconds that a lookup may wait for tiers that are not local.
        clock: of that budget.
        tally: counts by table and tier.
    """

    tiers: Sequence[TierSource | str] = (SEGMENT,)
    budget: float = 0.005
    clock: Clock = field(default_factory=SystemClock)
    tally: LookupTally = field(default_factory=LookupTally)

    def open(self, chain: Sequence[Bundle], generation: Generation, folder: Path) -> list[Tier]:
        """The tiers of one version, from the top.

        Args:
            chain: base first, then the deltas in order.
            folder: of the segments of this bundle's name.

        Raises:
            BundleError, NotReady: as `open_stack` and `TierSource.open`.
        """
        tiers: list[Tier] = []
        stacks: list[Stack] = []
        if SEGMENT in self.tiers:
            stacks = [open_stack(folder, chain, group.width) for group in generation.groups]
        if self.tiers[0] == SEGMENT:
            # One pass over deltas and base.
            tiers.append(SegmentTier([(*stack.deltas, stack.base) for stack in stacks]))
        elif any(stack.deltas for stack in stacks):
            tiers.append(SegmentTier([stack.deltas for stack in stacks]))
        try:
            for source in self.tiers:
                if not isinstance(source, str):
                    tiers.append(source.open(generation))
                elif self.tiers[0] != SEGMENT:
                    tiers.append(SegmentTier([(stack.base,) for stack in stacks]))
        except BaseException:
            for tier in tiers:
                tier.close()
            raise
        for place, tier in enumerate(tiers):
            if isinstance(tier, DeviceTier):
                tier.prefill(tiers[place + 1 :], self.clock)
        return tiers

    def upkeep(self) -> None:
        """Periodic work of the tiers; called about once a second, off the request path."""
        for source in self.tiers:
            if isinstance(source, DeviceSource):
                source.upkeep()

    def close(self) -> None:
        """Stop the tiers' threads and save what the next start loads; after the last lookup."""
        for source in self.tiers:
            if not isinstance(source, str):
                source.close()


def generation_of(chain: Sequence[Bundle]) -> Generation:
    """Generation of a version: what its tiers are opened for."""
    base, tip = chain[0].manifest, chain[-1].manifest
    groups = []
    for width in sorted({f.width or 0 for f in tip.model_schema.embedded}):
        names = sorted(name for name, info in tip.tables.items() if info.width == width)
        groups.append(Group(width, tuple(names), sum(base.tables[name].rows for name in names)))
    return Generation(tip.name, base.version, tip.version, tuple(groups), tip.linear)
