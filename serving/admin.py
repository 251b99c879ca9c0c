"""What an operator can ask and do, once: REST, and every other door, are thin shells over this.

Everything here is safe to call from several threads. It decides nothing about traffic by itself: rollouts are the
controller's, endpoints the store's.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.bundle import Bundle
from pipeline.clock import Clock
from pipeline.errors import BatonError, BundleError, Conflict, InvalidInput, NotFound
from pipeline.traffic.log import TrafficLog
from pipeline.verified import NOTES
from pipeline.versions import Repository
from serving.config import Config
from serving.embedding_report import summed
from serving.kill import KillSwitch
from serving.observe import read_status
from serving.rollout.controller import RolloutController
from serving.rollout.segments import Segments
from serving.rollout.spec import Rollout, place
from serving.rollout.state import Abort, Event, Pause, Promote, Resume, SetWeight, Undo
from serving.rollout.store import ControlStore, StoredRollout, Who
from serving.routing import ArmSpec, Endpoint

if TYPE_CHECKING:
    from serving.cache import CacheUpkeep

__all__ = ["Admin"]

_PLAIN_VERBS: dict[str, Event] = {"pause": Pause(), "resume": Resume(), "abort": Abort(), "undo": Undo()}
_BUNDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
VERBS = ("pause", "resume", "promote", "abort", "undo", "set-weight")

log = logging.getLogger(__name__)


class Admin:
    """The verbs of one installation.

    Args:
        lock: held by everyone who uses `controller`, the rollout loop included.
        cache: who keeps the Redis tier up to date, where there is one.
    """

    def __init__(
        self,
        config: Config,
        store: ControlStore,
        traffic: TrafficLog,
        repository: Repository,
        controller: RolloutController,
        kill: KillSwitch,
        clock: Clock,
        lock: threading.RLock,
        cache: CacheUpkeep | None = None,
    ) -> None:
        self._config = config
        self._cache = cache
        self._store = store
        self._traffic = traffic
        self._repository = repository
        self._controller = controller
        self._kill = kill
        self._clock = clock
        self._lock = lock
        self._entered: dict[str, tuple[tuple[str, int] | tuple[()], str | None]] = {}

    # --- endpoints -------------------------------------------------------------------------------------------------

    def endpoints(self) -> list[dict[str, Any]]:
        """All endpoints as stored, with what the kill switch says."""
        engaged = self._kill.engaged()
        return [_endpoint(e, e.name in engaged) for e in self._store.endpoints().values()]

    def endpoint(self, name: str) -> dict[str, Any]:
        """One endpoint. Raises: NotFound."""
        return _endpoint(self._store.endpoint(name), name in self._kill.engaged())

    def set_endpoint(
        self,
        name: str,
        stable: Mapping[str, Any],
        candidate: Mapping[str, Any] | None,
        *,
        actor: str,
        reason: str,
        weight: float = 0.0,
        salt: str = "",
        expected: int | None = None,
    ) -> dict[str, Any]:
        """Make or change an endpoint.

        Raises:
            NotFound: a bundle or version is not in the repository.
            InvalidInput: the arms' inputs differ, or the name is that of a bundle.
            Conflict: a rollout owns the endpoint. StaleVersion: it changed since `expected`.
        """
        self._kill.check_name(name)
        if name in self._repository.names():
            raise InvalidInput(
                f"endpoint {name!r}: a bundle has that name; endpoints and bundles share one namespace", "name"
            )
        arms = {"stable": _arm(stable, "stable"), "candidate": _arm(candidate, "candidate") if candidate else None}
        bundles = {arm: self._bundle(spec, arm) for arm, spec in arms.items() if spec is not None}
        if "candidate" in bundles:
            _same_inputs(bundles["stable"], bundles["candidate"])
        assert arms["stable"] is not None
        if weight and arms["candidate"] is None:
            raise InvalidInput(f"endpoint {name!r} has no candidate; name one or set weight 0", "weight")
        known = self._store.endpoints().get(name)
        made = Endpoint(
            name=name,
            stable=arms["stable"],
            candidate=arms["candidate"],
            weight=weight,
            salt=salt or (known.salt if known else name),
            holdout=known.holdout if known else 0.0,
        )
        saved = self._store.put_endpoint(made, self._who(actor, reason), expected)
        return _endpoint(saved, name in self._kill.engaged())

    def kill(self, name: str, *, actor: str, reason: str) -> dict[str, Any]:
        """Empty the candidate at once; its rollout is aborted at the next pass. Raises: NotFound."""
        self._store.endpoint(name)
        self._kill.engage(name, reason, actor)
        with self._lock:
            self._store.put_endpoint(self._store.endpoint(name), self._who(actor, reason), verb="kill")
        return self.endpoint(name)

    def release(self, name: str, *, actor: str, reason: str) -> dict[str, Any]:
        """Take the kill switch back; traffic returns only by a rollout or a weight.

        Raises:
            NotFound: no such endpoint.
            Conflict: it is not engaged, or the rollout that it aborts is still active.
        """
        with self._lock:
            endpoint = self._store.endpoint(name)
            if name not in self._kill.engaged():
                raise Conflict(f"endpoint {name!r} is not killed")
            if any(r.state.active for r in self._store.rollouts(active=True, endpoint=name)):
                raise Conflict(f"the rollout of {name!r} has not been aborted yet; try again in a moment")
            # What the switch held back must not come back by itself.
            stopped = endpoint.model_copy(update={"weight": 0.0})
            self._store.put_endpoint(stopped, self._who(actor, reason), endpoint.resource_version, "release")
            self._kill.release(name)
        return self.endpoint(name)

    def bootstrap(self) -> None:
        """Make the endpoints of the configuration that the installation does not know yet.

        One that cannot be made is logged and tried again at the next call; it must not hold back the others.
        """
        known = self._store.endpoints()
        for name, wanted in self._config.endpoints.items():
            if name in known:
                continue
            try:
                self.set_endpoint(
                    name,
                    wanted.stable.model_dump(),
                    wanted.candidate.model_dump() if wanted.candidate else None,
                    salt=wanted.salt or "",
                    actor="config",
                    reason="named in the configuration",
                    expected=0,
                )
            except BatonError as error:
                log.error("endpoint %s of the configuration cannot be made: %s", name, error)

    # --- models ----------------------------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """Every version in the repository, with what the gate said, which arms use it, and in `fault` why it cannot be
        loaded (empty: nothing is known against it)."""
        used: dict[tuple[str, str], list[str]] = {}
        faults: dict[str, str] = {}
        for name, status in self._processes().items():
            if not name.startswith("lane-"):
                continue
            faults |= status.get("faults", {})
            for endpoint, arms in status["endpoints"].items():
                for arm, report in arms.items():
                    place = f"{endpoint}/{arm}"
                    at = used.setdefault((report["bundle"], report["version"]), [])
                    if report["version"] and place not in at:
                        at.append(place)
        found = []
        for name in self._repository.names():
            for version in self._repository.versions(name):
                try:
                    manifest = self._repository.open(name, version).manifest
                except BatonError as error:
                    found.append(_damaged(name, version, str(error)))
                    continue
                found.append(
                    {
                        "bundle": name,
                        "version": version,
                        "architecture": manifest.architecture,
                        "base": manifest.base,
                        "servable": manifest.servable,
                        "reasons": list(manifest.gate.reasons) if manifest.gate else [],
                        "fault": faults.get(f"{name}/{version}", ""),
                        "metrics": manifest.metrics,
                        "arms": used.get((name, version), []),
                    }
                )
        return found

    # --- rollouts --------------------------------------------------------------------------------------------------

    def start_rollout(self, text: str, *, actor: str, reason: str, name: str = "rollout") -> dict[str, Any]:
        """Begin a rollout. `text`: the rollout file; `name` stands for it in messages.

        Raises:
            InvalidInput: the file is wrong, or the candidate's inputs are not the stable arm's.
            NotFound: unknown endpoint or bundle. Conflict: see `RolloutController.start`.
        """
        spec = Rollout.parse(text, name)
        with _at(name, text, "endpoint"):
            endpoint = self._store.endpoint(spec.endpoint)
        if spec.endpoint in self._kill.engaged():
            raise Conflict(f"endpoint {spec.endpoint!r} is killed; release it first")
        bundle = spec.candidate.bundle
        with _at(name, text, "candidate", "bundle"):
            candidate = self._repository.newest(bundle, verify=True, notes=self._config.segments / bundle / NOTES)[-1]
            _same_inputs(self._bundle(endpoint.stable, "stable"), candidate)
        schema = candidate.manifest.model_schema
        with _at(name, text, "analysis", "segments"):
            Segments(schema, spec.analysis.segments)
        for number, guard in enumerate(spec.guards.segments):
            with _at(name, text, "guards", "segments", number, "field"):
                Segments(schema, (), [(guard.field, value) for value in guard.values])
        with self._lock:
            stored = self._controller.start(spec, actor, reason, int(candidate.manifest.version))
        return self._rollout(stored)

    def rollouts(self) -> list[dict[str, Any]]:
        """All rollouts, oldest first, without figures."""
        return [_brief(stored) for stored in self._store.rollouts()]

    def rollout(self, name: str) -> dict[str, Any]:
        """One rollout (by id, or the newest of an endpoint) with its figures per stay. Raises: NotFound."""
        return self._rollout(self._store.rollout(name))

    def command(
        self, name: str, verb: str, *, actor: str, reason: str, weight: float | None = None, full: bool = False,
        expected: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """An operator's verb: pause, resume, promote, abort, undo, set-weight.

        Raises:
            InvalidInput: unknown verb, or no weight for set-weight. Conflict: the phase does not allow it.
            StaleVersion: the rollout changed since `expected`. NotFound: no such rollout.
        """
        event: Event
        if verb == "set-weight":
            if weight is None:
                raise InvalidInput("set-weight needs a weight from 0 to 100", "weight")
            event = SetWeight(weight)
        elif verb == "promote":
            event = Promote(full=full)
        elif verb in _PLAIN_VERBS:
            event = _PLAIN_VERBS[verb]
        else:
            raise InvalidInput(f"{verb!r} is not a verb of rollouts; use one of {', '.join(VERBS)}", "verb")
        with self._lock:
            return self._rollout(self._controller.command(name, event, actor, reason, expected))

    def metrics(self, endpoint: str) -> dict[str, Any]:
        """Bias with its limits, AUC, LogLoss and rows per arm, of the present rollout. Raises: NotFound."""
        self._store.endpoint(endpoint)
        with self._lock:
            return self._controller.snapshot(endpoint).to_json()

    def step_version(self, endpoint: str) -> str | None:
        """The candidate's version when the present step of the active rollout was entered, None without a rollout."""
        for stored in self._store.rollouts(active=True, endpoint=endpoint):
            step = (stored.id, stored.state.entered_ms)
            if self._entered.get(endpoint, ((), None))[0] != step:
                self._entered[endpoint] = (step, self._entered_with(endpoint, *step))
            return self._entered[endpoint][1]
        return None

    def _entered_with(self, endpoint: str, rollout: str, entered_ms: int) -> str | None:
        """The candidate's version in the audit entry that first tells of a step."""
        after = 0
        while page := self._store.audit(endpoint, after):
            for entry in page:
                state = entry.after.get("state", {})
                if entry.rollout == rollout and state.get("entered_ms") == entered_ms:
                    return str(state["candidate_version"])
            after = page[-1].seq
        return None

    # --- the rest --------------------------------------------------------------------------------------------------

    def audit(self, endpoint: str = "", after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Who changed what, when, why and on which evidence; oldest first."""
        return [asdict(entry) for entry in self._store.audit(endpoint, after, limit)]

    def explain(self, seq: int) -> dict[str, Any]:
        """What the verdict of an audit entry was made of, as used and as the log has it now. Raises: NotFound.

        It takes as long as reading that stretch of the log; rollouts go on meanwhile.
        """
        return self._controller.explain(seq).to_json()

    def status(self) -> dict[str, Any]:
        """What every process reports, and how the traffic log stands."""
        processes = self._processes()
        return {
            "lanes": {name: s for name, s in processes.items() if name.startswith("lane-")},
            "shadow": _shadow(processes),
            "worker": processes.get("worker"),
            "supervisor": processes.get("supervisor"),
            "traffic": asdict(self._traffic.stats(self._clock.wall_ms())),
        }

    def cache(self) -> dict[str, Any]:
        """Which tier answers: `tables` and `tiers` as `embedding_report.summed`, and `shared`, what `CacheUpkeep.report`
        says of Redis (None: the configuration names none)."""
        fresh = {name: status for name, status in self._processes().items() if status.get("fresh")}
        return {**summed(fresh), "shared": None if self._cache is None else self._cache.report()}

    def ready(self) -> tuple[bool, list[str]]:
        """Whether all lanes answer, and what is missing."""
        processes = self._processes()
        missing = [
            f"lane-{index}"
            for index in range(self._config.engine.lanes)
            if not processes.get(f"lane-{index}", {}).get("fresh") or processes[f"lane-{index}"]["state"] != "ready"
        ]
        if not processes.get("shadow", {}).get("fresh"):
            missing.append("shadow")
        return not missing, missing

    def _processes(self) -> dict[str, dict[str, Any]]:
        return read_status(self._config.status, self._clock.wall_ms())

    def _rollout(self, stored: StoredRollout) -> dict[str, Any]:
        with self._lock:
            snapshot = self._controller.snapshot(stored.id).to_json()
        return {**_brief(stored), "coverage": snapshot["coverage"], "phases": [_phase(p) for p in snapshot["phases"]]}

    def _bundle(self, spec: ArmSpec, arm: str) -> Bundle:
        try:
            return self._repository.open(spec.bundle, str(spec.version) if spec.version else "")
        except NotFound as error:
            raise NotFound(f"{arm}: {error}") from None

    def _who(self, actor: str, reason: str) -> Who:
        return Who(actor, reason, self._clock.wall_ms())


@contextmanager
def _at(name: str, text: str, *loc: str | int) -> Iterator[None]:
    """Say where in a rollout file it stands what an error within is about."""
    try:
        yield
    except BatonError as error:
        raise type(error)(f"{place(name, text, *loc)}: {error}") from None


def _arm(given: Mapping[str, Any], arm: str) -> ArmSpec:
    version = str(given.get("version") or "0")
    if not version.isdecimal():
        raise InvalidInput(f"{arm}: version {version!r} is not a decimal number; leave it empty for the newest", arm)
    bundle = str(given.get("bundle", ""))
    if not _BUNDLE.fullmatch(bundle):
        raise InvalidInput(f"{arm}: {bundle!r} is not the name of a bundle", arm)
    return ArmSpec(bundle=bundle, version=int(version))


def _same_inputs(stable: Bundle, candidate: Bundle) -> None:
    difference = stable.manifest.model_schema.inputs_match(candidate.manifest.model_schema)
    if difference:
        raise BundleError(
            f"{candidate.manifest.name} does not take what {stable.manifest.name} takes: {difference}", "candidate"
        )


def _damaged(bundle: str, version: str, reason: str) -> dict[str, Any]:
    return {
        "bundle": bundle,
        "version": version,
        "architecture": "",
        "base": None,
        "servable": False,
        "reasons": [],
        "fault": reason,
        "metrics": {},
        "arms": [],
    }


def _endpoint(endpoint: Endpoint, killed: bool) -> dict[str, Any]:
    return {**endpoint.model_dump(), "killed": killed or endpoint.killed}


def _brief(stored: StoredRollout) -> dict[str, Any]:
    state, status = stored.state, stored.status
    return {
        "id": stored.id,
        "endpoint": stored.spec.endpoint,
        "candidate": {"bundle": stored.spec.candidate.bundle, "version": str(state.candidate_version)},
        "phase": state.phase,
        "step": state.step,
        "weight": state.weight,
        "steps": [step.model_dump(exclude_defaults=True) for step in stored.spec.steps],
        "steps_on_evidence": sorted(state.steps_on_evidence()),
        "stepped_back": state.stepped_back,
        "attempt": state.attempt,
        "entered_ms": state.entered_ms,
        "waiting": status.get("reason", "the first look is still to come"),
        "next_look_ms": status.get("next_look_ms"),
        "missing_clicks": status.get("missing_clicks"),
        "evidence": status.get("evidence", {}),
        "created_ms": stored.created_ms,
        "resource_version": stored.resource_version,
    }


def _phase(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A stay's figures by metric and arm."""
    arms = {"stable": figures["stable"], "candidate": figures["candidate"]}
    return {
        "step": figures["step"],
        "weight": figures["weight"],
        "entered_ms": figures["entered_ms"],
        "rows": figures["rows"],
        "labels": figures["labels"],
        "served_by_candidate": figures["served_by_candidate"],
        "auc": {arm: f["auc"] for arm, f in arms.items()},
        "logloss": {arm: f["logloss"] for arm, f in arms.items()},
        "bias": {arm: {"value": f["bias"], "low": f["low"], "high": f["high"]} for arm, f in arms.items()},
        "outcome": figures["outcome"],
    }


def _shadow(processes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The shadow lane's own counts and what lanes could not hand over to it."""
    shadow = processes.get("shadow", {})
    reasons: dict[str, int] = dict(shadow.get("dropped", {}))
    for name, status in processes.items():
        if name.startswith("lane-"):
            for reason, count in status["shadow"]["dropped"].items():
                reasons[reason] = reasons.get(reason, 0) + count
    return {
        **shadow,
        "scored": shadow.get("scored", 0) + shadow.get("caught_up", 0),
        "dropped": sum(reasons.values()),
        "dropped_by_reason": reasons,
    }
