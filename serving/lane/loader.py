"""Loading of one version, ready to answer: probed, within memory, warmed.

It knows one version at a time; which are wanted, and what becomes of one that fails, is in `serving.lane.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from pipeline.errors import BundleError, InvalidInput, NotReady
from pipeline.features import Features
from pipeline.model.model import Model
from pipeline.reading import read
from serving.lane.memory_budget import MemoryBudget
from serving.lane.probes import Probes, SetAside
from serving.lane.served import Key, Served
from serving.wire.inference import InferCodec
from serving.wire.ranking import RankCodec

__all__ = ["NoMemory", "Sample", "VersionLoader"]

Sample = tuple[Features, str]

WARM_FACTOR = 3
"""Seconds by the clock that warming may take, per second of processor time of a probe."""


class NoMemory(NotReady):
    """The version does not fit into memory now."""


@dataclass(frozen=True, slots=True)
class VersionLoader:
    """Loads one version and warms it.

    Args:
        load: by bundle and version, for example `partial(Model.load, repository, segments=...)`.
        max_candidates: most rows of one request.
        memory_budget: refuses a version that does not fit into memory; None: there is no check.
        samples: requests to warm a version with, by the names under which it will be called, each with its columns
            (`Schema.columns`; empty: those of the version).
        probes: that a version must have passed; None: there is no probe.
    """

    load: Callable[[str, str], Model]
    max_candidates: int
    memory_budget: MemoryBudget | None = None
    samples: Callable[[Collection[str]], list[Sample]] = lambda names: []
    probes: Probes | None = None

    def ready(self, key: Key) -> bool:
        """Whether a version can be loaded now, or be refused: its probe has a verdict."""
        return self.probes is None or self.probes.verdict(key) is not None

    def __call__(self, key: Key, loaded: Collection[Key], names: Collection[str]) -> Served:
        """The version, ready to answer. `loaded`: versions that are in memory; `names`: it will be called by these.

        Raises:
            BundleError, NotFound, NotReady: it cannot be loaded. SetAside: nor may it be tried again.
        """
        verdict = None if self.probes is None else self.probes.verdict(key)
        if self.probes is not None and verdict is not None and verdict.reason:
            raise (BundleError if self.probes.damaged(key) else SetAside)(verdict.reason)
        measured_bytes = 0 if verdict is None else verdict.bytes
        if self.memory_budget is not None and (reason := self.memory_budget.refusal(key, loaded, measured_bytes)):
            raise NoMemory(reason)
        model = self.load(*key)
        self._warm(model, key, names)
        return Served(
            model, RankCodec(model.schema, self.max_candidates), InferCodec(model.schema, self.max_candidates)
        )

    def _warm(self, model: Model, key: Key, names: Collection[str]) -> None:
        """Warm a version. Real requests may do to a network what the probe's rows did not."""
        if self.probes is None:
            model.warm(self._requests(model, names))
            return
        try:
            model.warm(self._requests(model, names), WARM_FACTOR * self.probes.limits.seconds)
        except BundleError as error:
            self.probes.set_aside(key, str(error))
            raise SetAside(str(error)) from error

    def _requests(self, model: Model, names: Collection[str]) -> list[Features]:
        """The samples as the model reads them; those that do not fit it are left out."""
        found = []
        for features, columns in self.samples(names):
            with suppress(InvalidInput):
                found.append(read(features, columns or model.schema.columns, model.schema))
        return found
