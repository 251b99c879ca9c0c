"""`Admin`: entry point of all admin verbs. gRPC, REST, the command line and the console are shells over `call`.

It is safe to call from several threads. It decides nothing about traffic: the controller moves rollouts, the store keeps
endpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from pipeline.clock import Clock
from pipeline.errors import InvalidInput
from serving.admin.answers import Answer
from serving.admin.audit import AuditVerbs
from serving.admin.backups import BackupVerbs
from serving.admin.bulk import BulkAnswer, BulkAnswers
from serving.admin.cache import CacheVerbs
from serving.admin.endpoints import EndpointVerbs
from serving.admin.idempotency import IdempotencyCache
from serving.admin.log import LogVerbs
from serving.admin.metrics import MetricsVerbs
from serving.admin.models import ModelVerbs
from serving.admin.processes import ProcessVerbs
from serving.admin.requests import Request
from serving.admin.rollouts import RolloutVerbs
from serving.admin.service import Parts, ProcessReports
from serving.admin.verbs import VERBS, Verb, stops
from serving.admin.worker import WorkerVerbs
from serving.config import Config
from serving.config.principal import Principal
from serving.rollout.controller import RolloutController
from serving.wiring.backends import Backends

if TYPE_CHECKING:
    from serving.tiers.cache import CacheUpkeep

__all__ = ["Admin", "request_of"]

BRAKE_THREADS = 4

Q = TypeVar("Q", bound=Request)
A = TypeVar("A", bound=Answer)


class Admin:
    """The verbs of one installation.

    Args:
        lock: held while `controller` is used, by the rollout loop too.
        upkeep: of the Redis tier, where there is one.

    Attributes:
        endpoints, models, rollouts, processes, metrics, audit, cache, log, worker: a service each; shells go through `call`.
        reports: reports of the machine's processes.
        brake_threads: for `verbs.BRAKES` alone, so that these never wait for slow verbs.
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
        self.reports = ProcessReports(config, clock)
        parts = Parts(config, backends, controller, self.reports, clock, lock)
        self.endpoints = EndpointVerbs(parts)
        self.models = ModelVerbs(parts)
        self.rollouts = RolloutVerbs(parts)
        self.processes = ProcessVerbs(parts)
        self.metrics = MetricsVerbs(parts)
        self.audit = AuditVerbs(parts)
        self.cache = CacheVerbs(parts, upkeep)
        bulk = BulkAnswers(config)
        self.log = LogVerbs(parts, bulk)
        self.backups = BackupVerbs(parts, bulk)
        self.worker = WorkerVerbs(parts)
        self.brake_threads = ThreadPoolExecutor(BRAKE_THREADS, "admin-brake")
        self._idempotency = IdempotencyCache(backends.keys, clock)
        self._handlers = {name: self._handler(name) for name, verb in VERBS.items() if verb.bulk or not verb.streams}

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
        return self._idempotency.run(
            by.name, key, verb.name, request, verb.answer, lambda: handler(request, by), keyless=stops(verb, request)
        )

    def bulk(self, verb: Verb[Q, Any], request: Q, by: Principal) -> BulkAnswer:
        """Begin the answer of a verb that is a file. Whoever gets it closes it. Raises: as `call`."""
        by.require(verb.role)
        found: BulkAnswer = self._handlers[verb.name](request, by)
        return found

    def close(self) -> None:
        """End background work. The caller closes the backends."""
        self.cache.close()
        self.brake_threads.shutdown(wait=True, cancel_futures=True)

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
        # Without its context, whose error would hold this frame, and the frame the error: a circle that holds the call.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{field}: {first['msg']}", field) from None
