"""Rollout controller: one `step()` reads new labelled rows, reconciles every active rollout and stores the result.

The control process calls `step()` a few times a second; the operators' verbs call `start` and `command`. All state is in
the store: after a crash at any line, a new controller continues from what was committed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.clock import Clock
from pipeline.errors import Conflict, NotFound, NotReady, StaleVersion
from pipeline.schema import Schema
from pipeline.traffic.log import TrafficLog
from serving.rollout.analysis import RolloutAnalysis, new_analysis
from serving.rollout.explain import AuditExplanation, explain
from serving.rollout.figures import PhaseFigures, RolloutFigures
from serving.rollout.long_run import FOLLOWED, LongRun
from serving.rollout.reconcile import Context, Decision, Observed, reconcile
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import Abort, Event, RolloutState, StepBack, apply, begin
from serving.rollout.store import ControlStore, LeadLost, StoredRollout, Who, check_version

__all__ = ["ACTOR", "RolloutController"]

ACTOR = "controller"
"""Author of what the rollout loop does, in the audit."""
log = logging.getLogger(__name__)

_BATCH_ENTRIES = 256
_BATCHES = 40
"""Batches per rollout and pass: bounded, so that one long log cannot starve the other rollouts."""
_SAVE_EVERY_MS = 60_000
_KEPT_ROLLOUTS = 8
"""Ended rollouts whose figures stay in memory."""


@dataclass(slots=True)
class _Runner:
    """In-memory data of one rollout; all of it can be built again from the store and the log."""

    analysis: RolloutAnalysis
    first_mark: int
    entered: tuple[int, int]
    behind: bool = True
    next_look_ms: int = 0
    status: dict[str, Any] | None = None


class RolloutController:
    """Controller of all rollouts of an installation. Safe to call from several threads.

    Args:
        store: endpoints, rollouts, audit. log: the traffic log whose labelled rows are read.
        clock: its wall time decides.
        observe: called once per rollout and pass with (rollout, endpoint); returns the reports of lanes and registry.
        schema: inputs of a bundle by name, called only where a rollout has slices of the traffic.
        brake: called with an endpoint and a reason where a step back or an abort cannot be stored; it takes all traffic
            from the candidate by other means. Raises: NotReady.
    """

    def __init__(
        self,
        store: ControlStore,
        log: TrafficLog,
        clock: Clock,
        observe: Callable[[StoredRollout, Endpoint], Observed],
        schema: Callable[[str], Schema],
        brake: Callable[[str, str], None],
    ) -> None:
        self._store, self._log, self._clock, self._observe, self._schema = store, log, clock, observe, schema
        self._brake = brake
        self._runners: dict[str, _Runner] = {}
        self._long_runs: dict[str, LongRun] = {}
        self._lock = threading.RLock()

    def start(self, spec: Rollout, actor: str, reason: str, version: int = 0) -> StoredRollout:
        """Begin a rollout on its endpoint: candidate in shadow, weight 0. `version` of the candidate, 0: not known yet.

        The caller checks that the bundle exists and has the stable arm's schema, since it can open bundles.

        Raises:
            NotFound: no such endpoint. Conflict: it has an active rollout, or stable is that very bundle.
            InvalidInput: the rollout has another attribution window than the log.
        """
        spec = spec.on_log(self._log.window_ms / 1000)
        endpoint = self._store.endpoint(spec.endpoint)
        if endpoint.killed:
            raise Conflict(f"endpoint {spec.endpoint!r} is killed; release it first")
        if endpoint.stable.bundle == spec.candidate.bundle:
            raise Conflict(f"bundle {spec.candidate.bundle!r} is the stable arm of {spec.endpoint!r} already")
        now = self._clock.wall_ms()
        chosen = endpoint.model_copy(
            update={
                "candidate": ArmSpec(bundle=spec.candidate.bundle, version=version),
                "weight": 0.0,
                "holdout": spec.holdout,
                "salt": endpoint.salt or spec.endpoint,
            }
        )
        seq = self._end_of_log()
        return self._store.start_rollout(spec, begin(spec, version, now, seq), chosen, Who(actor, reason, now))

    def command(self, name: str, event: Event, actor: str, reason: str, expected: int | None = None) -> StoredRollout:
        """Apply an operator's verb to a rollout (by id, or the newest of an endpoint).

        Args:
            expected: resource version that the operator read; None: any.

        Raises:
            NotFound: no such rollout. Conflict: its phase does not allow the verb. StaleVersion: it has changed since.
        """
        with self._lock:
            stored = self._store.rollout(name)
            check_version(f"rollout {stored.id!r}", stored.resource_version, expected)
            endpoint = self._store.endpoint(stored.spec.endpoint)
            return self._change(stored, endpoint, event, Who(actor, reason, self._clock.wall_ms()), {})

    def step(self) -> list[tuple[str, Decision]]:
        """One pass over all active rollouts; returns (rollout id, decision) for each."""
        with self._lock:
            active = self._store.rollouts(active=True)
            done = []
            for stored in active:
                try:
                    done.append((stored.id, self._pass(stored)))
                except Exception:
                    log.exception("a pass of rollout %s failed; the others go on", stored.id)
            self._follow()
            ended = [name for name in self._runners if name not in {stored.id for stored in active}]
            for name in ended[:-_KEPT_ROLLOUTS]:
                del self._runners[name]
                self._long_runs.pop(name, None)
        return done

    def snapshot(self, name: str) -> RolloutFigures:
        """The figures of a rollout (by id or endpoint): stays read by this process, and before them the stored ones.

        Raises:
            NotFound: no such rollout.
        """
        with self._lock:
            stored = self._store.rollout(name)
            runner = self._runner(stored)
            self._read(runner)
            runner.analysis.refresh()
            figures = runner.analysis.snapshot()
            followed = self._long_run(stored)
        earlier = stored.state.marks[: runner.first_mark]
        kept = tuple(PhaseFigures.from_json(mark.figures) for mark in earlier if mark.figures)
        return replace(figures, phases=kept + figures.phases, long_run=followed.figures() if followed else None)

    def explain(self, seq: int) -> AuditExplanation:
        """Figures behind the verdict of an audit entry, computed again from the log (`explain.explain`).

        Raises:
            NotFound: no such entry.
        """
        entry = self._store.audit_entry(seq)
        stored = self._store.rollout(entry.rollout) if entry.rollout else None
        return explain(entry, stored, self._log, self._schema)

    def _pass(self, stored: StoredRollout) -> Decision:
        endpoint = self._store.endpoint(stored.spec.endpoint)
        runner = self._runner(stored)
        self._read(runner)
        now = self._clock.wall_ms()
        context = Context(
            spec=stored.spec,
            state=stored.state,
            observed=self._observe(stored, endpoint),
            now_ms=now,
            next_look_ms=runner.next_look_ms,
            table=None if runner.behind else runner.analysis.refresh,
            log_window=self._log.window_ms / 1000,
        )
        decision = reconcile(context)
        runner.next_look_ms = decision.next_look_ms
        if decision.event is not None:
            # The place in the log is stored too, so that the figures can be computed again.
            seen = {**decision.evidence, "seq": runner.analysis.seq}
            try:
                self._change(stored, endpoint, decision.event, Who(ACTOR, decision.reason, now), seen)
            except StaleVersion:
                pass  # an operator was faster; the next pass sees the change
            except LeadLost:
                raise
            except NotReady as error:
                if isinstance(decision.event, (StepBack, Abort)) and context.observed.killed is None:
                    self._brake(endpoint.name, f"{decision.reason}; {decision.event.verb} cannot be stored: {error}")
                raise
        if now >= context.next_look_ms or decision.event is not None:
            self._store_status(stored.id, runner, decision)
        return decision

    def _change(
        self, stored: StoredRollout, endpoint: Endpoint, event: Event, who: Who, evidence: dict[str, Any]
    ) -> StoredRollout:
        runner = self._runner(stored)
        state = apply(stored.spec, stored.state, event, who.time_ms, runner.analysis.seq)
        state = self._with_figures(state, runner)
        routed = _route(stored.spec, endpoint, state)
        saved = self._store.save_rollout(stored, state, routed, who, event.verb, evidence)
        runner.analysis.begin_evidence(state.evidence_from_ms, state.evidence_version)
        if state.marks[-1] is not stored.state.marks[-1]:  # equal ones are two stays within one millisecond
            mark = state.marks[-1]
            runner.analysis.begin_phase(mark.step, mark.weight, mark.entered_ms)
            runner.entered = _entered(state)
            if len(stored.state.marks) == len(state.marks):  # the oldest mark was dropped
                runner.first_mark -= 1
        if isinstance(event, (StepBack, Abort)):
            runner.next_look_ms = 0
        return saved

    def _runner(self, stored: StoredRollout) -> _Runner:
        runner = self._runners.get(stored.id)
        state = stored.state
        if runner is not None and runner.entered != _entered(state):
            runner = None  # another control process has moved it
        if runner is None:
            # Rows of stays before the present attempt are read again only while no figures of them are stored.
            first = next((at for at, mark in enumerate(state.marks) if mark.figures is None), len(state.marks) - 1)
            after = min(state.evidence_seq, state.marks[first].seq)
            first = next(at for at, mark in enumerate(state.marks) if mark.seq >= after)
            analysis = new_analysis(stored.spec, after, self._schema)
            analysis.begin_evidence(state.evidence_from_ms, state.evidence_version)
            for mark in state.marks[first:]:
                analysis.begin_phase(mark.step, mark.weight, mark.entered_ms)
            runner = self._runners[stored.id] = _Runner(analysis, first, _entered(state))
        return runner

    def _read(self, runner: _Runner) -> None:
        for _ in range(_BATCHES):
            entries = self._log.labelled(runner.analysis.seq, _BATCH_ENTRIES)
            runner.analysis.add(entries)
            if len(entries) < _BATCH_ENTRIES:
                runner.behind = False
                return
        # A runner is behind only until it has read the log after a restart. Later a full pass is no reason to hold: the
        # rows that were read are in order.

    def _with_figures(self, state: RolloutState, runner: _Runner) -> RolloutState:
        """Store the figures of stays that ended two or more stays ago: their rows have matured by now."""
        marks = list(state.marks)
        runner.analysis.refresh()
        for at in range(runner.first_mark, len(marks) - 2):
            if at >= 0 and marks[at].figures is None and not runner.behind:
                marks[at] = replace(marks[at], figures=asdict(runner.analysis.phase_figures(at - runner.first_mark)))
        return replace(state, marks=tuple(marks))

    def _follow(self) -> None:
        """Update the long-run effect of each endpoint's newest rollout, and store it once a minute."""
        now = self._clock.wall_ms()
        for endpoint in self._store.endpoints().values():
            try:
                newest = self._store.rollout(endpoint.name)
            except NotFound:
                continue
            followed = self._long_run(newest)
            if followed is None or followed.until_ms is not None:
                continue
            killed = self._observe(newest, endpoint).killed is not None
            followed.step(self._log, endpoint, now, killed)
            if followed.until_ms is not None or now - followed.saved_ms >= _SAVE_EVERY_MS:
                self._store.put_status(newest.id, {**newest.status, "long_run": followed.save(now)})

    def _long_run(self, stored: StoredRollout) -> LongRun | None:
        """Long-run effect of a rollout, from memory, from the store or new; None before its last step."""
        followed = self._long_runs.get(stored.id)
        if followed is None and (kept := stored.status.get("long_run")):
            followed = LongRun.from_json(stored.spec, kept)
        if stored.state.phase in FOLLOWED and (followed is None or followed.since_ms != stored.state.entered_ms):
            followed = LongRun.begin(stored)
        if followed is not None:
            self._long_runs[stored.id] = followed
        return followed

    def _store_status(self, rollout: str, runner: _Runner, decision: Decision) -> None:
        status = {
            "reason": decision.reason,
            "next_look_ms": decision.next_look_ms,
            "missing_clicks": decision.missing_clicks,
            "evidence": decision.evidence,
        }
        if status != runner.status:
            followed = self._long_runs.get(rollout)
            kept = {} if followed is None else {"long_run": followed.saved}
            self._store.put_status(rollout, status | kept)
            runner.status = status

    def _end_of_log(self) -> int:
        """Place of the log's last entry, by binary search: a log of weeks must not be read for it."""
        if not self._log.labelled(0, 1):
            return 0
        low, high = 0, 1
        while self._log.labelled(high, 1):
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._log.labelled(middle, 1) else (low, middle)
        return high


def _entered(state: RolloutState) -> tuple[int, int]:
    """Identity of the newest stay: its entry time, and its place in the log."""
    return state.marks[-1].entered_ms, state.marks[-1].seq


def _route(spec: Rollout, endpoint: Endpoint, state: RolloutState) -> Endpoint:
    """The endpoint for a state. Level-triggered: the next change repairs a lost write."""
    candidate = ArmSpec(bundle=spec.candidate.bundle, version=state.candidate_version)
    return endpoint.model_copy(update={"candidate": candidate, "weight": state.weight})
