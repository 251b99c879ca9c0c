from __future__ import annotations

import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from foreign import NUMBERS, needs_price, row_by_row, write_foreign
from handmade import SCHEMA, Reference, random_rows
from installation import WHO, Installation, eventually, running, shadow_process, status

from pipeline.errors import NotFinite
from pipeline.features import Features, Rows
from pipeline.traffic.log import FeedbackEntry, Scores
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack, unpack
from serving.client import RankingClient
from serving.lane.shadow_queue import ShadowReceiver, ShadowSender
from serving.processes.shadow import CatchUp, ScoreOutcome
from serving.rollout.routing import ArmSpec, Endpoint
from serving.wiring.state import installation_secret
from serving.wiring.traffic import SHADOW_LANE, open_traffic_log


def features_of(made: Installation, seed: int) -> Features:
    return Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), 5, made.tables))


def test_the_arm_that_did_not_answer_is_scored(installation: Installation) -> None:
    installation.set(weight=50)
    log = open_traffic_log(installation.config)
    with shadow_process(installation), running(installation.config) as lane, RankingClient(lane.target) as client:
        eventually(lambda: status(installation, "shadow").get("lanes", 0) == 1, "the lane is connected")
        sent = {}
        for i in range(20):
            features = features_of(installation, i)
            sent[client.rank("ranker", SCHEMA, features, routing_key=f"u{i}").prediction_id] = features
        direct = client.rank("ranker", SCHEMA, features_of(installation, 99), arm="candidate")
        eventually(lambda: status(installation, "shadow").get("scored", 0) == 20, "all are scored")
        left = [unpack(blob).prediction_id for _, blob in log.unscored("", 1 << 60).found]
        assert left == [direct.prediction_id]
        told = status(installation, "shadow")
        assert told["skipped"] == {}  # what was overridden is not even handed over
        assert told["dropped"] == {}
        assert told["last_scored_ms"] > 0
        assert lane.lane.status().shadow.sent == 20

        references = {
            "candidate": Reference([installation.repository.open("student", "1")]),
            "stable": Reference([installation.repository.open("teacher", "1")]),
        }
        for prediction_id in sent:
            log.append_feedback([FeedbackEntry(prediction_id, exposed_all=True)], log.now_ms())
        log.join(log.now_ms() + 3 * log.window_ms)
        entries = log.labelled(0)
        others = {e.prediction_id: other for e in entries for other in e.other}
        assert others.keys() == sent.keys()
        assert {(o.arm, o.bundle) for o in others.values()} == {("candidate", "student"), ("stable", "teacher")}
        for prediction_id, other in others.items():
            expected = references[other.arm].score(sent[prediction_id].rows(SCHEMA))
            np.testing.assert_allclose(other.scores, expected, atol=1e-6)
            assert other.version == 1
    log.close()


def test_killing_the_shadow_lane_costs_time_and_nothing_else(installation: Installation) -> None:
    log = open_traffic_log(installation.config)
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        with shadow_process(installation) as shadow:
            eventually(lambda: status(installation, "shadow").get("lanes", 0) == 1, "the lane is connected")
            for i in range(5):
                client.rank("ranker", SCHEMA, features_of(installation, i))
            assert shadow.end(signal.SIGKILL) == -signal.SIGKILL
        for i in range(5, 10):
            assert client.rank("ranker", SCHEMA, features_of(installation, i)).arm == "stable"
        lane.lane.sender._queue.clear()  # what waits for the shadow lane is lost too
        eventually(lambda: lane.lane.writer.counters().committed == 10, "all predictions are committed")
        assert log.unscored("", 1 << 60).found
        with shadow_process(installation) as shadow:
            eventually(lambda: not log.unscored("", 1 << 60).found, "what was missed is scored from the log", 30)
            assert shadow.end(signal.SIGTERM) == 0
        assert status(installation, "shadow")["caught_up"] >= 5
    log.close()


def test_scores_that_a_full_disk_does_not_take_are_told_once_and_made_again(installation: Installation) -> None:
    log = open_traffic_log(installation.config)
    folder = installation.config.traffic_folder / "lanes" / str(SHADOW_LANE)
    with (
        running(installation.config) as lane,
        RankingClient(lane.target) as client,
        shadow_process(installation) as shadow,
    ):
        eventually(lambda: status(installation, "shadow").get("lanes", 0) == 1, "the lane is connected")
        client.rank("ranker", SCHEMA, features_of(installation, 0))
        eventually(lambda: status(installation, "shadow")["scored"] == 1, "the first one is scored")
        room = (folder / "index.db-wal").stat().st_size
        unlimited = resource.prlimit(shadow.process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

        def refused() -> bool:
            client.rank("ranker", SCHEMA, features_of(installation, 1))
            return bool(status(installation, "shadow")["dropped"].get("store", 0) >= 5)

        eventually(refused, "scores are not written")
        resource.prlimit(shadow.process.pid, resource.RLIMIT_FSIZE, unlimited)
        eventually(lambda: not log.unscored("", 1 << 60).found, "all are scored from the log", 30)
        assert shadow.errors.read_text().count("scores cannot be written") == 1
    log.close()


def test_catching_up_stays_before_what_cannot_be_scored_yet_and_passes_endpoints_without_a_candidate(
    installation: Installation, tmp_path: Path
) -> None:
    log = open_traffic_log(installation.config)
    compared = {"ranker"}

    class Clock:
        ahead_ms = 0

        def wall_ms(self) -> int:
            return log.now_ms() + self.ahead_ms

        def monotonic(self) -> float:
            return 0.0

    def record(endpoint: str, age_ms: int) -> str:
        scores = np.zeros(5, np.float32)
        time_ms = log.now_ms() - age_ms
        made = ids.new(time_ms)
        features = features_of(installation, 1)
        log.append_predictions(
            [pack(PredictionRecord(made, time_ms, endpoint, "stable", "teacher", 1, features, scores))]
        )
        return made

    ids = PredictionIds(installation_secret(installation.config))
    seen: list[str] = []
    first, waiting, idle = record("ranker", 600_000), record("ranker", 500_000), record("idle", 450_000)
    third, young = record("ranker", 400_000), record("ranker", 0)
    unready = {waiting}

    def score(records: list[PredictionRecord]) -> list[ScoreOutcome]:
        seen.extend(r.prediction_id for r in records)
        outcomes = [ScoreOutcome.WAITING if r.prediction_id in unready else ScoreOutcome.SCORED for r in records]
        done = [r for r, o in zip(records, outcomes, strict=True) if o is ScoreOutcome.SCORED]
        log.append_scores([(r.prediction_id, Scores("candidate", "student", 1, r.scores)) for r in done])
        return outcomes

    def one_pass(reader: CatchUp) -> list[str]:
        seen.clear()
        while reader.step(score, limit=1):
            pass
        reader.save()
        return list(seen)

    clock = Clock()
    place = tmp_path / "place"
    reader = CatchUp(log, clock, place, lambda: compared)
    assert one_pass(reader) == [first, waiting, third]
    kept = place.read_text()
    assert one_pass(reader) == [waiting]
    assert place.read_text() == kept
    unready.clear()
    again = CatchUp(log, clock, place, lambda: compared)
    assert one_pass(again) == [waiting]
    clock.ahead_ms = 3_000
    assert one_pass(again) == [young]
    compared.add("idle")  # what was made before the endpoint had a candidate is passed for good
    later = record("idle", 0)
    clock.ahead_ms = 6_000
    assert one_pass(CatchUp(log, clock, place, lambda: compared)) == [later]
    assert idle not in seen
    log.close()


def test_a_full_queue_drops_the_oldest_and_says_so(tmp_path: Path) -> None:
    sender = ShadowSender(tmp_path / "nobody.sock", 3)
    for i in range(5):
        assert sender.offer(bytes([i]))
    assert sender.dropped == {"no_shadow": 2}
    receiver = ShadowReceiver(tmp_path / "nobody.sock", 2)
    eventually(lambda: receiver.received == 3, "what waited arrives")
    assert receiver.dropped == {"queue_full": 1}
    assert receiver.take(10, 1) == [(b"\x03", ""), (b"\x04", "")]
    sender.close()
    receiver.close()


def test_a_socket_may_lie_deep(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*(["deep" * 10] * 4))
    receiver = ShadowReceiver(folder / "shadow.sock", 10)
    sender = ShadowSender(folder / "shadow.sock", 10)
    sender.offer(b"x" * 100_000, "00-trace-span-01")
    eventually(lambda: receiver.received == 1, "the record arrives")
    assert receiver.take(1, 1) == [(b"x" * 100_000, "00-trace-span-01")]
    sender.close()
    receiver.close()


def test_offering_never_waits_for_a_shadow_lane_that_hangs(tmp_path: Path) -> None:
    receiver = ShadowReceiver(tmp_path / "s.sock", 10)
    with receiver._changed:  # nobody can take or queue: the sender's socket fills
        sender = ShadowSender(tmp_path / "s.sock", 4)
        done = threading.Event()

        def offer() -> None:
            for _ in range(200):
                sender.offer(b"x" * 100_000, "00-trace-span-01")
            done.set()

        threading.Thread(target=offer, daemon=True).start()
        assert done.wait(10)
    assert sum(sender.dropped.values()) > 0
    sender.close()
    receiver.close()


def test_no_candidate_means_no_shadow(installation: Installation) -> None:
    installation.set(candidate=None, weight=0)
    with shadow_process(installation), running(installation.config) as lane, RankingClient(lane.target) as client:
        eventually(lambda: status(installation, "shadow").get("lanes", 0) == 1, "the lane is connected")
        client.rank("ranker", SCHEMA, features_of(installation, 1))
        eventually(lambda: lane.lane.writer.counters().committed == 1, "it is recorded")
        told = lane.lane.status().shadow
        assert (told.sent, told.waiting, told.dropped) == (0, 0, {})


def test_a_score_that_is_not_finite_is_an_error_and_never_evidence(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    for name, network in (("sound", row_by_row()), ("alien", needs_price())):
        write_foreign(made.config.repository / name / "1", network)
    spec = Endpoint(
        name="ranker", stable=ArmSpec(bundle="sound"), candidate=ArmSpec(bundle="alien"), weight=0, salt="ranker"
    )
    made.store.put_endpoint(spec, WHO)

    def features(price: float) -> Features:
        numbers = np.array([[20.0, price], [20.0, 2.0]], np.float32)
        return Features.from_context(NUMBERS, Rows(np.ones((2, 1), np.int64), numbers))

    log = open_traffic_log(made.config)
    with shadow_process(made), running(made.config) as lane, RankingClient(lane.target) as client:
        eventually(lambda: status(made, "shadow").get("lanes", 0) == 1, "the lane is connected")
        eventually(lambda: "alien/1" in lane.lane.status().models, "both arms are ready")
        eventually(lambda: status(made, "shadow")["endpoints"]["ranker"]["candidate"]["state"] == "READY", "here, too")
        for price in (1.0, np.nan):
            assert np.isfinite(client.rank("ranker", NUMBERS, features(price)).scores).all()
        eventually(lambda: status(made, "shadow").get("skipped") == {"not_finite": 1}, "it is counted")
        assert status(made, "shadow")["scored"] == 1
        paired = status(made, "shadow")["paired"]["ranker"]
        assert paired["rows"] == 2
        assert np.isfinite([paired["stable"], paired["candidate"]]).all()
        with pytest.raises(NotFinite, match="candidate 0, where 'price' is missing"):
            client.rank("ranker", NUMBERS, features(np.nan), arm="candidate")
        assert lane.lane.status().endpoints["ranker"]["candidate"].errors == 1
    log.close()
