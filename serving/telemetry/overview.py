"""Metrics of the whole installation: processes that report, labels, rollouts, the worker.

Collected from the stores and the status files when the control process writes its figures, so no request waits for it.
Times are Unix seconds and not ages: an age would be wrong in a scrape that comes late.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.bundle.bundle import Bundle
from pipeline.clock import Clock
from pipeline.errors import BatonError, NotFound
from pipeline.traffic.log import EndpointStats, TrafficStats
from serving.rollout.figures import ArmFigures, RolloutFigures
from serving.rollout.routing import Endpoint
from serving.rollout.spec import MIN_BLOCKS
from serving.rollout.state import Phase
from serving.rollout.status.freeze import freeze_of
from serving.rollout.store import StoredRollout
from serving.runtime.status import Statuses, WorkerStatus
from serving.supervisor.child import CAUSES, ENDED
from serving.telemetry.process import UNKNOWN

__all__ = ["Overview", "made_ms"]

FIGURES_EVERY_S = 5.0
"""Seconds for which figures that need reading are reused."""
log = logging.getLogger(__name__)

PHASES = tuple(value for name, value in vars(Phase).items() if name.isupper())


class _Store(Protocol):
    def endpoints(self) -> dict[str, Endpoint]: ...

    def rollout(self, name: str) -> StoredRollout: ...

    def setting(self, name: str) -> dict[str, Any]: ...


class Overview(Collector):
    """Collected by the control process's `Telemetry`.

    Args:
        expected: names of the processes that should run.
        statuses: reads the status of every process.
        store: endpoints and rollouts.
        figures: of a rollout by id (`RolloutController.snapshot`).
        traffic: state of the traffic log at a time in Unix milliseconds.
        created_ms: time at which a version, given as (bundle, version), was made. Raises: BatonError or OSError, it is gone.
        backup_ms: time of the last backup, 0: none was made.
    """

    def __init__(
        self,
        expected: Sequence[str],
        statuses: Callable[[], Statuses],
        store: _Store,
        figures: Callable[[str], RolloutFigures],
        traffic: Callable[[int], TrafficStats],
        created_ms: Callable[[str, str], int],
        clock: Clock,
        backup_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._backup_ms = backup_ms
        self._expected = expected
        self._statuses = statuses
        self._store = store
        self._read_figures = figures
        self._read_traffic = traffic
        self._read_created = created_ms
        self._clock = clock
        self._created: dict[tuple[str, str], int] = {}
        self._next = -FIGURES_EVERY_S
        self._frozen = False
        self._endpoints: dict[str, Endpoint] = {}
        self._newest: dict[str, StoredRollout] = {}
        self._figures: dict[str, RolloutFigures] = {}
        self._traffic: TrafficStats | None = None
        self._feedback_at = (-1, clock.wall_ms())

    def collect(self) -> Iterator[Metric]:
        """All families; those that need reading are at most `FIGURES_EVERY_S` seconds old."""
        statuses = self._statuses()
        yield from self._liveness(statuses)
        yield from self._versions(statuses)
        now = self._clock.monotonic()
        if now >= self._next:
            self._next = now + FIGURES_EVERY_S
            try:
                self._look()
            except BatonError as error:
                log.warning("figures of rollouts and labels are those of before: %s", error)
        yield from self._labels()
        backup = _gauge("baton_backup_last_timestamp_seconds", "When the home was last backed up, where it ever was")
        if at := self._backup_ms():
            backup.add_metric([], at / 1000)
        yield backup
        yield from self._kills(statuses)
        if statuses.worker is not None:
            yield from self._worker(statuses.worker.status)
        yield from self._rollouts()
        yield from self._evidence()

    def _look(self) -> None:
        self._endpoints = self._store.endpoints()
        self._frozen = freeze_of(self._store, self._clock.wall_ms()) is not None
        for name in self._endpoints:
            with suppress(NotFound):  # it has never had a rollout
                self._newest[name] = self._store.rollout(name)
        active = {name: stored for name, stored in self._newest.items() if stored.state.active}
        self._figures = {name: self._read_figures(stored.id) for name, stored in active.items()}
        self._traffic = self._read_traffic(self._clock.wall_ms())
        if self._traffic.feedback != self._feedback_at[0]:
            self._feedback_at = self._traffic.feedback, self._clock.wall_ms()

    def describe(self) -> list[Metric]:
        return []

    def _liveness(self, statuses: Statuses) -> Iterator[Metric]:
        up = _gauge("baton_process_up", "1 where a process reports, 0 where it should and does not", "process")
        fresh = statuses.fresh().all()
        for name in self._expected:
            # This process is the control process itself; its file may be from before.
            up.add_metric([name], name == "control" or name in fresh)
        if statuses.supervisor is not None:
            up.add_metric(["supervisor"], statuses.supervisor.fresh)
        yield up
        restarts = CounterMetricFamily(
            "baton_process_restarts",
            "Times that the supervisor has started a process again, by reason: it ended, hung, or an operator asked for it",
            labels=["process", "reason"],
        )
        children = {} if statuses.supervisor is None else statuses.supervisor.status.children
        for name, child in children.items():
            # A supervisor of an earlier version gives the sum alone.
            by_reason = child.causes or {ENDED: child.restarts}
            for reason in CAUSES:
                restarts.add_metric([name, reason], by_reason.get(reason, 0))
        yield restarts

    def _versions(self, statuses: Statuses) -> Iterator[Metric]:
        made = _gauge(
            "baton_model_created_timestamp_seconds", "When a version that answers now was made", "endpoint", "arm",
            "version",
        )  # fmt: skip
        lanes = _gauge(
            "baton_model_lanes", "Lanes that answer with a version, by whether it is the wanted one", "endpoint", "arm",
            "wanted",
        )  # fmt: skip
        faults = _gauge("baton_model_faults", "Lanes that cannot load a version", "bundle", "version")
        at_fault = Counter(key for lane in statuses.fresh().lanes.values() for key in lane.status.faults)
        for version, count in at_fault.items():
            faults.add_metric(version.rsplit("/", 1), count)
        yield faults
        counts: dict[tuple[str, str, str], int] = {}
        found: dict[tuple[str, str, str], str] = {}
        for lane in statuses.fresh().lanes.values():
            for endpoint, arms in lane.status.endpoints.items():
                for arm, report in arms.items():
                    right = report.state == "READY" and report.version == report.wanted
                    for case in (True, False):
                        key = endpoint, arm, str(case).lower()
                        counts[key] = counts.get(key, 0) + (right is case)
                    if report.version:
                        found[endpoint, arm, report.version] = report.bundle
        for (endpoint, arm, version), bundle in found.items():
            if at := self._created_ms(bundle, version):
                made.add_metric([endpoint, arm, version], at / 1000)
        for key, count in counts.items():
            lanes.add_metric(key, count)
        yield made
        yield lanes

    def _labels(self) -> Iterator[Metric]:
        stats = self._traffic
        if stats is None:
            return
        for name, text, count in (
            ("baton_log_predictions", "Predictions in the traffic log, since it was made", stats.predictions),
            ("baton_log_feedback", "Feedback taken into the traffic log, since it was made", stats.feedback),
        ):
            yield CounterMetricFamily(name, text, value=count)
        matured = CounterMetricFamily(
            "baton_log_matured_rows",
            "Labelled rows that the join has given out, since the log was made; unknown: before they were counted by endpoint",
            labels=["endpoint"],
        )
        joined = _gauge(
            "baton_join_endpoint_watermark_timestamp_seconds",
            "Time of the last prediction of an endpoint whose rows have matured", "endpoint",
        )  # fmt: skip
        known = {name: stats.endpoints.get(name, EndpointStats()) for name in self._endpoints}
        for name, of in known.items():
            matured.add_metric([name], of.labelled_rows)
            if of.watermark_ms:
                joined.add_metric([name], of.watermark_ms / 1000)
        matured.add_metric([UNKNOWN], stats.labelled_rows - sum(of.labelled_rows for of in known.values()))
        yield from (matured, joined)
        for name, text, value in (
            ("baton_label_last_timestamp_seconds", "When a label was last seen to come in", self._feedback_at[1] / 1000),
            ("baton_join_watermark_timestamp_seconds", "Time of the last prediction whose rows have matured",
             stats.watermark_ms / 1000),
            ("baton_join_open_predictions", "Predictions whose rows have not all matured", stats.open_predictions),
            ("baton_log_size_bytes", "What the traffic log takes", stats.bytes),
            ("baton_log_damaged_records", "Records of the traffic log whose bytes have changed; they are left out",
             stats.damaged),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, text, value=value)

    def _kills(self, statuses: Statuses) -> Iterator[Metric]:
        killed = _gauge("baton_endpoint_killed", "1 while an endpoint's kill switch is engaged", "endpoint")
        in_lanes = {name for lane in statuses.fresh().lanes.values() for name in lane.status.killed}
        for name, endpoint in self._endpoints.items():
            killed.add_metric([name], endpoint.killed or name in in_lanes)
        yield killed

    def _worker(self, worker: WorkerStatus) -> Iterator[Metric]:
        published = _gauge("baton_worker_last_publish_timestamp_seconds", "When it last published a version", "bundle")
        refused = CounterMetricFamily("baton_gate_refusals", "Versions that the gate refused", labels=["bundle"])
        row = _gauge("baton_gate_refused_in_a_row", "Versions refused since the last one that passed", "bundle")
        for bundle, version in worker.versions.items():
            if at := self._created_ms(bundle, version):
                published.add_metric([bundle], at / 1000)
            turned_down = [int(v) for v in worker.refused.get(bundle, ())]
            refused.add_metric([bundle], len(turned_down))
            row.add_metric([bundle], sum(v > int(version) for v in turned_down))
        yield from (published, refused, row)
        yield CounterMetricFamily("baton_worker_trained_rows", "Rows trained on", value=worker.trained_rows)
        yield CounterMetricFamily(
            "baton_worker_unguided_rows",
            "Rows learned from their labels alone, without a score of the teacher",
            value=worker.unguided_rows,
        )
        yield CounterMetricFamily(
            "baton_worker_featureless_rows",
            "Labelled rows without recorded features, which nothing is learned from",
            value=worker.featureless,
        )
        if worker.teacher:
            kind = _gauge(
                "baton_worker_teacher", "1 for the teacher, by what it does: learns, frozen, remote", "bundle", "kind"
            )
            kind.add_metric([worker.teacher.get("name", ""), worker.teacher.get("kind", "")], 1)
            yield kind
        last = self._traffic.last_seq if self._traffic else worker.position
        first = self._traffic.begun_seq if self._traffic else 0
        for name, text, value in (
            (
                "baton_worker_unread_entries",
                "Entries of the labelled log that it has not read",
                last - max(worker.position, first),
            ),
            ("baton_worker_loss", "Loss of the student over the last batch, nats per row", worker.loss),
            ("baton_worker_teacher_weight_ratio", "Weight of the teacher in the student's loss", worker.weight),
            ("baton_worker_replay_ratio", "Share of replayed rows in a batch", worker.replay_ratio),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=max(0.0, value))

    def _rollouts(self) -> Iterator[Metric]:
        weight = _gauge("baton_endpoint_candidate_weight_ratio", "Share of keys that the candidate answers", "endpoint")
        for name, endpoint in self._endpoints.items():
            weight.add_metric([name], 0.0 if endpoint.killed else endpoint.weight / 100)
        yield weight
        phase = _gauge("baton_rollout_phase", "1 for the phase of an endpoint's newest rollout", "endpoint", "phase")
        step = _gauge("baton_rollout_step", "Present step of the rollout file; 0 is the shadow step", "endpoint")
        steps = _gauge("baton_rollout_last_step", "The last step of the rollout file", "endpoint")
        back = _gauge("baton_rollout_steps_back", "Times that it has stepped back", "endpoint")
        missing = _gauge("baton_rollout_missing_clicks", "Clicks that the next step is estimated to need", "endpoint")
        alarm = _gauge(
            "baton_rollout_alarm",
            "1 for the guard that holds a rollout for an operator to look at",
            "endpoint",
            "guard",
        )
        overdue = _gauge(
            "baton_rollout_overdue",
            "1 for a rollout that has not moved for the time of its progress_deadline",
            "endpoint",
        )
        yield GaugeMetricFamily(
            "baton_frozen", "1 while a freeze lets nothing move in any rollout", value=float(self._frozen)
        )
        for endpoint_name, stored in self._newest.items():
            overdue.add_metric([endpoint_name], bool(stored.state.active and stored.status.get("overdue")))
            guard = stored.status.get("alarm", "") if stored.state.active or stored.state.phase == "completed" else ""
            if guard:
                alarm.add_metric([endpoint_name, guard], 1)
            for name in PHASES:
                phase.add_metric([endpoint_name, name], stored.state.phase == name)
            step.add_metric([endpoint_name], stored.state.step)
            steps.add_metric([endpoint_name], len(stored.spec.steps) - 1)
            back.add_metric([endpoint_name], stored.state.stepped_back)
            clicks = stored.status.get("missing_clicks")
            if stored.state.active and clicks is not None:
                missing.add_metric([endpoint_name], clicks)
        yield from (phase, step, steps, back, missing, alarm, overdue)

    def _evidence(self) -> Iterator[Metric]:
        by_arm = {
            "bias": _gauge("baton_bias_ratio", "Relative bias on the rows of the present stay", "endpoint", "arm"),
            "low": _gauge("baton_bias_low_ratio", "Lower limit of the bias", "endpoint", "arm"),
            "high": _gauge("baton_bias_high_ratio", "Upper limit of the bias", "endpoint", "arm"),
            "auc": _gauge("baton_auc_ratio", "AUC on the same rows", "endpoint", "arm"),
            "logloss": _gauge("baton_logloss_nats", "LogLoss on the same rows, nats per row", "endpoint", "arm"),
            "rows": _gauge("baton_stay_rows", "Rows that these figures are made of", "endpoint", "arm"),
            "clicks": _gauge("baton_stay_clicks", "Clicks on them", "endpoint", "arm"),
        }
        bound = _gauge("baton_bias_bound_ratio", "Bound of the bias at the present step, either way", "endpoint")
        coverage = _gauge("baton_shadow_coverage_ratio", "Share of exposed rows that both arms scored", "endpoint")
        ill = _gauge(
            "baton_rollout_not_finite_rows", "Exposed rows without evidence: a score is not finite", "endpoint"
        )
        left_out = _gauge(
            "baton_rollout_left_out_rows", "Exposed rows without evidence: their key has too many", "endpoint"
        )
        least = _gauge("baton_shadow_coverage_min_ratio", "Below this share the rollout holds", "endpoint")
        blocks = _gauge("baton_bias_blocks", "Blocks that the limits of the bias are made of", "endpoint", "arm")
        for endpoint, snapshot in self._figures.items():
            stored = self._newest[endpoint]
            stay = snapshot.phases[-1] if snapshot.phases else None
            arms: dict[str, ArmFigures] = {"stable": stay.stable, "candidate": stay.candidate} if stay else {}
            for arm, figures in arms.items():
                blocks.add_metric([endpoint, arm], figures.blocks)
                for name, family in by_arm.items():
                    if name in ("low", "high") and figures.blocks < MIN_BLOCKS:
                        continue  # an interval of so few proves nothing, and no alert may look at it
                    value = getattr(figures, name)
                    if value is not None:
                        family.add_metric([endpoint, arm], value)
            bound.add_metric([endpoint], stored.spec.steps[max(1, stored.state.step)].bound)
            ill.add_metric([endpoint], snapshot.not_finite)
            left_out.add_metric([endpoint], snapshot.left_out)
            if snapshot.coverage is not None:
                coverage.add_metric([endpoint], snapshot.coverage)
            if stored.spec.guards.shadow_coverage_min is not None:
                least.add_metric([endpoint], stored.spec.guards.shadow_coverage_min)
        yield from (*by_arm.values(), blocks, bound, coverage, ill, left_out, least)

    def _created_ms(self, bundle: str, version: str) -> int:
        """Time at which a version was made; 0 where it has none or is gone."""
        if (bundle, version) not in self._created:
            try:
                made_at = self._read_created(bundle, version)  # elsewhere, by a clock that may be ahead
                self._created[bundle, version] = min(made_at, self._clock.wall_ms())
            except (BatonError, OSError):
                self._created[bundle, version] = 0
            while len(self._created) > 256:  # versions come without end
                del self._created[next(iter(self._created))]
        return self._created[bundle, version]


def made_ms(bundle: Bundle) -> int:
    """Time at which a version was made, Unix milliseconds: of its manifest, else of its directory."""
    return bundle.manifest.created_ms or round(1000 * bundle.path.stat().st_mtime)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
