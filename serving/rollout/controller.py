"""Rollout controller: one `step()` reads new labelled rows, reconciles every active rollout and stores the result.

The control process calls `step()` a few times a second; the operators' verbs call `start` and `command`. All state is in
the store: after a crash at any line, a new controller continues from what was committed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pipeline.clock import Clock
from pipeline.errors import BatonError, Conflict, NotFound, NotReady, StaleVersion
from pipeline.schema import Schema
from pipeline.traffic.log import TrafficLog
from serving.rollout.analysis import RolloutAnalysis, new_analysis
from serving.rollout.demands import unmet_demands
from serving.rollout.explain import AuditExplanation, explain
from serving.rollout.figures import PhaseFigures, RolloutFigures, pack_figures, unpack_figures
from serving.rollout.guards import PastScores
from serving.rollout.held_stable import HeldStable
from serving.rollout.long_run import FOLLOWED, LongRun
from serving.rollout.observed import Observed
from serving.rollout.outlook import clicks_per_hour, outlook
from serving.rollout.reader import Counted, LabelReader
from serving.rollout.reconcile import Context, Decision, reconcile
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Analysis, Rollout
from serving.rollout.state import (
    Abort,
    Approve,
    Cause,
    Event,
    Phase,
    Promote,
    ReturnVersion,
    RolloutState,
    SetWeight,
    StepBack,
    after,
    apply,
    begin,
)
from serving.rollout.status.freeze import Freeze, freeze_of
from serving.rollout.store import ControlStore, LeadLost, StoredRollout, Who, check_version

__all__ = ["ACTOR", "RolloutController"]

ACTOR = "controller"
"""Author of what the rollout loop does, in the audit."""
log = logging.getLogger(__name__)

_SAVE_EVERY_MS = 60_000
_KEPT_ROLLOUTS = 8
"""Ended rollouts whose figures stay in memory."""
_SETTLE_EVERY_MS = 3_600_000
_SETTLED_ROLLOUTS = 4

Observe = Callable[[], Callable[[StoredRollout, Endpoint], Observed]]


@dataclass(slots=True)
class _Runner:
    """In-memory data of one rollout; all of it can be built again from the store and the log.

    `identity` is that of the stay and the evidence that the sums belong to. It is `behind` from a restart on until its sums
    have caught up with the log.
    """

    analysis: RolloutAnalysis
    identity: list[int]
    behind: bool = True
    next_look_ms: int = 0
    status: dict[str, Any] | None = None
    stored_seq: int = -1
    past: PastScores | None = None
    past_ms: int = 0


class RolloutController:
    """Controller of all rollouts of an installation. Safe to call from several threads.

    Args:
        store: endpoints, rollouts, audit. log: the traffic log whose labelled rows are read.
        clock: its wall time decides.
        observe: called once per pass; returns a function from (rollout, endpoint) to the reports of lanes and registry then.
        schema: inputs of a bundle by name, called only where a rollout has slices of the traffic.
        brake: called with an endpoint and a reason where a step back or an abort cannot be stored; it takes all traffic
            from the candidate by other means. Raises: NotReady.
    """

    def __init__(
        self,
        store: ControlStore,
        log: TrafficLog,
        clock: Clock,
        observe: Observe,
        schema: Callable[[str], Schema],
        brake: Callable[[str, str], None],
    ) -> None:
        self._store, self._log, self._clock, self._observe, self._schema = store, log, clock, observe, schema
        self._brake = brake
        self._reader = LabelReader(log)
        self._runners: dict[str, _Runner] = {}
        self._long_runs: dict[str, LongRun] = {}
        self._watched: dict[str, StoredRollout] = {}
        self._active: frozenset[str] | None = None
        self._saved_ms = clock.wall_ms()
        self._listed_ms = 0
        self._ended: deque[str] = deque()
        self._settled: set[str] = set()
        self._frozen: Freeze | None = None
        self._stable = HeldStable(store, ACTOR)
        self._lock = threading.RLock()

    def start(self, spec: Rollout, actor: str, reason: str, version: int = 0, known: int = 0) -> StoredRollout:
        """Begin a rollout on its endpoint: candidate in shadow, weight 0. `version` of the candidate, 0: not known yet; `known`:
        the newest of its bundle now, only later ones are adopted.

        The caller checks that the bundle exists and has the stable arm's schema, since it can open bundles.

        Raises:
            NotFound: no such endpoint. Conflict: it has an active rollout, or stable is that very bundle.
            InvalidInput: the rollout has another attribution window than the log.
        """
        spec = spec.on_log(self._log.window_ms / 1000)
        self._refuse_frozen()
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
        seq = self._log.stats(now).last_seq
        begun = begin(spec, version, now, seq, known)
        stored = self._store.start_rollout(spec, begun, chosen, Who(actor, reason, now))
        # For who starts it; what is stored is what the first look says.
        return replace(
            stored,
            status={**stored.status, "reason": outlook(spec, clicks_per_hour(self._log, spec.endpoint, now))},
        )

    def command(
        self, name: str, event: Event, actor: str, reason: str, expected: int | None = None, *, force: bool = False
    ) -> StoredRollout:
        """Apply an operator's verb to a rollout (by id, or the newest of an endpoint).

        Args:
            expected: resource version that the operator read; None: any.
            force: promote although the evidence for it is not there. What is not met goes into the audit.

        Raises:
            NotFound: no such rollout. StaleVersion: it has changed since.
            Conflict: its phase does not allow the verb, or a promotion's evidence is not there and `force` is not set.
        """
        with self._lock:
            stored = self._store.rollout(name)
            check_version(f"rollout {stored.id!r}", stored.resource_version, expected)
            endpoint = self._store.endpoint(stored.spec.endpoint)
            who = Who(actor, reason, self._clock.wall_ms())
            wanted = apply(stored.spec, stored.state, event, who.time_ms, 0)
            if isinstance(event, Approve):
                self._runner(stored).next_look_ms = 0
                if wanted == stored.state:
                    return stored  # approved already
            passed: tuple[str, ...] = ()
            if wanted.weight > stored.state.weight:
                self._refuse_frozen()
            if isinstance(event, Promote | SetWeight) and wanted.weight > stored.state.weight:
                context = self._context(stored, self._observe()(stored, endpoint), self._runner(stored))
                passed = unmet_demands(context, wanted.step)
            if passed and isinstance(event, Promote) and not force:
                raise Conflict(
                    f"not met for weight {wanted.weight:g}: {'; '.join(passed)}. To promote all the same: --force"
                )
            return self._change(stored, endpoint, event, who, {"unmet": list(passed)} if passed else {})

    def step(self) -> list[tuple[str, Decision]]:
        """One pass over all active rollouts; returns (rollout id, decision) for each."""
        with self._lock:
            self._look_for_freeze()
            active, observed = self._store.rollouts(active=True), self._observe()
            endpoints = self._endpoints(active)
            self._note_ended(active, endpoints)
            read = [*active, *self._watched.values()]
            self._read(read)
            done = []
            for stored in active:
                try:
                    done.append((stored.id, self._pass(stored, endpoints[stored.spec.endpoint], observed)))
                except Exception as error:
                    fault = not isinstance(error, NotReady)  # a store that is away or full is none of this process
                    log.error("a pass of rollout %s failed; the others go on: %s", stored.id, error, exc_info=fault)
            self._watch(endpoints, observed)
            self._let_stable_go(active, endpoints, observed)
            due = abs(self._clock.wall_ms() - self._saved_ms) >= _SAVE_EVERY_MS
            self._follow(endpoints, observed, due)
            if due:
                self._save(read)
                self._settle_ended()
            ended = [name for name in self._runners if name not in {stored.id for stored in read}]
            for name in ended[:-_KEPT_ROLLOUTS]:
                del self._runners[name]
        return done

    def snapshot(self, name: str) -> RolloutFigures:
        """The figures of a rollout (by id or endpoint): of the last stays, and before them the stored ones.

        Raises:
            NotFound: no such rollout.
        """
        with self._lock:
            stored = self._store.rollout(name)
            if stored.state.active:
                self._read(self._store.rollouts(active=True))
            settled = self._settled_figures(stored)
            if settled is not None:
                followed = self._long_run(stored)
                return replace(settled, long_run=followed.figures() if followed else None)
            runner = self._runner(stored)
            if not stored.state.active:  # its last rows mature after its end, and nobody reads them but who asks
                runner.behind = not self._reader.catch_up(runner.analysis)
            runner.analysis.refresh()
            figures = runner.analysis.snapshot()
            followed = self._long_run(stored)
        earlier = stored.state.marks[: len(stored.state.marks) - len(runner.analysis.stays)]
        kept = tuple(PhaseFigures.from_json(mark.figures) for mark in earlier if mark.figures)
        return replace(figures, phases=kept + figures.phases, long_run=followed.figures() if followed else None)

    def explain(self, seq: int, *, rows: bool = False) -> AuditExplanation:
        """Figures behind the verdict of an audit entry, computed again from its sums (`explain.explain`).

        Args:
            rows: compute them from the rows of the log instead, which takes as long as reading those.

        Raises:
            NotFound: no such entry.
        """
        entry = self._store.audit_entry(seq)
        stored = self._store.rollout(entry.rollout) if entry.rollout else None
        return explain(entry, stored, self._store.audit_basis(seq), self._log, self._schema, rows=rows)

    def _pass(
        self, stored: StoredRollout, endpoint: Endpoint, observed: Callable[[StoredRollout, Endpoint], Observed]
    ) -> Decision:
        runner = self._runner(stored)
        context = self._context(stored, observed(stored, endpoint), runner)
        decision = reconcile(context)
        runner.next_look_ms = decision.next_look_ms
        if decision.event is not None:
            # The place in the log is stored too, so that the figures can be computed again.
            seen = {**decision.evidence, "seq": runner.analysis.seq}
            try:
                self._change(stored, endpoint, decision.event, Who(ACTOR, decision.reason, context.now_ms), seen)
            except StaleVersion:
                pass  # an operator was faster; the next pass sees the change
            except LeadLost:
                raise
            except NotReady as error:
                if isinstance(decision.event, (StepBack, ReturnVersion, Abort)) and context.observed.killed is None:
                    self._brake(endpoint.name, f"{decision.reason}; {decision.event.verb} cannot be stored: {error}")
                raise
        alarmed = decision.alarm not in ("", (runner.status or stored.status).get("alarm", ""))
        if context.now_ms >= context.next_look_ms or decision.event is not None or alarmed:
            self._store_status(stored, runner, decision)
        if decision.event is None and self._frozen is None:
            self._stable.tend(stored, endpoint, context.observed, context.now_ms)
        return decision

    def _watch(
        self, endpoints: Mapping[str, Endpoint], observed: Callable[[StoredRollout, Endpoint], Observed]
    ) -> None:
        """Say where the candidate of a completed rollout drifts away, for as long as it answers as the rollout left it."""
        for stored in self._watched.values():
            try:
                runner, endpoint = self._runner(stored), endpoints[stored.spec.endpoint]
                context = self._context(stored, observed(stored, endpoint), runner)
                decision = reconcile(context)
                runner.next_look_ms = decision.next_look_ms
                if context.now_ms >= context.next_look_ms:
                    self._store_status(stored, runner, decision)
            except Exception as error:
                fault = not isinstance(error, NotReady)
                log.error(
                    "the completed rollout %s cannot be watched; the others go on: %s", stored.id, error, exc_info=fault
                )

    def _let_stable_go(
        self,
        active: Sequence[StoredRollout],
        endpoints: Mapping[str, Endpoint],
        observed: Callable[[StoredRollout, Endpoint], Observed],
    ) -> None:
        """Stable arms that are still held after the end of their rollout."""
        owned = {stored.spec.endpoint for stored in active}
        for name, endpoint in endpoints.items():
            if endpoint.stable_held and name not in owned and self._frozen is None:
                ended = self._store.find_rollout(name)
                if ended is not None:
                    self._stable.tend(ended, endpoint, observed(ended, endpoint), self._clock.wall_ms())

    def _look_for_freeze(self) -> None:
        """A freeze that begins or ends is seen, and shown, at once."""
        frozen = freeze_of(self._store, self._clock.wall_ms())
        if frozen != self._frozen:
            self._frozen = frozen
            for runner in self._runners.values():
                runner.next_look_ms = 0

    def _refuse_frozen(self) -> None:
        """Raises: Conflict: a freeze lets nothing move."""
        self._look_for_freeze()
        if self._frozen is not None:
            raise Conflict(f"{self._frozen}. Lift it first: baton freeze --lift --reason ...")

    def _context(self, stored: StoredRollout, observed: Observed, runner: _Runner) -> Context:
        now = self._clock.wall_ms()
        return Context(
            spec=stored.spec,
            state=stored.state,
            observed=observed,
            now_ms=now,
            next_look_ms=runner.next_look_ms,
            table=None if runner.behind else runner.analysis.refresh,
            log_window=self._log.window_ms / 1000,
            frozen=self._frozen,
            past=partial(_past, runner, stored.spec.analysis, now),
        )

    def _change(
        self, stored: StoredRollout, endpoint: Endpoint, event: Event, who: Who, evidence: dict[str, Any]
    ) -> StoredRollout:
        runner = self._runner(stored)
        analysis = runner.analysis
        state = apply(stored.spec, stored.state, event, who.time_ms, analysis.seq)
        unmet = tuple(evidence.get("unmet", ()))
        state = after(stored.state, state, event, Cause(event.verb, who.actor, who.reason, who.time_ms, unmet))
        basis = analysis.save_evidence() if "blocks" in evidence else None
        del self._runners[stored.id]  # where the change is not stored, what is stored is read again
        analysis.begin_evidence(state.evidence_from_ms, state.evidence_version)
        analysis.refuse(state.refused_versions, state.evidence_from_ms)
        if state.marks[-1] is not stored.state.marks[-1]:  # equal ones are two stays within one millisecond
            mark = state.marks[-1]
            analysis.begin_phase(mark.step, mark.weight, mark.entered_ms)
        if not runner.behind:
            state = _with_figures(state, analysis)
        identity = _identity(state)
        sums = analysis.save(identity)
        routed = _route(stored.spec, endpoint, state)
        saved = self._store.save_rollout(stored, state, routed, who, event.verb, evidence, sums, basis)
        runner.identity, runner.stored_seq, runner.past = identity, analysis.seq, None
        self._runners[stored.id] = runner
        if isinstance(event, (StepBack, ReturnVersion, Abort)):
            runner.next_look_ms = who.time_ms
        return saved

    def _endpoints(self, active: Sequence[StoredRollout]) -> Mapping[str, Endpoint]:
        """All endpoints by name; where one of them cannot be read, those of active rollouts that can."""
        try:
            return self._store.endpoints()
        except NotReady as error:
            log.error("not all endpoints can be read: %s", error)
        found: dict[str, Endpoint] = {}
        for stored in active:
            with suppress(NotReady, NotFound):
                found[stored.spec.endpoint] = self._store.endpoint(stored.spec.endpoint)
        return found

    def _runner(self, stored: StoredRollout) -> _Runner:
        """Sums of a rollout: from memory, from the store, or none yet, to be read from the log."""
        runner = self._runners.get(stored.id)
        state = stored.state
        identity = _identity(state)
        if runner is not None and runner.identity == identity and runner.analysis.whole:
            return runner
        packed = self._store.sums(stored.id)  # another control process has moved it, or this one has just started
        analysis = new_analysis(stored.spec, 0, self._schema)
        if packed is None or not analysis.restore(packed, identity):
            analysis = self._from_log(stored)
        analysis.refuse(state.refused_versions, state.evidence_from_ms)
        looked = stored.status.get("next_look_ms", 0)
        runner = self._runners[stored.id] = _Runner(analysis, identity, next_look_ms=looked)
        return runner

    def _from_log(self, stored: StoredRollout) -> RolloutAnalysis:
        """An analysis that reads the log again. Stays before the present attempt are, while no figures of them are stored."""
        state = stored.state
        first = next((at for at, mark in enumerate(state.marks) if mark.figures is None), len(state.marks) - 1)
        after = min(state.evidence_seq, state.marks[first].seq)
        first = next(at for at, mark in enumerate(state.marks) if mark.seq >= after)
        analysis = new_analysis(stored.spec, after, self._schema)
        analysis.begin_evidence(state.evidence_from_ms, state.evidence_version)
        for mark in state.marks[first:]:
            analysis.begin_phase(mark.step, mark.weight, mark.entered_ms)
        return analysis

    def _read(self, active: Sequence[StoredRollout]) -> None:
        """Count what is new in the log, for all active rollouts and long-run effects together."""
        counted: dict[str, Counted] = {}
        for stored in active:
            try:
                counted[stored.id] = self._runner(stored).analysis
            except BatonError as error:
                fault = not isinstance(error, NotReady)
                log.error(
                    "the sums of rollout %s cannot be read; the others go on: %s", stored.id, error, exc_info=fault
                )
        effects = {name: effect for name, effect in self._long_runs.items() if effect.until_ms is None}
        failed = self._reader.step([*counted.values(), *effects.values()])
        for name, sums in counted.items():
            if sums in failed:
                del self._runners[name]
            elif self._reader.joined(sums):
                # A runner is behind only until it has read the log after a restart. Later a full pass is no reason to hold:
                # the rows that were read are in order.
                self._runners[name].behind = False
        for name, effect in effects.items():
            if effect in failed:
                del self._long_runs[name]

    def _save(self, active: Sequence[StoredRollout]) -> None:
        """Store the sums of all rollouts, all at one place in the log."""
        self._saved_ms = self._clock.wall_ms()
        for stored in active:
            runner = self._runners.get(stored.id)
            if runner is not None and runner.stored_seq != runner.analysis.seq:
                self._store.put_sums(stored.id, runner.analysis.save(runner.identity))
                runner.stored_seq = runner.analysis.seq

    def _settle_ended(self) -> None:
        """Store the figures of ended rollouts in place of their sums once no label can change them; a few at a time."""
        now = self._clock.wall_ms()
        if abs(now - self._listed_ms) >= _SETTLE_EVERY_MS:
            self._listed_ms = now
            final_ms = now - self._log.late_limit_ms - 2 * self._log.window_ms
            for stored in self._store.rollouts():
                going_on = stored.state.active or stored.id in self._watched
                if stored.id not in self._settled and not going_on and _ended_ms(stored) <= final_ms:
                    self._ended.append(stored.id)
        for _ in range(min(_SETTLED_ROLLOUTS, len(self._ended))):
            stored = self._store.rollout(self._ended.popleft())
            packed = self._store.sums(stored.id)
            if packed is not None and unpack_figures(packed) is None:
                figures = self.snapshot(stored.id)
                if self._runners[stored.id].behind:
                    continue  # to be read to the end first; the next list has it again
                self._store.put_sums(stored.id, pack_figures(figures))
                del self._runners[stored.id]
            self._settled.add(stored.id)

    def _settled_figures(self, stored: StoredRollout) -> RolloutFigures | None:
        """Figures of an ended rollout that has no sums any more."""
        if stored.state.active or stored.id in self._runners:
            return None
        packed = self._store.sums(stored.id)
        return None if packed is None else unpack_figures(packed)

    def _note_ended(self, active: Sequence[StoredRollout], endpoints: Mapping[str, Endpoint]) -> None:
        """Find the long-run effects to follow: at first those of all endpoints, then those of rollouts that move or end."""
        for stored in active:
            self._long_run(stored)
        now = frozenset(stored.id for stored in active)
        for name in endpoints if self._active is None else self._active - now:
            try:
                newest = self._store.find_rollout(name)
                if newest is not None:
                    self._long_run(newest)
                    if newest.state.phase == Phase.COMPLETED and newest.id in self._long_runs:
                        self._watched[newest.id] = newest
            except NotReady as error:
                log.error("the long-run effect of %s is not followed: %s", name, error)
        self._active = now

    def _follow(
        self, endpoints: Mapping[str, Endpoint], observed: Callable[[StoredRollout, Endpoint], Observed], due: bool
    ) -> None:
        """End long-run effects whose keys are dealt otherwise now, and store new ones, ended ones and, when due, all."""
        now = self._clock.wall_ms()
        for name, effect in list(self._long_runs.items()):
            endpoint = endpoints.get(effect.endpoint)
            if effect.until_ms is None and endpoint is not None:
                effect.check(endpoint, now, observed(effect.rollout, endpoint).killed is not None)
            if due or effect.until_ms is not None or not effect.saved:
                status = self._store.rollout(name).status
                self._store.put_status(name, {**status, "long_run": effect.save()})
            if effect.until_ms is not None:
                del self._long_runs[name]
                self._watched.pop(name, None)

    def _long_run(self, stored: StoredRollout) -> LongRun | None:
        """Long-run effect of a rollout, from memory, from the store or new; None before its last step."""
        followed = self._long_runs.get(stored.id)
        if followed is None and (kept := stored.status.get("long_run")):
            followed = LongRun.from_json(stored, kept)
        if stored.state.phase in FOLLOWED and (followed is None or followed.since_ms != stored.state.entered_ms):
            followed = LongRun.begin(stored)
        if followed is not None and followed.until_ms is None:
            self._long_runs[stored.id] = followed
        return followed

    def _store_status(self, stored: StoredRollout, runner: _Runner, decision: Decision) -> None:
        status = {
            "reason": decision.reason,
            "next_look_ms": runner.next_look_ms,
            "missing_clicks": decision.missing_clicks,
            "evidence": decision.evidence,
            "alarm": decision.alarm,
            "code": decision.code,
            "overdue": decision.overdue,
            "held_since_ms": _held_since_ms(stored, decision, self._clock.wall_ms()),
            "hours_left": _hours_left(decision),
        }
        if status != runner.status:
            effect = self._long_runs.get(stored.id)
            kept = stored.status.get("long_run") if effect is None else effect.saved
            self._store.put_status(stored.id, status | ({"long_run": kept} if kept else {}))
            runner.status = status


def _held_since_ms(stored: StoredRollout, decision: Decision, now_ms: int) -> int | None:
    """Since when a rollout says what it says, at this step; None where it has just done something."""
    if decision.event is not None:
        return None
    since = stored.status.get("held_since_ms")
    same = stored.status.get("code") == decision.code and since is not None and since >= stored.state.entered_ms
    return since if same else now_ms


def _hours_left(decision: Decision) -> float | None:
    """Hours until the missing clicks are there at the rate of this evidence, None where that is not known."""
    seen, missing = decision.evidence, decision.missing_clicks
    if missing is None or not seen.get("clicks"):
        return None
    hours = (seen.get("until_ms", 0) - seen.get("from_ms", 0)) / 3_600_000
    return float(missing) * hours / float(seen["clicks"]) if hours > 0 else None


def _past(runner: _Runner, settings: Analysis, now: int) -> PastScores | None:
    """Both arms' scores on mature rows; they are added up at looks, not at every pass in between."""
    if runner.behind:
        return None
    if runner.past is None or not 0 <= now - runner.past_ms < settings.interval * 1000:
        runner.past, runner.past_ms = PastScores.of(runner.analysis.refresh(), settings.breach_window), now
    return runner.past


def _ended_ms(stored: StoredRollout) -> int:
    """When a rollout ended, Unix milliseconds."""
    state = stored.state
    watched = stored.spec.after_full.watch if state.phase == Phase.COMPLETED else 0.0
    return state.entered_ms + round(1000 * watched)


def _identity(state: RolloutState) -> list[int]:
    """Identity of the newest stay and of the evidence: entry time and place in the log of either, and the version."""
    mark = state.marks[-1]
    return [
        mark.entered_ms,
        mark.seq,
        len(state.marks),
        state.evidence_from_ms,
        state.evidence_seq,
        state.evidence_version,
    ]


def _with_figures(state: RolloutState, analysis: RolloutAnalysis) -> RolloutState:
    """Store the figures of stays that ended two or more stays ago, since their rows have matured by now; their sums go."""
    marks = list(state.marks)
    first, done = len(marks) - len(analysis.stays), max(0, len(analysis.stays) - 2)
    analysis.refresh()
    for at in range(done):
        if first + at >= 0 and marks[first + at].figures is None:
            marks[first + at] = replace(marks[first + at], figures=asdict(analysis.phase_figures(at)))
    analysis.end_phases(done)
    return replace(state, marks=tuple(marks))


def _route(spec: Rollout, endpoint: Endpoint, state: RolloutState) -> Endpoint:
    """The endpoint for a state. Level-triggered: the next change repairs a lost write."""
    candidate = ArmSpec(bundle=spec.candidate.bundle, version=state.candidate_version)
    return endpoint.model_copy(update={"candidate": candidate, "weight": state.weight})
