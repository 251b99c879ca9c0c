"""Table of the admin verbs: name, required role, request and answer of each.

gRPC, REST, the command line and the console all use it, so it is also the list of what must be tested. A name is
SERVICE.METHOD as in `baton.admin.v1`. Read next: `door`, which calls the verbs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.admin import answers as a
from serving.admin import requests as r
from serving.config.principal import Role

__all__ = ["BRAKES", "VERBS", "Verb", "stops"]

Q = TypeVar("Q", bound=r.Request)
A = TypeVar("A", bound=a.Answer)


@dataclass(frozen=True, slots=True)
class Verb(Generic[Q, A]):
    """One verb.

    Args:
        name: SERVICE.METHOD.
        role: that a caller needs.
        request, answer: their types.
        streams: whether it returns a stream of answers.
    """

    name: str
    role: Role
    request: type[Q]
    answer: type[A]
    streams: bool = False

    @property
    def mutating(self) -> bool:
        """Whether it changes anything: then it takes a reason and an idempotency key, and the audit has an entry."""
        return issubclass(self.request, r.Mutation)

    @property
    def bulk(self) -> bool:
        """Whether the answer is a file, in pieces (`serving.admin.bulk`)."""
        return self.answer is a.Chunk


VIEWER, OPERATOR = Role.VIEWER, Role.OPERATOR

ENDPOINTS_LIST = Verb("endpoints.list", VIEWER, r.EndpointList, a.EndpointPage)
ENDPOINTS_GET = Verb("endpoints.get", VIEWER, r.EndpointName, a.Endpoint)
ENDPOINTS_SET = Verb("endpoints.set", OPERATOR, r.EndpointSet, a.Endpoint)
ENDPOINTS_PIN = Verb("endpoints.pin", OPERATOR, r.EndpointPin, a.Endpoint)
ENDPOINTS_KILL = Verb("endpoints.kill", OPERATOR, r.EndpointKill, a.Endpoint)
ENDPOINTS_RELEASE = Verb("endpoints.release", OPERATOR, r.EndpointRelease, a.Endpoint)
MODELS_LIST = Verb("models.list", VIEWER, r.ModelList, a.ModelPage)
MODELS_LOAD = Verb("models.load", OPERATOR, r.ModelLoad, a.ModelLoaded)
MODELS_UNLOAD = Verb("models.unload", OPERATOR, r.ModelLoad, a.ModelLoaded)
MODELS_WARM = Verb("models.warm", OPERATOR, r.ModelLoad, a.ModelLoaded)
MODELS_RETIRE = Verb("models.retire", OPERATOR, r.ModelRetire, a.Retired)
ROLLOUTS_START = Verb("rollouts.start", OPERATOR, r.RolloutFile, a.Rollout)
ROLLOUTS_LIST = Verb("rollouts.list", VIEWER, r.RolloutList, a.RolloutPage)
ROLLOUTS_GET = Verb("rollouts.get", VIEWER, r.RolloutName, a.Rollout)
ROLLOUTS_WATCH = Verb("rollouts.watch", VIEWER, r.RolloutWatch, a.Rollout, streams=True)
ROLLOUTS_PAUSE = Verb("rollouts.pause", OPERATOR, r.RolloutSteer, a.Rollout)
ROLLOUTS_RESUME = Verb("rollouts.resume", OPERATOR, r.RolloutSteer, a.Rollout)
ROLLOUTS_PROMOTE = Verb("rollouts.promote", OPERATOR, r.RolloutPromote, a.Rollout)
ROLLOUTS_APPROVE = Verb("rollouts.approve", OPERATOR, r.RolloutSteer, a.Rollout)
ROLLOUTS_ABORT = Verb("rollouts.abort", OPERATOR, r.RolloutSteer, a.Rollout)
ROLLOUTS_UNDO = Verb("rollouts.undo", OPERATOR, r.RolloutSteer, a.Rollout)
ROLLOUTS_SET_WEIGHT = Verb("rollouts.set_weight", OPERATOR, r.RolloutSetWeight, a.Rollout)
ROLLOUTS_FREEZE = Verb("rollouts.freeze", OPERATOR, r.FreezeUntil, a.Freeze)
ROLLOUTS_LIFT = Verb("rollouts.lift", OPERATOR, r.Lift, a.Freeze)
PROCESSES_LIST = Verb("processes.list", VIEWER, r.Nothing, a.ProcessList)
PROCESSES_RESTART = Verb("processes.restart", OPERATOR, r.ProcessRestart, a.Restart)
METRICS_GET = Verb("metrics.get", VIEWER, r.MetricsOf, a.Metrics)
METRICS_PROCESSES = Verb("metrics.processes", VIEWER, r.Nothing, a.Processes)
METRICS_HEALTH = Verb("metrics.health", VIEWER, r.Nothing, a.Health)
AUDIT_LIST = Verb("audit.list", VIEWER, r.AuditList, a.AuditPage)
AUDIT_EXPLAIN = Verb("audit.explain", VIEWER, r.AuditSeq, a.Explanation)
CACHE_STATS = Verb("cache.stats", VIEWER, r.Nothing, a.Cache)
CACHE_WARM = Verb("cache.warm", OPERATOR, r.CacheWarm, a.CacheWarming)
LOG_HOLD = Verb("log.hold", OPERATOR, r.LogHold, a.Hold)
LOG_HOLDS = Verb("log.holds", VIEWER, r.Nothing, a.HoldList)
LOG_RELEASE = Verb("log.release", OPERATOR, r.LogRelease, a.Hold)
LOG_EXPORT = Verb("log.export", OPERATOR, r.LogExport, a.Chunk, streams=True)
BACKUPS_MAKE = Verb("backups.make", OPERATOR, r.BackupMake, a.Chunk, streams=True)
LOG_FORGET = Verb("log.forget", OPERATOR, r.LogForget, a.Forgotten)
WORKER_STATUS = Verb("worker.status", VIEWER, r.Nothing, a.Worker)

VERBS: dict[str, Verb[Any, Any]] = {verb.name: verb for verb in list(globals().values()) if isinstance(verb, Verb)}
"""All verbs by name."""


BRAKES = frozenset({ENDPOINTS_KILL, ENDPOINTS_SET, ROLLOUTS_ABORT, ROLLOUTS_UNDO, ROLLOUTS_SET_WEIGHT})
"""Verbs that can take all traffic from a candidate. What is full or slow may not hold them up."""


def stops(verb: Verb[Any, Any], request: r.Request) -> bool:
    """Whether a call takes all traffic from a candidate, so that nothing that fails may hold it up."""
    if verb in (ROLLOUTS_SET_WEIGHT, ENDPOINTS_SET):
        return getattr(request, "weight", None) == 0
    return verb in BRAKES
