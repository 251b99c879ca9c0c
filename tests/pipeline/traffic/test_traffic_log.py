"""Traffic log on every store: feedback, labelled rows, retention."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from traffic_places import Place
from traffic_samples import CANDIDATE, IDS, LATE_MS, WINDOW_MS, sample

from pipeline.errors import InvalidInput, NotReady
from pipeline.traffic.log import (
    ACCEPTED,
    DUPLICATE,
    EXPIRED,
    INVALID,
    Exposure,
    FeedbackEntry,
    FeedbackReply,
    Labelled,
    Outcome,
    Scores,
    TrafficLog,
)
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import unpack

START = 1_000_000


@pytest.fixture
def log(place: Place) -> Iterator[TrafficLog]:
    log = place.open(late_ms=LATE_MS)
    yield log
    log.close()


def predict(log: TrafficLog, time_ms: int = START, n: int = 4, routing_hash: int = 0) -> str:
    prediction_id = IDS.new(time_ms)
    log.append_predictions([sample(prediction_id, time_ms, n, routing_hash=routing_hash)])
    return prediction_id


def say(
    log: TrafficLog, prediction_id: str, *outcomes: Outcome, now_ms: int = START, shown: object = "all"
) -> FeedbackReply:
    exposed = [] if shown == "all" else list(shown)  # type: ignore[call-overload]
    (reply,) = log.append_feedback([FeedbackEntry(prediction_id, exposed, outcomes, shown == "all")], now_ms)
    return reply


def labels(entry: Labelled) -> dict[int, float]:
    return dict(zip(entry.indices.tolist(), entry.labels.tolist(), strict=True))


def test_only_exposed_rows_come_out_and_only_when_mature(log: TrafficLog) -> None:
    prediction_id = predict(log)
    say(
        log,
        prediction_id,
        Outcome(2, 1.0),
        Outcome(0, 1.0),
        shown=[Exposure(2, position=7), Exposure(3)],
        now_ms=START + 10,
    )
    assert log.join(START + 10 + WINDOW_MS - 1) == 0
    assert log.join(START + 10 + WINDOW_MS) == 1
    (entry,) = log.labelled(0)
    assert (entry.seq, entry.prediction_id, entry.revision, entry.time_ms) == (1, prediction_id, 0, START)
    assert labels(entry) == {2: 1.0, 3: 0.0}
    assert entry.positions.tolist() == [7, -1]
    assert np.isnan(entry.previous).all()
    assert entry.record == sample(prediction_id, START)
    assert log.labelled(entry.seq) == []


def test_a_final_label_does_not_wait_for_the_window(log: TrafficLog) -> None:
    prediction_id = predict(log)
    say(log, prediction_id, Outcome(1, 1.0, final=True), shown=[Exposure(1)])
    assert log.join(START) == 1
    assert labels(log.labelled(0)[0]) == {1: 1.0}


def test_a_late_label_makes_a_revision_of_the_rows_that_it_changes(log: TrafficLog) -> None:
    prediction_id = predict(log)
    say(log, prediction_id)
    log.join(START + WINDOW_MS)
    assert say(log, prediction_id, Outcome(1, 1.0), Outcome(2, 0.0), now_ms=START + 5000).outcomes == (ACCEPTED,) * 2
    assert log.join(START + 5000) == 1
    assert log.join(START + 5000) == 0
    _, revision = log.labelled(0)
    assert (revision.revision, labels(revision), revision.previous.tolist()) == (1, {1: 1.0}, [0.0])


def test_a_final_label_that_is_contradicted_is_revised(log: TrafficLog) -> None:
    prediction_id = predict(log)
    say(log, prediction_id, Outcome(0, 1.0, final=True), shown=[Exposure(0)])
    log.join(START)
    assert say(log, prediction_id, Outcome(0, 0.0), shown=[]).outcomes == (ACCEPTED,)
    log.join(START)
    assert [(e.revision, labels(e)) for e in log.labelled(0)] == [(0, {0: 1.0}), (1, {0: 0.0})]


def test_an_exposure_after_closing_waits_its_own_window_and_is_a_revision(log: TrafficLog) -> None:
    prediction_id = predict(log)
    assert log.join(START + WINDOW_MS) == 1, "it closes without rows"
    say(log, prediction_id, shown=[Exposure(3, position=1)], now_ms=START + WINDOW_MS + 5)
    assert log.join(START + 2 * WINDOW_MS) == 0
    assert log.join(START + 2 * WINDOW_MS + 5) == 1
    unshown, entry = log.labelled(0)
    assert (unshown.revision, labels(unshown)) == (0, {})
    assert (entry.revision, labels(entry)) == (1, {3: 0.0})
    assert np.isnan(entry.previous).all()


def test_an_open_prediction_holds_back_later_ones_for_two_windows_at_most(log: TrafficLog) -> None:
    first, second = predict(log), predict(log, START + 1)
    say(log, first, shown=[Exposure(0)], now_ms=START + WINDOW_MS - 1)
    say(log, second, Outcome(0, 1.0, final=True), shown=[Exposure(0)], now_ms=START + 1)
    assert log.join(START + WINDOW_MS + 100) == 0
    say(log, first, shown=[Exposure(1)], now_ms=START + WINDOW_MS + 500)
    assert log.join(START + 2 * WINDOW_MS) == 2
    assert [(e.prediction_id, labels(e)) for e in log.labelled(0)] == [(first, {0: 0.0}), (second, {0: 1.0})]
    assert log.join(START + 2 * WINDOW_MS + 500) == 1
    assert labels(log.labelled(2)[0]) == {1: 0.0}


def test_a_prediction_from_a_clock_far_ahead_does_not_stop_the_log(log: TrafficLog) -> None:
    predict(log, START + 10**9)
    next_one = predict(log)
    say(log, next_one)
    assert log.join(START + WINDOW_MS) == 0
    assert log.join(START + 3 * WINDOW_MS) == 2
    assert [entry.prediction_id for entry in log.labelled(0) if labels(entry)] == [next_one]
    assert log.stats(START).open_predictions == 0


def test_status_of_every_part(log: TrafficLog) -> None:
    prediction_id = predict(log)
    reply = say(
        log,
        prediction_id,
        Outcome(0, 1.0),
        Outcome(0, 1.0),
        Outcome(0, 1.0, final=True),
        Outcome(None, 1.0, CANDIDATE + 0),
        Outcome(0, float("nan")),
        Outcome(0, 1.5),
        Outcome(None, 0.0, CANDIDATE + 1),
        Outcome(None, 0.0, 1),
        Outcome(4, 0.0),
        Outcome(-1, 0.0),
        Outcome(None, 0.0),
        shown=[Exposure(0), Exposure(0, position=3), Exposure(None, CANDIDATE), Exposure(9), Exposure(1, position=-2)],
    )
    assert reply.exposed == (ACCEPTED, DUPLICATE, DUPLICATE, INVALID, INVALID)
    assert reply.outcomes == (ACCEPTED, DUPLICATE, ACCEPTED, DUPLICATE, INVALID, INVALID, ACCEPTED) + (INVALID,) * 4
    assert "index 9 is out of range" in reply.reason
    again = say(log, prediction_id, Outcome(1, 0.0), shown=[Exposure(0)])
    assert (again.exposed, again.outcomes) == ((DUPLICATE,), (DUPLICATE,))
    assert log.stats(START).feedback == 1


def test_ids_of_others_are_invalid_and_old_ones_expired(log: TrafficLog) -> None:
    foreign = PredictionIds(b"x" * 32).new(START)
    for bad in (foreign, "", "nonsense", "é" * 32):
        reply = say(log, bad, Outcome(0, 1.0), shown=[Exposure(0)])
        assert (reply.exposed, reply.outcomes) == ((INVALID,), (INVALID,))
        assert "prediction_id" in reply.reason
    prediction_id = predict(log)
    assert say(log, prediction_id, Outcome(0, 1.0), now_ms=START + LATE_MS).outcomes == (ACCEPTED,)
    assert say(log, prediction_id, Outcome(0, 0.0), now_ms=START + LATE_MS + 1).outcomes == (EXPIRED,)


def test_an_id_in_capitals_is_the_same_prediction(log: TrafficLog) -> None:
    prediction_id = predict(log)
    assert say(log, prediction_id.upper(), Outcome(0, 1.0)).outcomes == (ACCEPTED,)
    assert log.stats(START).parked == 0


def test_labels_before_their_prediction_are_parked_and_checked_when_it_comes(log: TrafficLog) -> None:
    prediction_id = IDS.new(START)
    outcomes = (Outcome(1, 1.0), Outcome(50, 1.0), Outcome(None, 1.0, CANDIDATE + 3), Outcome(None, 1.0, 1))
    assert say(log, prediction_id, *outcomes, now_ms=START + 5).outcomes == (ACCEPTED,) * 4
    assert say(log, prediction_id, outcomes[0], now_ms=START + 6).outcomes == (ACCEPTED,)  # an id came in between
    assert say(log, prediction_id, outcomes[0], now_ms=START + 6).outcomes == (DUPLICATE,)
    assert log.stats(START).parked == 2
    log.append_predictions([sample(prediction_id, START)])
    log.join(START + WINDOW_MS + 5)
    (entry,) = log.labelled(0)
    assert labels(entry) == {0: 0.0, 1: 1.0, 2: 0.0, 3: 1.0}
    stats = log.stats(START)
    assert (stats.parked, stats.parked_refused) == (0, 2)


def test_candidate_ids_where_the_prediction_has_none_are_invalid(log: TrafficLog) -> None:
    prediction_id = IDS.new(START)
    log.append_predictions([sample(prediction_id, START, candidate_ids=False)])
    reply = say(log, prediction_id, Outcome(None, 1.0, CANDIDATE))
    assert reply.outcomes == (INVALID,)
    assert "send the index" in reply.reason


def test_scores_of_the_other_arm(log: TrafficLog) -> None:
    early = IDS.new(START)
    scores = Scores("candidate", "student", 3, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    log.append_scores([(early, scores)])  # the shadow lane may be faster than the primary lane's writer
    log.append_predictions([sample(early, START)])
    late, never = predict(log), predict(log)
    assert [blob for _, blob in log.unscored("", START + 1).found] == [sample(late, START), sample(never, START)]
    log.append_scores([(late, scores)])
    log.append_scores([(late, scores)])
    ((place, left),) = log.unscored("", START + 1).found
    assert left == sample(never, START)
    assert log.unscored("", START).found == []
    assert log.unscored(place, START + 1).found == []
    for prediction_id in (early, late, never):
        say(log, prediction_id)
    log.join(START + WINDOW_MS)
    others = [e.other for e in log.labelled(0)]
    assert [len(o) for o in others] == [1, 1, 0]
    assert (others[0][0].arm, others[0][0].bundle, others[0][0].version) == ("candidate", "student", 3)
    np.testing.assert_array_equal(others[1][0].scores, scores.scores)


def test_a_batch_with_a_bad_record_is_refused_whole(log: TrafficLog) -> None:
    good = sample(IDS.new(START), START)
    with pytest.raises(InvalidInput, match="not a prediction record"):
        log.append_predictions([good, good[:-9]])
    assert log.stats(START).predictions == 0


def test_a_prediction_of_the_future_is_made_now_and_holds_nothing_back(log: TrafficLog) -> None:
    now = log.now_ms()
    ahead = [predict(log, now + 86_400_000) for _ in range(3)]
    after = predict(log, now)
    assert {unpack(blob).time_ms for _, blob in log.predictions("")} <= {*range(now, log.now_ms() + 1)}
    say(log, ahead[0], now_ms=now)
    say(log, after, Outcome(0, 1.0, final=True), now_ms=now)
    log.join(log.now_ms() + WINDOW_MS)
    entries = log.labelled(0)
    assert [entry.prediction_id for entry in entries] == [*ahead, after]
    assert all(entry.time_ms <= log.now_ms() for entry in entries)
    stats = log.stats(now)
    assert (stats.open_predictions, stats.oldest_open_ms) == (0, 0)
    assert stats.watermark_ms <= log.now_ms()


def test_where_the_clock_went_back_all_open_predictions_are_set_right_at_once(log: TrafficLog) -> None:
    before = log.now_ms() - 10_000
    for prediction_id in [predict(log, before) for _ in range(80)]:
        say(log, prediction_id, now_ms=before)
    now = before - 86_400_000
    assert log.join(now) == 0
    after = predict(log, now)
    say(log, after, Outcome(0, 1.0, final=True), now_ms=now)
    log.join(now + 2 * WINDOW_MS)
    (entry,) = log.labelled(0)
    assert (entry.prediction_id, log.stats(now).open_predictions) == (after, 0)
    assert log.stats(now).watermark_ms == now


def test_a_shortened_window_ends_the_wait_of_all_open_predictions_at_once(place: Place) -> None:
    log = place.open(window_ms=3_600_000, late_ms=LATE_MS)
    made = [predict(log, START + i) for i in range(80)]
    for prediction_id in made:
        say(log, prediction_id, now_ms=START + 80)
    log.close()
    log = place.open(late_ms=LATE_MS)
    assert log.window_ms == WINDOW_MS
    assert log.join(START + 80 + 2 * WINDOW_MS) == 80
    log.close()


def test_stats(log: TrafficLog) -> None:
    for i in range(3):
        say(log, predict(log, START + i), now_ms=START + 10 * i)
    log.join(START + WINDOW_MS + 10)
    stats = log.stats(START + 2000)
    assert (stats.predictions, stats.feedback, stats.labelled_entries, stats.labelled_rows) == (3, 3, 2, 8)
    assert (stats.open_predictions, stats.watermark_ms, stats.oldest_open_ms, stats.last_seq) == (1, START + 1, 1998, 2)
    assert stats.bytes > 0


def test_retention_waits_for_the_join_and_for_readers(log: TrafficLog) -> None:
    old = [predict(log, START + i) for i in range(3)]
    for i, prediction_id in enumerate(old):
        say(log, prediction_id, Outcome(0, 1.0, final=i < 2), shown=[Exposure(0)], now_ms=START + i)
    new = predict(log, START + 500)
    log.join(START + 2)
    log.commit_position("worker", 1)
    kept = log.retain(START + 100)
    assert (kept.predictions, kept.feedback, kept.labelled, kept.unread, kept.unjoined) == (1, 1, 1, 1, 1)
    assert kept.held_back
    assert [e.prediction_id for e in log.labelled(0)] == [old[1]]
    log.commit_position("worker", 2)
    log.commit_position("worker", 1)
    assert (log.position("worker"), log.position("nobody")) == (2, 0)
    log.join(START + 10_000)
    kept = log.retain(START + 100, protect_seq=3)
    assert (kept.predictions, kept.held_back) == (2, False)
    assert [e.seq for e in log.labelled(0)] == [4]
    assert [blob for _, blob in log.unscored("", START + 10_000).found] == [sample(new, START + 500)]
    say(log, new, shown=[Exposure(0)], now_ms=START + 10_000)
    log.join(START + 20_000)
    assert [e.seq for e in log.labelled(3)] == [4, 5], "a seq is never used again"


def test_retention_drops_what_waited_too_long_for_its_prediction(log: TrafficLog) -> None:
    say(log, IDS.new(START), Outcome(0, 1.0))
    say(log, IDS.new(START + 5000), Outcome(0, 1.0))
    assert log.retain(START + 5000).parked == 1
    stats = log.stats(START)
    assert (stats.parked, stats.parked_expired) == (1, 1)


def test_retention_goes_through_many(log: TrafficLog) -> None:
    records = [sample(IDS.new(START + i), START + i) for i in range(700)]
    log.append_predictions(records)
    log.join(START + 10_000)
    assert log.retain(START + 600).predictions == 600
    assert [blob for _, blob in log.unscored("", START + 10_000, limit=1).found] == records[600:601]


def test_retention_by_size_drops_the_oldest_that_were_read(log: TrafficLog) -> None:
    made = [predict(log, START + i, n=2000) for i in range(600)]
    for i, prediction_id in enumerate(made[:550]):
        say(log, prediction_id, Outcome(0, 1.0, final=True), shown=[Exposure(0)], now_ms=START + i)
    log.join(START + 600)
    full = log.retain(0, max_bytes=1 << 40)
    assert (full.predictions, full.over_bytes) == (0, 0)
    limit = log.stats(START).bytes - (8 << 20)
    done = log.retain(0, protect_seq=550, max_bytes=limit)
    assert 100 < done.predictions < 550
    assert not done.held_back
    assert [e.prediction_id for e in log.labelled(0, 1)] == [made[done.predictions]]
    held = log.retain(0, protect_seq=done.predictions, max_bytes=limit - (4 << 20))
    assert held.predictions == 0
    assert held.over_bytes > 0
    assert held.held_back


def test_what_is_held_stays_however_old_or_large(log: TrafficLog) -> None:
    held = {(1 << 64) - 5, 8}
    made = [predict(log, START + i, n=2000, routing_hash=(7, (1 << 64) - 5, 0)[i % 3]) for i in range(600)]
    for i, prediction_id in enumerate(made):
        say(log, prediction_id, Outcome(0, 1.0, final=True), shown=[Exposure(0)], now_ms=START + i)
    log.join(START + 10_000)
    done = log.retain(START + 300, keep=held)
    assert (done.predictions, done.kept, done.held_back) == (200, 100, False)
    assert set(log.records(made[:300])) == set(made[1:300:3])
    over = log.retain(0, max_bytes=1, keep=held)
    assert (over.predictions, over.held_back) == (200, True)  # all others go, and it is said that it is still too large
    assert [e.prediction_id for e in log.labelled(0, 1000)] == made[1::3]
    assert log.retain(START + 10_000).predictions == 200


def test_a_user_is_forgotten(log: TrafficLog) -> None:
    theirs, open_one = (predict(log, START + i, routing_hash=(1 << 64) - 5) for i in range(2))
    other = predict(log, routing_hash=9)
    for prediction_id in (theirs, other):
        say(log, prediction_id, Outcome(1, 1.0, final=True), shown=[Exposure(1)])
    log.join(START)
    assert log.forget((1 << 64) - 5, START + 50) == 2
    assert log.forget((1 << 64) - 5, START + 50) == 0
    assert list(log.records([theirs, open_one, other])) == [other]
    log.join(START + 3 * WINDOW_MS)
    assert [e.prediction_id for e in log.labelled(0)] == [other]
    assert say(log, other, Outcome(0, 1.0), now_ms=START + WINDOW_MS).outcomes == (ACCEPTED,)
    assert log.stats(START).open_predictions == 0


def test_forgetting_reaches_what_is_parked_and_what_is_on_its_way(log: TrafficLog) -> None:
    on_its_way, later = IDS.new(START), IDS.new(START + 100)
    for prediction_id in (on_its_way, later):
        say(log, prediction_id, Outcome(1, 1.0))
    log.append_scores([(on_its_way, Scores("candidate", "student", 3, np.zeros(4, np.float32)))])
    log.forget(7, START + 50)
    log.append_predictions([sample(on_its_way, START, routing_hash=7), sample(later, START + 100, routing_hash=7)])
    stats = log.stats(START)
    assert (stats.predictions, stats.parked) == (1, 0)
    assert list(log.records([on_its_way, later])) == [later]


def test_a_closed_log_says_so(log: TrafficLog) -> None:
    log.close()
    with pytest.raises(NotReady):
        log.join(START)
    with pytest.raises(NotReady):
        log.labelled(0)


def test_stores_know_the_same_records(log: TrafficLog) -> None:
    made = [predict(log, START + i) for i in range(3)]
    assert log.records([made[2], IDS.new(START), made[0]]) == {
        made[2]: sample(made[2], START + 2),
        made[0]: sample(made[0], START),
    }
    assert log.latest("ranker", 2) == [sample(made[2], START + 2), sample(made[1], START + 1)]
    assert log.latest("nobody", 2) == []


def test_predictions_are_read_from_place_to_place(log: TrafficLog) -> None:
    made = [predict(log, START + i) for i in range(5)]
    read = log.predictions("", 2)
    read += log.predictions(read[-1][0])
    assert [unpack(blob).prediction_id for _, blob in read] == made
    assert log.predictions(read[-1][0]) == []
    later = predict(log)
    assert [unpack(blob).prediction_id for _, blob in log.predictions(read[-1][0])] == [later]
    newest = [unpack(blob).prediction_id for _, blob in log.predictions(log.near_end(2))]
    assert newest[-2:] == [made[-1], later]
    assert len(log.predictions(log.near_end(100))) == 6


def test_a_reply_says_of_which_endpoint_it_is_how_late_and_whether_after_the_window(log: TrafficLog) -> None:
    prediction_id = predict(log)
    in_time = say(log, prediction_id, Outcome(0, 1.0), now_ms=START + 300)
    assert (in_time.endpoint, in_time.delay_ms, in_time.late) == ("ranker", 300, False)
    waits = say(log, prediction_id, Outcome(1, 1.0), shown=(), now_ms=START + WINDOW_MS + 200)
    assert (waits.delay_ms, waits.late) == (WINDOW_MS + 200, False)  # its rows were shown 300 ms after it was made
    other = predict(log)
    late = say(log, other, Outcome(0, 1.0), now_ms=START + WINDOW_MS + 1)
    assert (late.delay_ms, late.late) == (WINDOW_MS + 1, True)
    unknown = say(log, IDS.new(START), Outcome(0, 1.0))
    assert (unknown.endpoint, unknown.delay_ms, unknown.late) == ("", None, False)
    assert log.join(START + 3 * WINDOW_MS) == 2
    told = log.stats(START + 3 * WINDOW_MS).endpoints
    assert {name: (of.labelled_rows, of.watermark_ms) for name, of in told.items()} == {"ranker": (8, START)}
