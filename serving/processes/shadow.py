"""Shadow lane: scores each prediction by the arm that did not answer it, in a process of low priority.

Predictions that the lanes hand over are scored at once. Those that were dropped or missed, for example while this process
was not running, are read from the traffic log and scored when it is idle. It answers no client and delays none. Overridden
predictions and those of models called by name are not scored.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.clock import Clock
from pipeline.disk import replacing
from pipeline.errors import BatonError, InvalidInput, NotFinite, RemoteTimeout, RemoteUnavailable
from pipeline.features import Features
from pipeline.inputs import LACKS_ROWS
from pipeline.reading import read_record
from pipeline.traffic.clock import LogClock
from pipeline.traffic.log import Scores, Unscored
from pipeline.traffic.record import PredictionRecord, unpack
from serving.config import Config
from serving.lane.desired import publish_state_away
from serving.lane.registry import Registry
from serving.lane.remote_report import publish_remotes, remote_status
from serving.lane.score_ratio import ScoreRatio
from serving.lane.served import Served, Snapshot
from serving.lane.shadow_queue import ShadowReceiver
from serving.runtime import status
from serving.runtime.process import die_with_parent, step_back
from serving.runtime.status import ShadowStatus
from serving.supervisor.pulse import own_heart
from serving.telemetry import METRICS_DIR, Telemetry
from serving.telemetry.process import by_endpoint
from serving.telemetry.tracing import Tracing, trace_id_of
from serving.tiers.hierarchy import publish_lookups
from serving.wiring.embedding import open_hierarchy
from serving.wiring.registry import open_registry, open_tracing

__all__ = ["CatchUp", "ShadowLane", "run_shadow"]

BATCH_PREDICTIONS = 64
RUN_ROWS = 512
"""Candidates of one run of a network: the cost of a row falls up to this number."""
IDLE_S = 0.1
STATUS_EVERY_S = 1.0
DROP_REASONS = ("queue_full", "invalid", "not_ready", "remote_away", "store")
ROUND_LIMIT_S = 120.0
"""Time that one round may take: this process has only the processor time that nobody else wants."""

log = logging.getLogger(__name__)


class ScoreLog(Protocol):
    """The part of the traffic log that the shadow lane uses."""

    def append_scores(self, scores: Sequence[tuple[str, Scores]]) -> None: ...

    def unscored(
        self, after: str, before_ms: int, limit: int = 256, endpoints: Collection[str] | None = None
    ) -> Unscored: ...


class ScoreOutcome(Enum):
    """Result for a prediction: it was scored, needs no score, or its arm cannot score yet."""

    SCORED = "scored"
    SKIPPED = "skipped"
    WAITING = "waiting"


class _Verdict(NamedTuple):
    """Result for a prediction, with the reason or the scores. `degraded`: default rows stand in for some of a tier."""

    outcome: ScoreOutcome
    reason: str
    scores: Scores | None = None
    degraded: bool = False


REMOTE_AWAY = _Verdict(ScoreOutcome.WAITING, "remote_away")
"""The other arm's server does not answer; the log has the prediction until it does."""
FAILED = _Verdict(ScoreOutcome.SKIPPED, "failed")
NOT_FINITE = _Verdict(ScoreOutcome.SKIPPED, "not_finite")


class CatchUp:
    """Reader of the traffic log's unscored predictions, which skips none and resumes after a restart.

    The place that is kept passes what was scored or needs no score, and what is of an endpoint without a candidate; it
    stays before the first prediction whose arm cannot score yet.

    Args:
        path: file of the place, which survives a restart.
        endpoints: names of those that have a candidate now.
        grace_ms: age from which a prediction counts as missed rather than on its way.
    """

    def __init__(
        self,
        source: ScoreLog,
        clock: Clock,
        path: Path,
        endpoints: Callable[[], Collection[str]],
        *,
        grace_ms: int = 3000,
    ) -> None:
        self._log = source
        self._clock = clock
        self._path = path
        self._endpoints = endpoints
        self._grace_ms = grace_ms
        try:
            self._kept = path.read_text()
        except FileNotFoundError:
            self._kept = ""
        self._written = self._kept
        self._at = self._kept
        self._blocked = False

    def step(
        self, score: Callable[[list[PredictionRecord]], list[ScoreOutcome]], limit: int = BATCH_PREDICTIONS
    ) -> bool:
        """Score the next few; False at the end of a pass."""
        seen = self._log.unscored(self._at, self._clock.wall_ms() - self._grace_ms, limit, self._endpoints())
        if seen.place == self._at:
            self._at = self._kept
            self._blocked = False
            return False
        records: list[PredictionRecord] = []
        places: list[str] = []
        for place, blob in seen.found:
            try:
                records.append(unpack(blob))
                places.append(place)
            except InvalidInput as error:
                log.error("a prediction in the traffic log cannot be read and is left unscored: %s", error)
        before = self._at
        for place, outcome in zip(places, score(records), strict=True):
            if not self._blocked and outcome is ScoreOutcome.WAITING:
                self._blocked = True
                self._kept = before
            before = place
        if not self._blocked:
            self._kept = seen.place
        self._at = seen.place
        return True

    def save(self) -> None:
        """Write the place at which a restart resumes."""
        if self._kept != self._written:
            with replacing(self._path) as staging:
                staging.write_text(self._kept)
            self._written = self._kept


class ShadowLane:
    """Scoring of the shadow lane, apart from the signals and files of its process.

    Attributes:
        scored_of: predictions scored, by endpoint and way: as they came in (`live`) or later from the log (`late`).
        dropped_of: predictions that came in and could not be scored then, by endpoint and reason; the log has them still.
        skipped: those that need no other score, by reason.
    """

    def __init__(
        self, registry: Registry, receiver: ShadowReceiver, source: ScoreLog, catch_up: CatchUp,
        clock: Clock, telemetry: Telemetry, tracing: Tracing | None = None,
    ) -> None:  # fmt: skip
        self._registry = registry
        self._receiver = receiver
        self._log = source
        self._catch_up = catch_up
        self._clock = clock
        self._telemetry = telemetry
        self._tracing = tracing
        self.scored_of: Counter[tuple[str, str]] = Counter()
        self.rows = 0
        self.dropped_of: Counter[tuple[str, str]] = Counter()
        self.skipped: Counter[str] = Counter()
        self.last_scored_ms = 0
        self.paired = ScoreRatio()
        self._next_pass = 0.0
        self._behind = False
        self._unwritten = 0

    def work(self) -> None:
        """One round: score the predictions that came in, or else some that were missed."""
        blobs = self._receiver.take(BATCH_PREDICTIONS, 0.0 if self._behind else IDLE_S)
        if blobs:
            self._live(blobs)
        elif self._clock.monotonic() >= self._next_pass:
            self._behind = False
            try:
                if self._registry.state_away() is None:  # else nobody knows which endpoints have a candidate
                    self._behind = self._catch_up.step(self._late)
            except BatonError as error:  # the log is locked or full: its rows wait there
                log.error("catching up failed and is tried again: %s", error)
            if not self._behind:
                self._next_pass = self._clock.monotonic() + 1.0

    def drain(self) -> None:
        """Score all queued predictions."""
        while blobs := self._receiver.take(BATCH_PREDICTIONS, 0.0):
            self._live(blobs)

    def status(self) -> ShadowStatus:
        """As of now, for the status file."""
        return ShadowStatus(
            process="shadow",
            pid=os.getpid(),
            time_ms=self._clock.wall_ms(),
            endpoints=self._registry.arms(),
            scored=self._scored("live"),
            caught_up=self._scored("late"),
            rows=self.rows,
            dropped=dict(self._dropped() + self._receiver.dropped),
            skipped=dict(self.skipped),
            received=self._receiver.received,
            queue=self._receiver.waiting,
            lanes=self._receiver.lanes,
            last_scored_ms=self.last_scored_ms,
            paired=self.paired.sums(self._clock.monotonic()),
            remotes=remote_status(self._registry.snapshot),
            state_away=self._registry.state_away(),
        )

    def _live(self, blobs: list[tuple[bytes, str]]) -> None:
        records: list[tuple[PredictionRecord, str]] = []
        for blob, traceparent in blobs:
            try:
                records.append((unpack(blob), traceparent))
            except InvalidInput:
                self.dropped_of["", "invalid"] += 1
        done: list[tuple[str, Scores]] = []
        endpoints: list[str] = []
        snapshot = self._registry.snapshot
        for (record, _), verdict in zip(records, self._judge(records), strict=True):
            if verdict.scores is not None:
                done.append((record.prediction_id, verdict.scores))
                endpoints.append(record.endpoint)
                self._pair(record, verdict.scores, snapshot, verdict.degraded)
            elif verdict.outcome is ScoreOutcome.SKIPPED:
                self.skipped[verdict.reason] += 1
            else:
                self.dropped_of[record.endpoint, verdict.reason] += 1
        try:
            self._commit(done)
        except BatonError as error:
            if not self._unwritten:  # once: every batch fails while the disk is full, and the lines would fill another
                log.error("scores cannot be written; they are made again later: %s", error)
            self._unwritten += len(done)
            self.dropped_of.update((endpoint, "store") for endpoint in endpoints)
        else:
            if self._unwritten and done:
                log.info("scores are written again; %d were not", self._unwritten)
                self._unwritten = 0
            self.scored_of.update((endpoint, "live") for endpoint in endpoints)

    def _scored(self, way: str) -> int:
        return sum(count for (_, how), count in list(self.scored_of.items()) if how == way)

    def _dropped(self) -> Counter[str]:
        reasons: Counter[str] = Counter()
        for (_, reason), count in list(self.dropped_of.items()):
            reasons[reason] += count
        return reasons

    def _pair(self, record: PredictionRecord, other: Scores, snapshot: Snapshot, degraded: bool) -> None:
        """Add both arms' scores of a prediction, where they are of the versions that serve now: a lane may lag behind."""
        version = {record.arm: str(record.version), other.arm: str(other.version)}
        served = snapshot.endpoints.get(record.endpoint)
        if served is None:
            return
        arms = ((version[arm], served.arm(arm)) for arm in version)
        if any(one is not None and one.model.version != number for number, one in arms):
            return
        # A record stands for the answers like it that were not recorded.
        sums = {
            arm: float(scores.sum()) / record.inclusion_probability
            for arm, scores in ((record.arm, record.scores), (other.arm, other.scores))
        }
        rows = len(other.scores)
        self.paired.add(
            self._clock.monotonic(), record.endpoint, rows, sums["stable"], sums["candidate"],
            (version["stable"], version["candidate"]), rows / record.inclusion_probability,
            degraded=degraded,
        )  # fmt: skip

    def _late(self, records: list[PredictionRecord]) -> list[ScoreOutcome]:
        verdicts = self._judge([(record, "") for record in records])
        done = [
            (record.prediction_id, verdict.scores)
            for record, verdict in zip(records, verdicts, strict=True)
            if verdict.scores is not None
        ]
        self._commit(done)
        scored = {prediction_id for prediction_id, _ in done}
        self.scored_of.update((r.endpoint, "late") for r in records if r.prediction_id in scored)
        return [verdict.outcome for verdict in verdicts]

    def _commit(self, done: list[tuple[str, Scores]]) -> None:
        if done:
            self._log.append_scores(done)
            self.rows += sum(len(scores.scores) for _, scores in done)
            self.last_scored_ms = self._clock.wall_ms()

    def _judge(self, records: Sequence[tuple[PredictionRecord, str]]) -> list[_Verdict]:
        """Score predictions, each with its traceparent; those for one model share runs of its network."""
        verdicts: list[_Verdict] = []
        batches: dict[Served, dict[int, Features]] = {}
        snapshot = self._registry.snapshot
        for place, (record, _) in enumerate(records):
            other, verdict = self._other(record, snapshot)
            verdicts.append(verdict)
            if other is None:
                continue
            try:
                features = _as_read(record, other, snapshot)
            except InvalidInput:
                verdicts[-1] = _Verdict(ScoreOutcome.SKIPPED, "other_schema")
                continue
            batch = batches.setdefault(other, {})
            if batch and sum(waiting.n for waiting in batch.values()) + features.n > RUN_ROWS:
                self._run(other, records, batch, verdicts)
                batch.clear()
            batch[place] = features
        for other, batch in batches.items():
            self._run(other, records, batch, verdicts)
        return verdicts

    def _other(self, record: PredictionRecord, snapshot: Snapshot) -> tuple[Served | None, _Verdict]:
        """The model that scores a prediction; or None, with the reason."""
        if record.overridden or record.arm not in ("stable", "candidate"):
            return None, _Verdict(ScoreOutcome.SKIPPED, "overridden" if record.overridden else "direct")
        if record.features.absent:
            return None, _Verdict(ScoreOutcome.SKIPPED, "no_features")
        served = snapshot.endpoints.get(record.endpoint)
        if served is None or served.endpoint.candidate is None:
            return None, _Verdict(ScoreOutcome.SKIPPED, "no_candidate")
        wanted = "candidate" if record.arm == "stable" else "stable"
        if served.observed(wanted):
            return None, _Verdict(ScoreOutcome.SKIPPED, "observed")  # its scores are told
        other = served.arm(wanted)
        if other is None:
            return None, _Verdict(ScoreOutcome.WAITING, "not_ready")
        return other, FAILED

    def _run(
        self,
        other: Served,
        records: Sequence[tuple[PredictionRecord, str]],
        batch: Mapping[int, Features],
        verdicts: list[_Verdict],
    ) -> None:
        """Score records by one model, which reads the features of `batch` by their places, and write their verdicts."""
        model = other.model
        started = self._clock.monotonic()
        windows = model.embed_batch(list(batch.values()))
        fine = [(place, w) for place, w in zip(batch, windows, strict=True) if not isinstance(w, Exception)]
        for place, window in zip(batch, windows, strict=True):
            if isinstance(window, Exception):
                name = records[place][0].prediction_id
                log.error("scoring prediction %s by %s %s failed", name, model.name, model.version, exc_info=window)
        try:
            found = model.infer_batch([window for _, window in fine])
        except Exception:
            log.exception("scoring %d predictions by %s %s failed", len(fine), model.name, model.version)
            return
        seconds = (self._clock.monotonic() - started) / len(batch)
        for (place, window), scores in zip(fine, found, strict=True):
            record, traceparent = records[place]
            if isinstance(scores, NotFinite):
                verdicts[place] = NOT_FINITE
                continue
            if isinstance(scores, Exception):
                away = isinstance(scores, RemoteUnavailable | RemoteTimeout)
                verdicts[place] = REMOTE_AWAY if away else FAILED
                if not away:
                    log.error(
                        "scoring prediction %s by %s %s failed: %s",
                        record.prediction_id,
                        model.name,
                        model.version,
                        scores,
                    )
                continue
            arm = "candidate" if record.arm == "stable" else "stable"
            self._telemetry.shadowed(record.endpoint, arm, model.version, seconds, trace_id_of(traceparent))
            if self._tracing is not None and traceparent:
                self._tracing.shadowed(traceparent, record.prediction_id, arm, model.name, model.version, seconds)
            own = Scores(arm, model.name, int(model.version), scores)
            degraded = any(reason.startswith(LACKS_ROWS) for reason in window.degraded)
            verdicts[place] = _Verdict(ScoreOutcome.SCORED, "", own, degraded)


def _as_read(record: PredictionRecord, other: Served, snapshot: Snapshot) -> Features:
    """The features of a record as requests to `other` have them. Raises: InvalidInput: they do not fit."""
    arms = snapshot.endpoints[record.endpoint]
    known = {served.model.name: served.model.schema for served in (arms.stable, arms.candidate) if served is not None}
    return read_record(record, other.model.inputs, known)


def run_shadow(config: Config) -> None:
    """Run the shadow lane until SIGTERM or SIGINT."""
    from serving.wiring.traffic import SHADOW_LANE, open_traffic_log

    die_with_parent()
    step_back(config.engine.shadow_nice)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    source = open_traffic_log(config, SHADOW_LANE)
    clock = LogClock(source).start()
    hierarchy = open_hierarchy(config, clock)
    registry = open_registry(config, clock, hierarchy, nice=None)
    registry.start()
    receiver = ShadowReceiver(config.shadow_socket, config.engine.shadow_queue)
    telemetry = Telemetry("shadow")

    def compared() -> set[str]:
        served = registry.snapshot.endpoints
        return {
            name
            for name, endpoint in served.items()
            if endpoint.endpoint.candidate is not None
            and not (endpoint.observed("stable") and endpoint.observed("candidate"))
        }

    catch_up = CatchUp(source, clock, config.home / "run" / "shadow.place", compared)
    tracing = open_tracing(config, "shadow")
    lane = ShadowLane(registry, receiver, source, catch_up, clock, telemetry, tracing)
    publish_lookups(telemetry, hierarchy)
    publish_remotes(telemetry, lambda: registry.snapshot)
    publish_state_away(telemetry, registry.state_away, clock)
    telemetry.tallies(
        "baton_shadow_dropped",
        "Predictions not scored as they came, by reason",
        ("endpoint", "reason"),
        lambda: by_endpoint(compared(), DROP_REASONS, lane.dropped_of + receiver.dropped_of),
    )
    telemetry.tallies(
        "baton_shadow_scored",
        "Predictions scored, by way",
        ("endpoint", "way"),
        lambda: by_endpoint(compared(), ("live", "late"), lane.scored_of),
    )

    def report() -> None:
        try:
            status.write(config.status, "shadow", lane.status())
            telemetry.write(config.home / METRICS_DIR)
            catch_up.save()
        except OSError as error:  # scoring goes on; after a restart it begins at the last place that was saved
            log.error("the state of the shadow lane cannot be written: %s", error)

    registry.looked(10.0)
    report()
    log.info("shadow lane listens on %s", config.shadow_socket)
    reported = clock.monotonic()
    heart = own_heart("scoring", ROUND_LIMIT_S)
    while not stop.is_set():
        heart.beat()
        lane.work()
        if clock.monotonic() - reported >= STATUS_EVERY_S:
            reported = clock.monotonic()
            report()
    receiver.close()
    lane.drain()
    report()
    if tracing is not None:
        tracing.close()
    registry.stop()
    hierarchy.close()
    clock.close()
    source.close()
