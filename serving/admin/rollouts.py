"""Rollout verbs. They decide nothing about traffic; the controller does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pipeline.bundle.verified import NOTES
from pipeline.errors import BatonError, Conflict, InvalidInput
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin import verbs as v
from serving.admin.endpoints import open_arm, same_inputs
from serving.admin.metrics import metrics_of
from serving.admin.pages import cut
from serving.admin.service import Parts, Service
from serving.config.principal import Principal
from serving.rollout.figures import RolloutFigures
from serving.rollout.routing import Endpoint, is_observed
from serving.rollout.spec import Rollout, place
from serving.rollout.state import Abort, Approve, Event, Pause, Promote, Resume, SetWeight, Undo
from serving.rollout.status.codes import STATUSES, status_of
from serving.rollout.status.codes import page as page_of
from serving.rollout.status.freeze import FREEZE, Freeze, freeze_of
from serving.rollout.status.retired import retired_of
from serving.rollout.store import StoredRollout, check_version
from serving.rollout.sums.slices import Slices

__all__ = ["RolloutVerbs"]

_LONGEST_FREEZE_MS = 366 * 86_400_000
_ID = re.compile(r"-[0-9a-f]{8}$")
"""What a rollout's id has after the name of its endpoint."""


class RolloutVerbs(Service):
    """Verbs of rollouts.

    A verb that steers raises NotFound: no such rollout; Conflict: its phase does not allow the verb; StaleVersion: it
    changed since `expected`.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._entered: dict[str, tuple[tuple[str, int], str | None]] = {}

    def start(self, request: r.RolloutFile, by: Principal) -> a.Rollout:
        """Begin a rollout.

        Raises:
            InvalidInput: the file is wrong, has another attribution window than the log, or the candidate's inputs are not
                the stable arm's.
            NotFound: unknown endpoint or bundle. Conflict: see `RolloutController.start`.
            StaleVersion: the endpoint changed since `expected`.
        """
        name, text = request.name, request.file
        spec = Rollout.parse(text, name)
        with _at(name, text, "endpoint"):
            endpoint = self._store.endpoint(spec.endpoint)
        check_version(f"endpoint {endpoint.name!r}", endpoint.resource_version, request.expected)
        if self._kill.engaged(spec.endpoint):
            raise Conflict(f"endpoint {spec.endpoint!r} is killed; release it first")
        bundle = spec.candidate.bundle
        if not is_observed(bundle):
            version = self._check_candidate(spec, endpoint, name, text, request.version)
        elif spec.named_slices or spec.analysis.segments:
            raise InvalidInput(
                f"{bundle} is answered elsewhere, so its fields are not known here; leave segments out", "file"
            )
        elif request.version:
            raise InvalidInput(
                f"{bundle} is answered elsewhere and has no versions here; leave version empty", "version"
            )
        else:
            version = 0
        with _at(name, text, "analysis", "attribution_window"):
            spec = spec.on_log(self._traffic.window_ms / 1000)
        with self._lock:
            # Who names a version means it: the newer ones that are there already are passed over.
            known = max(map(int, self._repository.versions(bundle)), default=0) if request.version else 0
            stored = self._controller.start(spec, by.name, request.reason, version, known)
        return self._answer(stored)

    def _check_candidate(self, spec: Rollout, endpoint: Endpoint, name: str, text: str, version: str) -> int:
        """Version of the candidate to begin with: the one that is named, or the newest. Raises: NotFound, BundleError,
        InvalidInput."""
        bundle = spec.candidate.bundle
        notes = self._config.segments / bundle / NOTES
        with _at(name, text, "candidate", "bundle"):
            if version:
                candidate = self._repository.open(bundle, version, verify=True, notes=notes)
                if not candidate.manifest.servable:
                    raise InvalidInput(f"version {version} of {bundle} did not pass its gate; name another", "version")
                if version in self._retired(bundle):
                    raise Conflict(
                        f"version {version} of {bundle} is retired; `baton model retire --restore` takes that back"
                    )
                self._repository.chain(candidate, verify=True, notes=notes)
            else:
                candidate = self._repository.newest(bundle, verify=True, notes=notes, without=self._retired(bundle))[-1]
            if not endpoint.stable.observed:
                same_inputs(open_arm(self._repository, endpoint.stable_now, "stable"), candidate)
        schema = candidate.manifest.model_schema
        with _at(name, text, "analysis", "segments"):
            Slices(schema, spec.analysis.segments)
        for number, guard in enumerate(spec.guards.segments):
            with _at(name, text, "guards", "segments", number, "field"):
                Slices(schema, (), [(guard.field, value) for value in guard.values])
        return int(candidate.manifest.version)

    def _retired(self, bundle: str) -> set[str]:
        """Versions of a bundle that are retired."""
        keys = (key.rpartition("/") for key in retired_of(self._store))
        return {version for name, _, version in keys if name == bundle}

    def list(self, request: r.RolloutList, by: Principal) -> a.RolloutPage:
        """All rollouts, oldest first, without figures."""
        stored = self._store.rollouts(active=request.active, endpoint=request.endpoint)
        found, token = cut(stored, request, lambda rollout: (rollout.created_ms, rollout.id), int, str)
        return a.RolloutPage(
            rollouts=[_summary(self._store.with_cause(rollout)) for rollout in found], next_page_token=token
        )

    def get(self, request: r.RolloutName, by: Principal) -> a.Rollout:
        """One rollout, by id or the newest of an endpoint, with its figures per stay. Raises: NotFound."""
        return self._answer(self._store.rollout(request.name))

    def newest(self, endpoint: str) -> a.RolloutSummary:
        """The newest rollout of an endpoint, without figures, so it is cheap. Raises: NotFound."""
        return _summary(self._store.with_cause(self._store.rollout(endpoint)))

    def with_metrics(self, rollout: str) -> tuple[a.Rollout, a.Metrics]:
        """Answers of `get` and `metrics.get` at the same moment, computed once. Raises: NotFound."""
        with self._lock:
            stored = self._store.rollout(rollout)
            figures = self._controller.snapshot(stored.id)
        return _answer(self._store.with_cause(stored), figures), metrics_of(figures)

    def pause(self, request: r.RolloutSteer, by: Principal) -> a.Rollout:
        """Stay at this step even when the evidence allows the next; breaches still step back."""
        return self._steer(v.ROLLOUTS_PAUSE, request, Pause(), by)

    def resume(self, request: r.RolloutSteer, by: Principal) -> a.Rollout:
        """Go on by evidence."""
        return self._steer(v.ROLLOUTS_RESUME, request, Resume(), by)

    def promote(self, request: r.RolloutPromote, by: Principal) -> a.Rollout:
        """Enter the next step, or the last. Raises Conflict, too, where the evidence is not there and `force` is not set."""
        return self._steer(v.ROLLOUTS_PROMOTE, request, Promote(full=request.full), by)

    def approve(self, request: r.RolloutSteer, by: Principal) -> a.Rollout:
        """Let a step with `approve: true` be entered on its evidence. Raises Conflict, too, where nothing waits for approval."""
        return self._steer(v.ROLLOUTS_APPROVE, request, Approve(), by)

    def abort(self, request: r.RolloutSteer, by: Principal) -> a.Rollout:
        """All traffic to stable, and the end of this rollout."""
        return self._steer(v.ROLLOUTS_ABORT, request, Abort(), by)

    def undo(self, request: r.RolloutSteer, by: Principal) -> a.Rollout:
        """Take a finished hand-over back: stable answers all traffic again."""
        return self._steer(v.ROLLOUTS_UNDO, request, Undo(), by)

    def set_weight(self, request: r.RolloutSetWeight, by: Principal) -> a.Rollout:
        """Set the weight by hand; the rollout pauses there."""
        return self._steer(v.ROLLOUTS_SET_WEIGHT, request, SetWeight(request.weight), by)

    def freeze(self, request: r.FreezeUntil, by: Principal) -> a.Freeze:
        """Let nothing move in any rollout until a time, but kill, abort and step back. Raises: InvalidInput: it has passed."""
        now = self._clock.wall_ms()
        if not now < request.until_ms <= now + _LONGEST_FREEZE_MS:
            raise InvalidInput("until_ms: must lie in the future, within a year; in Unix milliseconds", "until_ms")
        made = Freeze(request.until_ms, by.name, request.reason, now)
        self._store.put_setting(FREEZE, made.to_json(), self._who(by, request), "freeze")
        return a.Freeze(**made.to_json())

    def lift(self, request: r.Lift, by: Principal) -> a.Freeze:
        """End the freeze. Raises: Conflict: there is none."""
        if freeze_of(self._store, self._clock.wall_ms()) is None:
            raise Conflict("nothing is frozen")
        self._store.put_setting(FREEZE, {}, self._who(by, request), "lift_freeze")
        return a.Freeze()

    def step_version(self, endpoint: str) -> str | None:
        """Candidate version at the entry of the active rollout's present step, None without a rollout."""
        for stored in self._store.rollouts(active=True, endpoint=endpoint):
            step = (stored.id, stored.state.entered_ms)
            known = self._entered.get(endpoint)
            if known is None or known[0] != step:
                known = self._entered[endpoint] = (step, self._entered_with(endpoint, *step))
            return known[1]
        return None

    def _entered_with(self, endpoint: str, rollout: str, entered_ms: int) -> str | None:
        """Candidate version in the first audit entry of a step."""
        after = 0
        while page := self._store.audit(endpoint, after):
            for entry in page:
                state = entry.after.get("state", {})
                if entry.rollout == rollout and state.get("entered_ms") == entered_ms:
                    return str(state["candidate_version"])
            after = page[-1].seq
        return None

    def _steer(
        self,
        verb: v.Verb[Any, a.Rollout],
        request: r.RolloutSteer | r.RolloutPromote | r.RolloutSetWeight,
        event: Event,
        by: Principal,
    ) -> a.Rollout:
        stops = v.stops(verb, request)
        with self._stopping(lambda: self._endpoint_of(request.name), request, by) if stops else self._lock:
            force = isinstance(request, r.RolloutPromote) and request.force
            done = self._controller.command(request.name, event, by.name, request.reason, request.expected, force=force)
        return self._answer(done)

    def _endpoint_of(self, rollout: str) -> str:
        """Endpoint of a rollout by id or endpoint, also where the store cannot be read."""
        try:
            return self._store.rollout(rollout).spec.endpoint
        except BatonError:
            return _ID.sub("", rollout)

    def _answer(self, stored: StoredRollout) -> a.Rollout:
        with self._lock:
            figures = self._controller.snapshot(stored.id)
        return _answer(self._store.with_cause(stored), figures)


@contextmanager
def _at(name: str, text: str, *loc: str | int) -> Iterator[None]:
    """Add the place in the rollout file to errors raised within."""
    try:
        yield
    except BatonError as error:
        raise type(error)(f"{place(name, text, *loc)}: {error}") from None


def _answer(stored: StoredRollout, figures: RolloutFigures) -> a.Rollout:
    shown = _summary(stored)
    summary = {name: getattr(shown, name) for name in a.RolloutSummary.model_fields}
    phases = [_phase(asdict(phase)) for phase in figures.phases]
    return a.Rollout(**summary, coverage=figures.coverage, phases=phases)


def _summary(stored: StoredRollout) -> a.RolloutSummary:
    state, status = stored.state, stored.status
    candidate = a.Arm(bundle=stored.spec.candidate.bundle, version=str(state.candidate_version))
    code = status_of(state.phase, str(status.get("code", "")))
    return a.RolloutSummary(
        id=stored.id,
        endpoint=stored.spec.endpoint,
        candidate=candidate,
        phase=state.phase,
        step=state.step,
        weight=state.weight,
        steps=[a.Step(**step.model_dump()) for step in stored.spec.steps],
        steps_on_evidence=sorted(state.steps_on_evidence()),
        stepped_back=state.stepped_back,
        attempt=state.attempt,
        entered_ms=state.entered_ms,
        waiting=stored.waiting,
        next_look_ms=status.get("next_look_ms") if state.active else None,
        missing_clicks=status.get("missing_clicks") if state.active else None,
        evidence=status.get("evidence", {}),
        created_ms=stored.created_ms,
        resource_version=stored.resource_version,
        alarm=status.get("alarm", "") if state.active else "",
        refused_version=str(state.refused_version) if state.refused_version else "",
        cause=a.Cause(**asdict(state.cause)) if state.cause else None,
        code=code,
        what_to_do=STATUSES[code].do,
        page=page_of(code),
        held_since_ms=status.get("held_since_ms") if state.active else None,
        hours_left=status.get("hours_left") if state.active else None,
        overdue=bool(state.active and status.get("overdue")),
        step_backs=dict(state.step_backs),
    )


def _phase(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a stay by metric and arm."""
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
