from __future__ import annotations

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
from pipeline.traffic.log import FeedbackEntry
from pipeline.traffic.record import PredictionRecord, pack, unpack
from serving.client import RankingClient
from serving.lane.shadow_queue import ShadowReceiver, ShadowSender
from serving.processes.shadow import CatchUp, ScoreOutcome
from serving.rollout.routing import ArmSpec, Endpoint
from serving.wiring.traffic import open_traffic_log


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
        left = [unpack(blob).prediction_id for _, blob in log.unscored("", 1 << 60)]
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
        assert log.unscored("", 1 << 60)
        with shadow_process(installation) as shadow:
            eventually(lambda: not log.unscored("", 1 << 60), "what was missed is scored from the log", 30)
            assert shadow.end(signal.SIGTERM) == 0
        assert status(installation, "shadow")["caught_up"] >= 5
    log.close()


def test_catching_up_passes_only_what_is_settled(installation: Installation, tmp_path: Path) -> None:
    now = 1_000_000

    class Clock:
        def wall_ms(self) -> int:
            return now

        def monotonic(self) -> float:
            return now / 1000

    class Log:
        def __init__(self) -> None:
            self.rows: dict[int, tuple[int, bytes]] = {}
            self.scored: set[int] = set()

        def unscored(self, after: str, before_ms: int, limit: int = 256) -> list[tuple[str, bytes]]:
            found = [
                (str(seq), blob)
                for seq, (time_ms, blob) in sorted(self.rows.items())
                if seq > int(after or 0) and time_ms < before_ms and seq not in self.scored
            ]
            return found[:limit]

        def append_scores(self, scores: object) -> None: ...

    def blob(seq: int, time_ms: int) -> bytes:
        scores = np.zeros(5, np.float32)
        return pack(
            PredictionRecord(str(seq), time_ms, "ranker", "stable", "teacher", 1, features_of(installation, 1), scores)
        )

    log = Log()
    for seq, age in ((1, 600_000), (2, 500_000), (3, 10), (4, 400_000), (5, 20_000)):
        log.rows[seq] = now - age, blob(seq, now - age)
    waiting = {2}

    def score(records: list[PredictionRecord]) -> list[ScoreOutcome]:
        result = []
        for record in records:
            seq = int(record.prediction_id)
            result.append(ScoreOutcome.WAITING if seq in waiting else ScoreOutcome.SCORED)
            if seq not in waiting:
                log.scored.add(seq)
        return result

    place = tmp_path / "place"
    reader = CatchUp(log, Clock(), place)
    assert reader.step(score, limit=2) == 2
    assert reader.step(score, limit=2) == 2
    assert reader.step(score, limit=2) == 0
    assert log.scored == {1, 4, 5}
    reader.save()
    assert place.read_text() == "1"
    waiting.clear()
    now += 200_000
    again = CatchUp(log, Clock(), place)
    while again.step(score):
        pass
    assert log.scored == {1, 2, 3, 4, 5}
    again.save()
    assert place.read_text() == "3"


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
