"""A controller over a real traffic log, with a clock set by hand and generated traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from clocks import MillisecondClock

from pipeline.features import Features, IdPart, NumberPart
from pipeline.hashing import hash_value
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, Outcome, Scores
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from serving.rollout.controller import RolloutController
from serving.rollout.reconcile import Observed
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.store import Who

SPEC = Rollout.parse(
    """
endpoint: ranker
candidate: {bundle: new}
steps: [{shadow: true, min_positives: 100}, {weight: 10, bias_below: 0.3}, {weight: 100, bias_below: 0.2}]
guards: {auc_delta_min: -0.1, logloss_delta_max: 0.05}
analysis: {attribution_window: 1s, evidence_span: 0s, block: 100ms, interval: 1s, min_step_time: 5s, breach_window: 8s}
after_full: {watch: 20s}
"""
)
IDS = PredictionIds(b"k" * 32)
SCHEMA = Schema(
    fields=(
        FieldSpec(name="tab", role="context", kind="id"),
        FieldSpec(name="price", role="candidate", kind="number"),
        FieldSpec(name="tags", role="candidate", kind="bag", separator="|"),
    )
)


class World:
    """Traffic of 10 requests of 20 rows a second, whose candidate has a bias that tests set; a real log and store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = MillisecondClock()
        self.rng, self.keys = np.random.default_rng(1), np.random.default_rng(2)
        self.bias = 0.0
        self.bias_of: dict[str, float] = {}
        """Of a tab alone, on top."""
        self.taste = 1.0
        """What being answered by the candidate does to clicks."""
        self.version = 1
        self.observed = Observed()
        self.braked: list[tuple[str, str]] = []
        self.log_path = folder / "traffic"
        self.log = LocalTrafficLog(self.log_path, IDS, attribution_window_ms=1000)
        self.store = SqliteControlStore(folder / "control.db")
        self.store.put_endpoint(Endpoint(name="ranker", stable=ArmSpec(bundle="old", version=1)), Who("ada", "set", 1))
        self.controller = self.new_controller()

    def new_controller(self) -> RolloutController:
        return RolloutController(
            self.store,
            self.log,
            self.clock,
            lambda: lambda *_: self.observed,
            self.schema,
            lambda *why: self.braked.append(why),
        )

    def seconds(self, count: float, *, labels: bool = True, until: str = "", shadow: bool = True) -> None:
        """Let time pass with traffic, a pass of the controller every half second."""
        for _half in range(round(count * 2)):
            for _ in range(5):
                self.clock.now += 100
                self.request(labels, shadow)
            self.log.join(self.clock.now)
            self.controller.step()
            if until and self.store.rollout("ranker").state.phase == until:
                return
        assert not until, self.store.rollout("ranker").status

    def request(self, labels: bool, shadow: bool = True) -> None:
        weight = self.store.endpoint("ranker").weight
        arm = "candidate" if self.rng.random() < weight / 100 else "stable"
        tab = str(self.rng.choice(["home", "search"], p=[0.7, 0.3]))
        truth = self.rng.uniform(0.1, 0.5, 20)
        scores = {"stable": truth, "candidate": truth * (1 + self.bias + self.bias_of.get(tab, 0.0))}
        names = {"stable": ("old", 1), "candidate": ("new", self.version)}
        other = "candidate" if arm == "stable" else "stable"
        made = IDS.new(self.clock.now)
        price = self.rng.choice([0.0, 3.0, 5.0, np.nan], (20, 1)).astype(np.float32)
        features = Features(
            20,
            (IdPart(np.zeros(1, np.int32), np.array([[hash_value("tab", tab)]])),),
            (NumberPart(np.zeros(1, np.int32), price),),
        )
        key = int(self.keys.integers(1, 1 << 62))
        record = PredictionRecord(
            made, self.clock.now, "ranker", arm, *names[arm], features, scores[arm].astype("f4"), routing_hash=key
        )
        entry = None
        if labels:
            clicks = np.flatnonzero(self.rng.random(20) < truth * (self.taste if arm == "candidate" else 1.0))
            entry = FeedbackEntry(made, (), [Outcome(int(at), 1.0) for at in clicks], exposed_all=True)
        self.tell(record, Scores(other, *names[other], scores[other].astype("f4")) if shadow else None, entry)

    def tell(self, record: PredictionRecord, other: Scores | None, entry: FeedbackEntry | None) -> None:
        """Put an answer into the log, with the other arm's scores and its labels."""
        self.log.append_predictions([pack(record)])
        if other is not None:
            self.log.append_scores([(record.prediction_id, other)])
        if entry is not None:
            self.log.append_feedback([entry], self.clock.now)

    def schema(self, bundle: str) -> Schema:
        return SCHEMA

    @property
    def status(self) -> str:
        return str(self.store.rollout("ranker").status["reason"])
