"""Primary lane: a process that answers clients. Several of them share one port.

It does not need the control process: it reads endpoints and models itself, and writes its status to
`<home>/run/status/lane-<i>.json` every second. It listens once it has loaded what it is to answer with. On SIGTERM its health
becomes NOT_SERVING; it takes no new connection, answers the requests that it has accepted, writes what is queued and exits
with 0. Its successor may run beside it: that one has a number of its own in the traffic log and in prediction ids, and
reports in `<home>/run/next/` until this one has ended.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import product

import grpc
import uvloop

from pipeline.clock import Clock, SystemClock
from pipeline.engine.engine import Engine
from pipeline.engine.meter import BUCKET_SIZES, REJECTIONS
from pipeline.errors import BatonError
from pipeline.stages.record import Record
from pipeline.traffic.clock import LogClock
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import unpack
from pipeline.traffic.sampling import TrafficSample
from pipeline.traffic.writer import DROP_REASONS, TrafficWriter, WriterLimits
from serving.config import Config, ListenConfig
from serving.lane.desired import DIRECT, publish_state_away
from serving.lane.dispatch import STAND_INS, Dispatcher, Recording
from serving.lane.engines import Engines
from serving.lane.loader import Sample
from serving.lane.remote_report import publish_remotes, remote_status
from serving.lane.served import Snapshot
from serving.lane.shadow_queue import HANDOFF_REASONS, ShadowSender
from serving.lane.stages import lane_plan
from serving.rollout.routing_key import RoutingHash
from serving.runtime import status
from serving.runtime.claims import SPARE, holder_of, role_lock
from serving.runtime.listeners import ask_to_leave, let_in_no_more
from serving.runtime.process import connections_within, die_with_parent
from serving.runtime.status import ArmReport, ArmTotals, EngineStatus, HandOffStatus, LaneArm, LaneStatus
from serving.security.authenticator import CALLER_REASONS, Authenticator
from serving.security.certificates import bind, open_certificates
from serving.services.access import Access
from serving.services.health import Health, is_ready
from serving.services.inference import InferenceService
from serving.services.label_intake import LabelIntake
from serving.services.ranking import RankingService
from serving.services.rpc import CONNECTION_OPTIONS, Shell, hard_limit
from serving.supervisor.pulse import own_heart
from serving.supervisor.restart import next_folder
from serving.telemetry import METRICS_DIR, Telemetry
from serving.telemetry.process import by_endpoint
from serving.telemetry.triton import TritonNames
from serving.tiers.hierarchy import embedding_status, publish_lookups, publish_tiers, publish_unknown_ids
from serving.tiers.unknown import RecentLookups
from serving.wire.observing import ObserveCodec
from serving.wiring.embedding import open_hierarchy
from serving.wiring.registry import open_registry, open_tracing
from serving.wiring.state import installation_secret
from serving.wiring.traffic import open_traffic_log

__all__ = ["Lane", "lane_role", "run_lane"]

FIRST_LOAD_S = 20.0
LOOK_EVERY_S = 0.2
BEAT_EVERY_S = 0.25
FIRST_SPARE_LANE = 1 << 15
"""First number of lanes that began beside another one of their name."""
STATUS_EVERY_S = 1.0
HEALTH_EVERY_S = 0.1
NOTICE_S = 0.3
DRAIN_S = 10.0
STALL_S = 5.0
STAGE_S = 1.0
"""Time that a stage may take in one go before it gives no sign of life any more."""
SWITCH_S = 5e-5
LOGGED_SAMPLES = 16
METADATA_BYTES = 16 << 10
ARMS = ("stable", "candidate")
CASES = ("missing_key", "candidate_not_ready", "candidate_away", "candidate_failed", "unsampled")
"""Cases of routing that the status counts."""

log = logging.getLogger(__name__)


class Lane:
    """Lane with all its parts. Use `start`, then `stop`, in one event loop.

    Args:
        config: of the installation.
        index: number of the lane, from 0.
        spare: whether it is one of those that may run beside another lane of this index, which is none of them.
    """

    def __init__(self, config: Config, index: int, clock: Clock | None = None, *, spare: bool = False) -> None:
        self._config = config
        self._number = index + FIRST_SPARE_LANE if spare else index
        self._clock: Clock = clock or SystemClock()
        self._name = f"lane-{index}"
        self._before = role_lock(config.home, lane_role(index, spare=not spare))
        self._follows = holder_of(self._before) is not None
        self.port = 0
        self._draining = False
        self._report_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the models of all endpoints, then listen.

        Raises:
            OSError: the port is taken by something that does not share it.
        """
        config = self._config
        secret = installation_secret(config)
        self._prediction_ids, self._routing_hash = PredictionIds(secret, self._number), RoutingHash(secret)
        self._authenticator = Authenticator(config, self._clock)
        self._certificates = open_certificates(config.listen)
        self.telemetry = Telemetry(self._name)
        self._tracing = open_tracing(config, self._name)
        self._log = open_traffic_log(config, self._number)
        clock = self._clock = self._log_clock = LogClock(self._log, self._clock).start()
        self._hierarchy = open_hierarchy(config, clock)
        self._lookups = RecentLookups(self._hierarchy.tally, clock)
        self.registry = open_registry(config, clock, self._hierarchy, samples=self._samples)
        self.writer = TrafficWriter(
            self._log, clock, WriterLimits(config.traffic.buffer, delay_s=config.traffic.commit_interval)
        )
        self.sender = ShadowSender(config.shadow_socket, config.engine.shadow_queue)
        sample = TrafficSample(config.traffic.sample.rate, config.traffic.sample.by)
        record = Record(
            clock,
            self.writer.offer,
            self._to_shadow,
            self._has_candidate,
            inclusion_probability=sample.probability,
            keep_text=config.traffic.keep_text,
        )
        plan, policy = lane_plan(record, config.stages), config.engine.policy()
        self.engine = Engine(plan, workers=config.engine.workers, policy=policy, clock=clock)
        self.engines = Engines(
            self.engine,
            lambda: Engine(plan, workers=config.remote.calls, policy=policy, clock=clock, inline_rows=0, name="remote"),
        )
        self.dispatcher = Dispatcher(
            self.registry,
            self.engines,
            clock,
            self.telemetry,
            Recording(
                self._prediction_ids,
                self._routing_hash,
                sample,
                config.traffic.record_direct,
            ),
            overrides=lambda name: name in config.endpoints and config.endpoints[name].overrides is not False,
            default_deadline_s=config.engine.default_deadline,
            priority_levels=config.engine.priority_levels,
        )
        self.labels = LabelIntake(clock, self.telemetry)
        self.registry.start()
        self._publish_counters()
        self._tasks = [
            asyncio.create_task(self._report(), name="lane-status"),
            asyncio.create_task(self._beat(), name="lane-pulse"),
        ]
        await asyncio.to_thread(self._first_load)
        await self._listen()
        self._report_now.set()
        self._tasks.append(asyncio.create_task(self._health()))

    def abandon(self) -> None:
        """Stop waiting for models, since the process is to end before its start is done."""
        self._draining = True

    async def stop(self, drain: float = DRAIN_S) -> None:
        """Set health to NOT_SERVING, answer accepted requests within `drain` seconds, flush, end all threads."""
        self._draining = True
        await self.health.drain()
        await asyncio.sleep(NOTICE_S)  # clients that watch the health leave by themselves
        await let_in_no_more(self.port)
        if self._certificates is None:
            await asyncio.to_thread(ask_to_leave, self.port)
            await asyncio.sleep(NOTICE_S)  # calls that were on their way
        await self._finish(drain)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._close)

    async def _finish(self, drain: float) -> None:
        """Refuse new calls; wait for those in progress, but not for idle streams."""
        stopping = asyncio.create_task(self._server.stop(drain))
        quiet = 0
        while not stopping.done():
            await asyncio.wait({stopping}, timeout=NOTICE_S)
            idle = not self.dispatcher.pending and not self.writer.counters().queued_feedback
            quiet = quiet + 1 if idle else 0
            if quiet == 2:
                await self._server.stop(0)
        await stopping

    def status(self) -> LaneStatus:
        """As of now, for the status file."""
        self.dispatcher.settle()
        now = self._clock.monotonic()
        snapshot, routed = self.registry.snapshot, self.dispatcher.counters
        return LaneStatus(
            process=self._name,
            pid=os.getpid(),
            time_ms=self._clock.wall_ms(),
            port=self.port,
            state="draining" if self._draining else "ready" if self.port and is_ready(snapshot) else "starting",
            endpoints={
                name: {arm: LaneArm.of(report, self._totals(name, arm, now)) for arm, report in arms.items()}
                for name, arms in self.registry.arms().items()
            },
            direct={name: self._totals(name, DIRECT, now) for name, arm in self.dispatcher.windows if arm == DIRECT},
            models=sorted("/".join(key) for key in snapshot.models),
            loading=self.registry.loading(),
            faults=self.registry.faults(),
            killed=sorted(name for name, endpoint in snapshot.endpoints.items() if endpoint.killed),
            blind=self.registry.blind(),
            state_away=self.registry.state_away(),
            counters={case: routed[case] for case in CASES},
            engine=self._engine_status(),
            embedding=embedding_status(self._hierarchy, self._lookups, snapshot),
            remotes=remote_status(snapshot),
            writer=self.writer.counters(),
            shadow=HandOffStatus(sent=self.sender.sent, waiting=self.sender.waiting, dropped=dict(self.sender.dropped)),
            labels=self.labels.status(),
        )

    def _engine_status(self) -> EngineStatus:
        stalled_s, stalled_stage = self.engines.stalled()
        stats = self.engines.stats()
        return EngineStatus(
            pending=self.dispatcher.pending,
            queue=stats.queue_depth,
            accepted=stats.accepted,
            answered=stats.answered,
            failed=stats.failed,
            rejected=stats.rejected,
            worked_seconds=sum(stage.sum for stage in stats.stages.values()),
            waited_seconds=stats.queue.sum,
            stalled_seconds=stalled_s,
            stalled_stage=stalled_stage,
        )

    def _totals(self, endpoint: str, arm: str, now: float) -> ArmTotals:
        window = self.dispatcher.windows[endpoint, arm]
        served = self.registry.snapshot.endpoints.get(endpoint)
        if served is not None:  # figures of a step are of its weight and of one version of either arm
            arms = served.endpoint.stable, served.endpoint.candidate
            window.recent.begin(now, (served.endpoint.weight, arms, served.versions))
        return ArmTotals(
            requests=window.requests,
            rows=window.rows,
            errors=window.errors,
            deadline_misses=window.deadline_misses,
            recent=window.recent.totals(now),
        )

    def _samples(self, names: Collection[str]) -> list[Sample]:
        """Requests to warm a model with: recently answered ones, after a start those of the traffic log."""
        found = [sample for name in names for sample in self.dispatcher.samples(name)]
        if not found:
            try:
                records = [unpack(blob) for name in names for blob in self._log.latest(name, LOGGED_SAMPLES)]
                # Those that were answered elsewhere may have no features.
                found = [(record.features, record.fields) for record in records if not record.features.absent]
            except BatonError as error:
                log.warning("the traffic log gives no requests to warm with: %s", error)
        return found

    def _to_shadow(self, record: bytes, traceparent: str) -> bool:
        return self.sender.offer(record, traceparent)

    def _has_candidate(self, endpoint: str) -> bool:
        served = self.registry.snapshot.endpoints.get(endpoint)
        return served is not None and served.endpoint.candidate is not None

    def _first_load(self) -> None:
        """Wait for the models, so that a restarted lane accepts no connection that it cannot serve.

        What no lane of this home can answer does not hold it up for long; what another one answers does.
        """
        self.registry.looked(FIRST_LOAD_S)
        if not self._config.endpoints and not self.registry.wanted() and self.registry.state_away() is None:
            return
        until = self._clock.monotonic() + FIRST_LOAD_S
        said: list[str] = []
        while not self._draining:
            loaded = self.registry.wait(self._loaded, LOOK_EVERY_S)
            late = self._clock.monotonic() >= until
            if not loaded and not late:
                continue
            lacks = self._lacks()
            if lacks:
                if late and lacks != said:
                    log.warning("not listening yet: other lanes answer with %s, and this one cannot", ", ".join(lacks))
                    said = lacks
                if loaded:
                    time.sleep(LOOK_EVERY_S)
                continue
            if not loaded:
                log.warning(
                    "not every endpoint is ready after %.0f s, waiting for %s; listening all the same",
                    FIRST_LOAD_S,
                    ", ".join(self.registry.loading()) or "versions that have failed",
                )
            return

    def _lacks(self) -> list[str]:
        """What other lanes of this home answer with now and this one cannot: arms of endpoints, and versions.

        A candidate that cannot be loaded here is stable's to answer for, unless the one before this lane still runs and has it.
        """
        own, loading, away = self.registry.arms(), set(self.registry.loading()), self.registry.state_away()
        lacks: set[str] = set()
        for other in status.read(self._config.status, self._clock.wall_ms()).fresh().lanes.values():
            if other.status.pid == os.getpid() or not other.status.port:
                continue
            for endpoint, arms in other.status.endpoints.items():
                if endpoint not in own and away is None:
                    continue  # it is gone
                mine = own.get(endpoint, {})
                lacks.update(
                    f"{endpoint}/{arm}"
                    for arm, theirs in arms.items()
                    if theirs.state == "READY" and self._misses(arm, mine)
                )
            lacks.update(loading & set(other.status.models))
        return sorted(lacks)

    def _misses(self, arm: str, mine: Mapping[str, ArmReport]) -> bool:
        """Whether an arm that others have cannot answer here, of an endpoint with these arms."""
        if arm not in mine:
            return self.registry.state_away() is not None  # else the endpoint has it no more
        if mine[arm].state == "UNAVAILABLE" and arm == "candidate":
            return self._follows
        return mine[arm].state != "READY"

    def _loaded(self, snapshot: Snapshot) -> bool:
        return is_ready(snapshot) and self.registry.settled()

    async def _listen(self) -> None:
        listen = self._config.listen
        limit = hard_limit(listen.max_message_bytes)
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_concurrent_streams", listen.limits.streams),
                *CONNECTION_OPTIONS,
                ("grpc.max_allowed_incoming_connections", connections_within(listen.limits.lane_connections)),
                ("grpc.max_metadata_size", METADATA_BYTES),
                *_ages(listen),
            ]
        )
        self.health = Health()
        await self.health.attach(self._server)
        shell = Shell(
            listen.max_message_bytes,
            self._clock,
            self._tracing,
            message_seconds=self._config.engine.default_deadline,
        )
        access = Access(self._config, self._authenticator)
        inference = InferenceService(
            self.dispatcher, shell, access, ready=lambda: not self._draining and is_ready(self.registry.snapshot)
        )
        codec = ObserveCodec(
            self._prediction_ids,
            self._routing_hash,
            listen.max_candidates,
            keep_text=self._config.traffic.keep_text,
        )
        ranking = RankingService(self.dispatcher, self.writer, self.telemetry, shell, access, codec, self.labels)
        self._server.add_generic_rpc_handlers((inference.handler(), ranking.handler()))
        self.port = bind(self._server, listen.address(listen.grpc_port), self._certificates)
        await self._server.start()
        await self.health.update(self.registry.snapshot)
        log.info("%s listens on %s", self._name, listen.address(self.port))

    async def _report(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._write, self.status())
            except OSError as error:
                log.error("the status of %s cannot be written: %s", self._name, error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._report_now.wait(), STATUS_EVERY_S)
            self._report_now.clear()

    def _write(self, report: LaneStatus) -> None:
        endpoints = self.registry.snapshot.endpoints
        self.labels.expect(endpoints.keys())
        self.telemetry.expect(endpoints, self._authenticator.names(), STAND_INS)
        self.telemetry.pending(self.dispatcher.pending)
        self.telemetry.ready(
            {
                (name, arm): served.model.version
                for name, endpoint in endpoints.items()
                for arm in ARMS
                if (served := endpoint.arm(arm)) is not None
            }
        )
        self._publish_status(report)
        self.registry.keep_state()
        self._hierarchy.upkeep()
        if report.engine.stalled_seconds > STALL_S:
            log.error("stage %s has not ended for %.0f s", report.engine.stalled_stage, report.engine.stalled_seconds)

    def _publish_status(self, report: LaneStatus) -> None:
        """Write status and figures as those of the lane of this name, or, while the one before still runs, of the next one."""
        following = next_folder(self._config.home)
        if self._follows and holder_of(self._before) is not None:
            following.mkdir(parents=True, exist_ok=True)
            status.write(following, self._name, report)
            return
        if self._follows:
            (following / f"{self._name}.json").unlink(missing_ok=True)
            self._follows = False
        status.write(self._config.status, self._name, report)
        self.telemetry.write(self._config.home / METRICS_DIR)

    async def _beat(self) -> None:
        """Give signs of life: of this loop, and of the stages, unless one of them hangs."""
        loop, stages = own_heart("requests"), own_heart("stages")
        while True:
            loop.beat()
            if self.engines.stalled()[0] < STAGE_S:
                stages.beat()
            await asyncio.sleep(BEAT_EVERY_S)

    async def _health(self) -> None:
        seen = None
        while True:
            snapshot = self.registry.snapshot
            if snapshot is not seen:
                await self.health.update(snapshot)
                seen = snapshot
            await asyncio.sleep(HEALTH_EVERY_S)

    def _publish_counters(self) -> None:
        def rows() -> tuple[Sequence[int], float]:
            histogram = self.engines.stats().batch_rows
            return histogram.buckets, histogram.sum

        def requests() -> tuple[Sequence[int], float]:
            histogram = self.engines.stats().batch_events
            return histogram.buckets, histogram.sum

        publish_lookups(self.telemetry, self._hierarchy)
        publish_tiers(self.telemetry, lambda: self.registry.snapshot)
        publish_remotes(self.telemetry, lambda: self.registry.snapshot)
        publish_unknown_ids(self.telemetry, self._lookups, lambda: self.registry.snapshot)
        self.telemetry.sizes("baton_batch_rows", "Rows of the batches that went to work", BUCKET_SIZES, rows)
        self.telemetry.sizes("baton_batch_requests", "Requests of the same batches", BUCKET_SIZES, requests)
        self.telemetry.gauges(
            "baton_blind", "Whether kill files cannot be looked at, so that candidates get nothing", (),
            lambda: {(): float(bool(self.registry.blind()))},
        )  # fmt: skip
        self.telemetry.gauges(
            "baton_log_unwritable", "1 while predictions cannot be written to the traffic log", (),
            lambda: {(): float(bool(self.writer.counters().away))},
        )  # fmt: skip
        publish_state_away(self.telemetry, self.registry.state_away, self._clock)
        self.telemetry.tallies(
            "baton_shadow_handoff_dropped", "Predictions not handed to the shadow lane, by reason", ("endpoint", "reason"),
            lambda: by_endpoint(self.registry.snapshot.endpoints, HANDOFF_REASONS, self.sender.dropped_of),
        )  # fmt: skip
        self.telemetry.tallies(
            "baton_traffic_dropped", "Predictions not written to the traffic log, by reason", ("endpoint", "reason"),
            lambda: by_endpoint(self.registry.snapshot.endpoints, DROP_REASONS, self.writer.dropped()),
        )  # fmt: skip
        self.telemetry.tally(
            "baton_traffic_committed", "Entries written to the traffic log, by kind", "kind",
            lambda: {
                "prediction": self.writer.counters().committed,
                "feedback": self.writer.counters().feedback,
                "observed": self.writer.counters().observed,
            },
        )  # fmt: skip
        self.telemetry.tally(
            "baton_engine_rejected", "Events that left the engine without an answer, by reason", "reason",
            lambda: self.engines.stats().rejected, REJECTIONS,
        )  # fmt: skip
        self.telemetry.tallies(
            "baton_arm_failures", "Requests that an arm did not answer, by our fault or too late",
            ("endpoint", "arm", "kind"),
            self._arm_failures,
        )  # fmt: skip
        if self._config.telemetry.triton_names:
            self.telemetry.include(TritonNames(self._name, lambda: self.dispatcher.tallies))
        self.telemetry.tally(
            "baton_callers_refused", "Calls refused for who called, or how often, by reason", "reason",
            lambda: self._authenticator.counters, CALLER_REASONS,
        )  # fmt: skip
        self.telemetry.tally(
            "baton_routing", "Requests without a routing key, whose candidate was not ready, or not recorded", "case",
            lambda: self.dispatcher.counters, CASES,
        )  # fmt: skip

    def _arm_failures(self) -> dict[tuple[str, ...], int]:
        endpoints = self.registry.snapshot.endpoints
        found: dict[tuple[str, ...], int] = dict.fromkeys(product(endpoints, ARMS, ("error", "deadline")), 0)
        for key, window in list(self.dispatcher.windows.items()):
            found |= {(*key, "error"): window.errors, (*key, "deadline"): window.deadline_misses}
        return found

    def _close(self) -> None:
        self.engines.close(5.0)
        self.writer.close()
        self.sender.close()
        if self._tracing is not None:
            self._tracing.close()
        self._write(self.status())
        self.registry.stop()
        self._hierarchy.close()
        self._log_clock.close()
        self._log.close()


def _ages(listen: ListenConfig) -> list[tuple[str, int]]:
    """gRPC options that limit the age of connections; none where no limit is configured."""
    if not listen.max_connection_age:
        return []
    return [
        ("grpc.max_connection_age_ms", int(1000 * listen.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", int(1000 * listen.max_connection_age_grace)),
    ]


def lane_role(index: int, *, spare: bool) -> str:
    """Role of a lane on its home: only one process has it at a time."""
    return f"lane-{index}{SPARE if spare else ''}"


def run_lane(config: Config, index: int, *, spare: bool = False) -> None:
    """Run lane number `index` until SIGTERM or SIGINT. `spare`: see `Lane`."""
    die_with_parent()
    # A worker releases the GIL for every kernel and network. By default it then waits up to 5 ms for it whenever the loop
    # is busy. Under overload the loop always is: lookups took ten times as long and most of the throughput was lost.
    sys.setswitchinterval(SWITCH_S)
    uvloop.run(_run(config, index, spare))


async def _run(config: Config, index: int, spare: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lane = Lane(config, index, spare=spare)
    starting = asyncio.create_task(lane.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        lane.abandon()
    await starting
    # Objects that live until the end are kept out of garbage collection, which would delay requests.
    gc.collect()
    gc.freeze()
    await stopping
    await lane.stop()
