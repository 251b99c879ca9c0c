"""A lane compared with plain dictionaries, under any order of appends, crashes, deletions and readers that stay open."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from lane_samples import Sample, all_rows, crash_image, files_with, samples

from pipeline.clock import SystemClock
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Place, ScoresEntry, lane_of

LIMITS: dict[str, int] = {"file_bytes": 400, "run_rows": 4}
LANES = (3, 5)
KEYS = (0, 7, (1 << 64) - 7)


@dataclass
class Kept:
    """What a lane should hold: payload and routing hash by prediction id, in the order written; scores, inbox."""

    records: dict[str, tuple[bytes, int]]
    scores: dict[str, bytes]
    inbox: list[tuple[str, str]]


class LanesMachine(RuleBasedStateMachine):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        self.life = 0
        self.root = folder / "0"
        self.rng = random.Random(0)
        self.kept = {number: Kept({}, {}, []) for number in LANES}
        self.writers = {number: Lane(self.root, number, SystemClock(), **LIMITS) for number in LANES}
        self.reader = Lanes(self.root)
        self.written: list[Sample] = []
        self.gone: list[Place] = []
        self.scrubbed: list[bytes] = []

    @rule(
        lane=st.sampled_from(LANES),
        sizes=st.lists(st.sampled_from([0, 1, 40, 300]), max_size=6),
        key=st.sampled_from(KEYS),
    )
    def append(self, lane: int, sizes: list[int], key: int) -> None:
        records = []
        for size in sizes:
            ((head, _),) = samples(1, lane, time_ms=1_000_000 + len(self.written))
            records.append((head._replace(routing_hash=key), self.rng.randbytes(size)))
            self.written.append(records[-1])
        assert self.writers[lane].append(records) == len(records)
        self.kept[lane].records |= {head.prediction_id: (blob, key) for head, blob in records}

    @rule(lane=st.sampled_from(LANES), which=st.lists(st.integers(0, 50), min_size=1, max_size=3))
    def append_again(self, lane: int, which: list[int]) -> None:
        again = {i % len(self.written) for i in which} if self.written else set()
        # A lane does not ask the others for ids of its own; that another one has those comes of an import after a deletion.
        others = set().union(*(kept.records for number, kept in self.kept.items() if number != lane))
        names = {i: self.written[i][0].prediction_id for i in again}
        again = {i for i in again if lane_of(names[i]) != lane or names[i] not in others}
        records = [(self.written[i][0], b"another content") for i in sorted(again)]
        there = set().union(*(kept.records for kept in self.kept.values()))
        new = [(head, blob) for head, blob in records if head.prediction_id not in there]
        assert self.writers[lane].append(records) == len(new)
        self.kept[lane].records |= {head.prediction_id: (blob, head.routing_hash) for head, blob in new}

    @rule(lane=st.sampled_from(LANES), which=st.integers(0, 50))
    def score(self, lane: int, which: int) -> None:
        if self.written:
            prediction_id = self.written[which % len(self.written)][0].prediction_id
            scores = self.rng.randbytes(24)
            new = self.writers[lane].put_scores([ScoresEntry(prediction_id, "candidate", "new", 1, scores)])
            assert new == (prediction_id not in self.kept[lane].scores)
            self.kept[lane].scores.setdefault(prediction_id, scores)

    @rule(lane=st.sampled_from(LANES), which=st.integers(0, 50))
    def say(self, lane: int, which: int) -> None:
        if self.written:
            entry = (self.written[which % len(self.written)][0].prediction_id, self.rng.randbytes(12).hex())
            self.writers[lane].put_feedback([(entry[0], 5, entry[1])])
            self.kept[lane].inbox.append(entry)

    @rule(lane=st.sampled_from(LANES), count=st.integers(0, 3))
    def trim(self, lane: int, count: int) -> None:
        rows = self.reader.inbox(lane, 0, count)
        self.writers[lane].trim(rows[-1].seq if rows else 0)
        del self.kept[lane].inbox[:count]

    @rule(lane=st.sampled_from(LANES), scrub=st.booleans(), which=st.sets(st.integers(0, 12), max_size=5))
    def delete(self, lane: int, scrub: bool, which: set[int]) -> None:
        rows = all_rows(self.reader, lane)
        self._delete(lane, [row.prediction_id for i, row in enumerate(rows) if i in which], scrub)

    @rule(key=st.sampled_from(KEYS[1:]))
    def forget(self, key: int) -> None:
        for lane in LANES:
            rows = self.reader.rows_of_key(lane, key, 100)
            assert [row.prediction_id for row in rows] == [
                i for i, (_, k) in self.kept[lane].records.items() if k == key
            ]
            self._delete(lane, [row.prediction_id for row in rows], True)

    @rule(lane=st.sampled_from(LANES))
    def drop_empty(self, lane: int) -> None:
        before = self.reader.files(lane)
        dropped = self.reader.drop_empty(lane)
        assert dropped == sum(not file.predictions + file.scores for file in before)

    @rule(lane=st.sampled_from(LANES))
    def keep(self, lane: int) -> None:
        self.writers[lane].keep()

    @rule(lane=st.sampled_from(LANES))
    def reopen(self, lane: int) -> None:
        self.writers[lane].close()
        self.writers[lane] = Lane(self.root, lane, SystemClock(), **LIMITS)
        assert self.writers[lane].number == lane

    @rule(torn=st.binary(max_size=60), begun=st.booleans())
    def crash(self, torn: bytes, begun: bool) -> None:
        """All processes are killed, each in the middle of an append."""
        self.life += 1
        image = self.folder / str(self.life)
        crash_image(self.root, image)
        self.teardown()
        shutil.rmtree(self.root)
        self.root = image
        for lane in LANES:
            folder = image / str(lane)
            last = max(folder.glob("*.log"), default=folder / "00000001.log")
            for path in (folder / "00000900.log" if begun else last, folder / "index.db-wal"):
                with path.open("ab") as file:
                    file.write(torn)
        self.reader = Lanes(self.root)
        if begun:  # a reader comes before the writer
            self.everything_written_is_there_once()
        self.writers = {number: Lane(self.root, number, SystemClock(), **LIMITS) for number in LANES}
        for lane in LANES:
            for file in self.reader.files(lane):
                path = self.root / str(lane) / f"{file.number:08d}.log"
                assert path.stat().st_size == file.end

    @invariant()
    def everything_written_is_there_once(self) -> None:
        for lane, kept in self.kept.items():
            rows = all_rows(self.reader, lane, 7)
            assert [row.prediction_id for row in rows] == list(kept.records)
            assert [row.seq for row in rows] == sorted({row.seq for row in rows})
            for row in rows:
                blob, key = kept.records[row.prediction_id]
                assert (self.reader.read(row.place(lane)), row.routing_hash) == (blob, key)
                assert self.reader.find(row.prediction_id) == (lane, row)
            scores = self.reader.scores(lane, 0, 1000)
            assert {row.prediction_id: self.reader.read(row.place(lane)) for row in scores} == kept.scores
            assert [(row.prediction_id, row.entry) for row in self.reader.inbox(lane, 0, 1000)] == kept.inbox
            counts = [(file.number, file.predictions, file.scores) for file in self.reader.files(lane)]
            for number, predictions, scored in counts:
                assert predictions == sum(row.file == number for row in rows)
                assert scored == sum(row.file == number for row in scores)
        assert all(self.reader.read(place) is None for place in self.gone)

    def teardown(self) -> None:
        for lane in self.writers.values():
            lane.close()
        self.reader.scrub()
        left = [name for needle in self.scrubbed for name in files_with(self.root, needle)]
        self.reader.close()
        assert left == []

    def _delete(self, lane: int, ids: list[str], scrub: bool) -> None:
        rows = [row for row in all_rows(self.reader, lane) if row.prediction_id in ids]
        self.reader.delete(lane, rows, scrub=scrub)
        for prediction_id in ids:
            blob, _ = self.kept[lane].records.pop(prediction_id)
            secrets = [blob]
            for kept in self.kept.values():
                secrets.append(kept.scores.pop(prediction_id, b""))
                secrets += [text.encode() for i, text in kept.inbox if i == prediction_id]
                kept.inbox = [entry for entry in kept.inbox if entry[0] != prediction_id]
            if scrub:
                self.scrubbed += [secret for secret in secrets if len(secret) > 8 and secret != b"another content"]
        if scrub:
            self.gone += [row.place(lane) for row in rows]


def check(folder: Path, examples: int) -> None:
    rules = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(lambda: LanesMachine(folder), settings=rules)  # type: ignore[arg-type,no-untyped-call]


def test_any_interleaving_gives_what_dictionaries_would(tmp_path: Path) -> None:
    check(tmp_path / "lanes", 30)


@pytest.mark.long
def test_many_interleavings_give_what_dictionaries_would(tmp_path: Path) -> None:
    check(tmp_path / "lanes", 300)
