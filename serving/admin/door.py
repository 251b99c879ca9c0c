"""`Admin`: entry point of all admin verbs. gRPC, REST, the command line and the console are shells over `call`.

It is safe to call from several threads. It decides nothing about traffic: the controller moves rollouts, the store keeps
endpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.errors import InvalidInput
from pipeline.traffic.log import TrafficLog
from serving.admin.answers import Answer
from serving.admin.audit import AuditVerbs
from serving.admin.cache import CacheVerbs
from serving.admin.endpoints import EndpointVerbs
from serving.admin.idempotency import IdempotencyCache
from serving.admin.log import LogVerbs
from serving.admin.metrics import MetricsVerbs
from serving.admin.models import ModelVerbs
from serving.admin.processes import ProcessReports
from serving.admin.requests import Request
from serving.admin.rollouts import RolloutVerbs
from serving.admin.verbs import VERBS, Verb
from serving.admin.worker import WorkerVerbs
from serving.config import Config
from serving.config.principal import Principal
from serving.rollout.controller import RolloutController
from serving.rollout.store import ControlStore
from serving.state.kill import KillSwitch
from serving.wiring.state import open_keys

if TYPE_CHECKING:
    from serving.tiers.cache import CacheUpkeep

__all__ = ["Admin", "Backends", "request_of"]

Q = TypeVar("Q", bound=Request)
A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class Backends:
    """Stores of one installation."""

    store: ControlStore
    traffic: TrafficLog
    repository: Repository
    kill: KillSwitch


class Admin:
    """The verbs of one installation.

    Args:
        lock: held while `controller` is used, by the rollout loop too.
        upkeep: of the Redis tier, where there is one.

    Attributes:
        endpoints, models, rollouts, metrics, audit, cache, log, worker: a service each; shells go through `call`.
        processes: reports of the machine's processes.
    """

    def __init__(
        self,
        config: Config,
        backends: Backends,
        controller: RolloutController,
        clock: Clock,
        lock: threading.RLock,
        upkeep: CacheUpkeep | None = None,
    ) -> None:
        store, traffic, repository, kill = backends.store, backends.traffic, backends.repository, backends.kill
        self.processes = ProcessReports(config.status, clock, config.engine.lanes)
        self.endpoints = EndpointVerbs(config, store, repository, kill, clock, lock)
        self.models = ModelVerbs(config, store, repository, self.processes, clock)
        self.rollouts = RolloutVerbs(config, store, repository, controller, kill, lock)
        self.metrics = MetricsVerbs(store, controller, traffic, self.processes, clock, lock)
        self.audit = AuditVerbs(store, controller)
        self.cache = CacheVerbs(store, repository, self.processes, clock, upkeep)
        self.log = LogVerbs(config, store, traffic, clock)
        self.worker = WorkerVerbs(self.processes, repository)
        self._idempotency = IdempotencyCache(open_keys(config), clock)
        self._handlers = {name: self._handler(name) for name, verb in VERBS.items() if not verb.streams}

    def call(self, verb: Verb[Q, A], request: Q, by: Principal, key: str = "") -> A:
        """Carry out a verb.

        Args:
            by: the caller; the audit has its name.
            key: idempotency key of a changing verb, "" for none.

        Raises:
            PermissionDenied: the caller's role is not enough. See also `IdempotencyCache.run` and the verb's method.
        """
        by.require(verb.role)
        handler = cast("Callable[[Q, Principal], A]", self._handlers[verb.name])
        if not (key and verb.mutating):
            return handler(request, by)
        return self._idempotency.run(by.name, key, verb.name, request, verb.answer, lambda: handler(request, by))

    def close(self) -> None:
        """End background work and close what this object has opened."""
        self.cache.close()
        self._idempotency.close()

    def _handler(self, name: str) -> Callable[[Any, Principal], Any]:
        service, _, method = name.partition(".")
        found: Callable[[Any, Principal], Any] = getattr(getattr(self, service), method)
        return found


def request_of(verb: Verb[Q, A], fields: dict[str, Any]) -> Q:
    """A verb's request from the fields of a call.

    Raises:
        InvalidInput: a field is wrong; the error names the first one.
    """
    try:
        return verb.request.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{field}: {first['msg']}", field) from None
