"""Endpoint verbs: the arms of an endpoint and the split of its keys, and the kill switch."""

from __future__ import annotations

import logging
import re

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError, BundleError, Conflict, InvalidInput, NotFound, NotReady
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin.pages import cut
from serving.admin.service import Parts, Service
from serving.config import ArmConfig
from serving.config.principal import Principal, Role
from serving.rollout.routing import OBSERVED, ArmSpec, Endpoint
from serving.rollout.status.freeze import freeze_of
from serving.rollout.store import Who

__all__ = ["EndpointVerbs", "open_arm", "same_inputs"]

CONFIG = Principal("config", Role.OPERATOR)
_BUNDLE = re.compile(rf"({OBSERVED})?[A-Za-z0-9][A-Za-z0-9_.\-]*")

log = logging.getLogger(__name__)


class EndpointVerbs(Service):
    """Verbs of endpoints. Every public method is the verb of its name, but `bootstrap` and `audit_kills`."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._audited: dict[str, tuple[str, str]] = {}

    def list(self, request: r.EndpointList, by: Principal) -> a.EndpointPage:
        """All endpoints by name."""
        found, token = cut(self._store.endpoints().values(), request, lambda endpoint: (endpoint.name,), str)
        return a.EndpointPage(endpoints=[self._answer(endpoint) for endpoint in found], next_page_token=token)

    def get(self, request: r.EndpointName, by: Principal) -> a.Endpoint:
        """One endpoint. Raises: NotFound."""
        return self._answer(self._store.endpoint(request.name))

    def set(self, request: r.EndpointSet, by: Principal) -> a.Endpoint:
        """Create or change an endpoint.

        Raises:
            NotFound: a bundle or version is not in the repository.
            InvalidInput: the arms' inputs differ, or the name is that of a bundle.
            Conflict: a rollout owns the endpoint. StaleVersion: it changed since `expected`.
        """
        name = request.name
        self._kill.check_name(name)
        if name in self._repository.names():
            raise InvalidInput(
                f"endpoint {name!r}: a bundle has that name; endpoints and bundles share one namespace", "name"
            )
        stable = _spec(request.stable, "stable")
        candidate = _spec(request.candidate, "candidate") if request.candidate else None
        if candidate is not None and candidate.observed and candidate.bundle == stable.bundle:
            raise InvalidInput(f"both arms are {stable.bundle}: give the servers that answer two names", "candidate")
        here = [
            open_arm(self._repository, spec, arm)
            for arm, spec in (("stable", stable), ("candidate", candidate))
            if spec is not None and not spec.observed
        ]
        if len(here) == 2:
            same_inputs(*here)
        if candidate is None and request.weight:
            raise InvalidInput(f"endpoint {name!r} has no candidate; name one or set weight 0", "weight")
        known = self._store.endpoints().get(name)
        made = Endpoint(
            name=name,
            stable=stable,
            candidate=candidate,
            weight=request.weight,
            salt=request.salt or (known.salt if known else name),
            holdout=known.holdout if known else 0.0,
            stable_held=known.stable_held if known and known.stable == stable and self._owned(name) else 0,
        )
        frozen = freeze_of(self._store, self._clock.wall_ms())
        if frozen is not None and known is not None and (made.weight > known.weight or made.stable != known.stable):
            raise Conflict(f"{frozen}. Lift it first: baton freeze --lift --reason ...")
        if known is None or not known.weight or made.weight:
            return self._answer(self._store.put_endpoint(made, self._who(by, request), request.expected))
        with self._stopping(lambda: name, request, by):
            saved = self._store.put_endpoint(made, self._who(by, request), request.expected)
        return self._answer(saved)

    def pin(self, request: r.EndpointPin, by: Principal) -> a.Endpoint:
        """Let the stable arm answer with one version, or follow the newest again; also while a rollout runs.

        Raises:
            NotFound: no such endpoint, bundle or version. StaleVersion: it changed since `expected`.
            InvalidInput: it is another bundle than the stable arm's, which is what `set` is for.
        """
        endpoint = self._store.endpoint(request.name)
        stable = _spec(request.stable, "stable")
        if stable.bundle != endpoint.stable.bundle or stable.observed:
            raise InvalidInput(
                f"stable: {endpoint.name!r} serves {endpoint.stable.bundle}; pin a version of that, or set another bundle with "
                "`baton endpoint set`",
                "stable",
            )
        opened = open_arm(self._repository, stable, "stable")
        if stable.version and not opened.manifest.servable:
            raise InvalidInput(f"stable: version {stable.version} of {stable.bundle} did not pass its gate", "stable")
        with self._lock:
            endpoint = self._store.endpoint(request.name)
            seen = endpoint.resource_version if request.expected is None else request.expected
            # Without a version it follows the newest again, but while a rollout runs only what the rollout lets it take.
            held = (stable.version or endpoint.stable_now.version) if self._owned(request.name) else 0
            pinned = endpoint.model_copy(update={"stable": stable, "stable_held": held})
            return self._answer(self._store.put_endpoint(pinned, self._who(by, request), seen, "pin", owned=True))

    def _owned(self, name: str) -> bool:
        """Whether a rollout of an endpoint runs."""
        return bool(self._store.rollouts(active=True, endpoint=name))

    def kill(self, request: r.EndpointKill, by: Principal) -> a.Endpoint:
        """Send all traffic to stable at once; the rollout is aborted at the next pass.

        Raises:
            NotFound: no such endpoint. NotReady: what is missing; the message says where the switch is engaged.
        """
        name = request.name
        self._kill.engage(name, request.reason, by.name)  # first: nothing that fails or waits may come before it
        try:
            endpoint = self._store.endpoint(name)
        except NotFound:
            self._kill.release(name)
            raise
        except NotReady as error:
            raise NotReady(
                f"{name!r} is killed: its candidate gets nothing. The rest waits for the state: {error}"
            ) from None
        try:
            with self._between_passes():
                endpoint = self._store.put_endpoint(self._store.endpoint(name), self._who(by, request), verb="kill")
        except NotReady as error:
            log.error("%s is killed; its audit entry comes when the state can be written: %s", name, error)
        return self._answer(endpoint)

    def audit_kills(self) -> None:
        """Write the audit entries that are missing: of kills by file, and of those while the state could not be written."""
        for name, endpoint in self._store.endpoints().items():
            why = self._kill.why(name)
            if why is None or self._audited.get(name) == why:
                continue
            newest = next((e for e in self._store.latest_audit(name) if e.verb in ("kill", "release")), None)
            if newest is None or newest.verb == "release" or (newest.reason, newest.actor) != why:
                self._store.put_endpoint(endpoint, Who(why[1], why[0], self._clock.wall_ms()), verb="kill")
            self._audited[name] = why

    def release(self, request: r.EndpointRelease, by: Principal) -> a.Endpoint:
        """Take the kill switch back; traffic returns only by a rollout or a weight.

        Raises:
            NotFound: no such endpoint. StaleVersion: it changed since `expected`.
            Conflict: it is not engaged, or the rollout that it aborts is still active.
        """
        name = request.name
        with self._lock:
            endpoint = self._store.endpoint(name)
            if not self._kill.engaged(name):
                raise Conflict(f"endpoint {name!r} is not killed")
            if self._store.rollouts(active=True, endpoint=name):
                raise Conflict(f"the rollout of {name!r} has not been aborted yet; try again in a moment")
            # Traffic that the switch stopped must not come back by itself.
            stopped = endpoint.model_copy(update={"weight": 0.0})
            seen = endpoint.resource_version if request.expected is None else request.expected
            self._store.put_endpoint(stopped, self._who(by, request), seen, "release")
            self._kill.release(name)
        return self._answer(self._store.endpoint(name))

    def bootstrap(self) -> None:
        """Create the endpoints of the configuration that the installation does not know yet.

        A failed one is logged and tried again at the next call; it must not stop the others.
        """
        known = self._store.endpoints()
        for name, wanted in self._config.endpoints.items():
            if name in known:
                continue
            try:
                request = r.EndpointSet(
                    name=name,
                    stable=_arm(wanted.stable),
                    candidate=_arm(wanted.candidate) if wanted.candidate else None,
                    salt=wanted.salt or "",
                    reason="named in the configuration",
                    expected=0,
                )
                self.set(request, CONFIG)
            except (BatonError, ValueError) as error:
                log.error("endpoint %s of the configuration cannot be made: %s", name, error)

    def _answer(self, endpoint: Endpoint) -> a.Endpoint:
        why = self._kill.why(endpoint.name)
        reason, actor = why or ("", "")
        return a.Endpoint(
            name=endpoint.name,
            stable=_shown(endpoint.stable),
            candidate=_shown(endpoint.candidate) if endpoint.candidate else None,
            weight=endpoint.weight,
            salt=endpoint.salt,
            holdout=endpoint.holdout,
            killed=endpoint.killed or why is not None,
            killed_reason=reason,
            killed_by=actor,
            resource_version=endpoint.resource_version,
            stable_held=str(endpoint.stable_held) if endpoint.stable_held and not endpoint.stable.version else "",
        )


def open_arm(repository: Repository, spec: ArmSpec, arm: str) -> Bundle:
    """Bundle version of an arm. Raises: NotFound, naming the arm; BundleError."""
    try:
        return repository.open(spec.bundle, str(spec.version) if spec.version else "")
    except NotFound as error:
        raise NotFound(f"{arm}: {error}") from None


def same_inputs(stable: Bundle, candidate: Bundle) -> None:
    """Check that one request can serve two arms, each of which may have fields of its own. Raises: BundleError: it cannot."""
    difference = candidate.manifest.model_schema.inputs_match(stable.manifest.model_schema)
    if difference:
        raise BundleError(
            f"candidate {candidate.manifest.name} contradicts stable {stable.manifest.name}: {difference}", "candidate"
        )


def _spec(arm: r.ArmRequest, name: str) -> ArmSpec:
    version = arm.version or "0"
    if not (version.isascii() and version.isdecimal()) or int(version) > r.LARGEST_VERSION:
        raise InvalidInput(f"{name}: version {version!r} is not a decimal number; leave it empty for the newest", name)
    if not _BUNDLE.fullmatch(arm.bundle):
        raise InvalidInput(f"{name}: {arm.bundle!r} is not the name of a bundle", name)
    return ArmSpec(bundle=arm.bundle, version=int(version))


def _arm(arm: ArmConfig) -> r.ArmRequest:
    return r.ArmRequest(bundle=arm.bundle, version=str(arm.version))


def _shown(spec: ArmSpec) -> a.Arm:
    return a.Arm(bundle=spec.bundle, version=str(spec.version) if spec.version else "")
