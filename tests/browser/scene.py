"""An installation with traffic whose candidate's bias falls, for tests of the console.

Lane, shadow lane and control process are the real ones. Labelled traffic goes into the real traffic log as lanes would
write it, so that it can be faster than clients and have the bias that a test wants; a client's requests go through the
lane beside it.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import yaml
from handmade import SCHEMA
from installation import Installation, Process, eventually, free_port, lane_process, shadow_process

from pipeline.clock import SystemClock
from pipeline.errors import BatonError
from pipeline.features import Features, IdPart
from pipeline.model.warmup import synthetic_requests
from pipeline.traffic.log import FeedbackEntry, Outcome, Scores
from pipeline.traffic.prediction import PredictionIds, load_secret
from pipeline.traffic.record import PredictionRecord, pack
from serving.client import RankingClient
from serving.config.principal import Role
from serving.security.tokens import TokenStore
from serving.wiring.traffic import open_traffic_log

ROLLOUT = yaml.safe_dump(
    {
        "endpoint": "ranker",
        "candidate": {"bundle": "student"},
        "steps": [
            {"shadow": True, "min_positives": 200},
            {"weight": 10, "bias_below": 0.4},
            {"weight": 50, "bias_below": 0.25},
            {"weight": 100, "bias_below": 0.02},
        ],
        "guards": {
            "auc_delta_min": -0.2,
            "logloss_delta_max": 0.2,
            "score_ratio": [0.2, 5.0],
            "p99_ms_max": 20000,
            "deadline_miss_max": 0.9,
            "error_rate_max": 0.9,
        },
        "analysis": {
            "attribution_window": "500ms",
            "block": "50ms",
            "interval": "500ms",
            "min_step_time": "1s",
            "breach_window": "60s",
            "evidence_span": "0s",
        },
        "after_full": {"watch": "1h"},
    },
    sort_keys=False,
)
ROWS = 20


class Scene:
    """The running installation. `bias` of the candidate falls from its first value to its last within some seconds."""

    def __init__(self, home: Path, *, lanes: bool = True) -> None:
        port, http = free_port(), free_port()
        self.made = Installation(
            home,
            listen={"grpc_port": port, "http_port": http, "admin_port": free_port()},
            engine={"lanes": 1},
            traffic={"attribution_window": 0.5},
        )
        self.config = self.made.config
        self.url, self.target = f"http://127.0.0.1:{http}", f"127.0.0.1:{port}"
        self.first_bias, self.last_bias, self.fall = 0.33, 0.02, 3.0
        self._lanes = [lane_process(self.made), shadow_process(self.made)] if lanes else []
        self.control: Process | None = None
        self._stop = threading.Event()
        self._flow = threading.Thread(target=self._label, name="scene-labels", daemon=True)
        self._asks = threading.Thread(target=self._ask, name="scene-requests", daemon=True)
        self.began = time.monotonic()

    def token(self, name: str, role: Role) -> str:
        """A new token; from the first one on every call needs one."""
        return TokenStore(self.config.tokens).create(name, role, SystemClock().wall_ms())[1]

    def revoke(self, name: str) -> None:
        TokenStore(self.config.tokens).revoke(name)

    def start_control(self) -> None:
        self.control = Process(self.made, "from serving.processes.control import run_control; run_control(config)")
        eventually(self._answers, "the control process answers", 240)

    def stop_control(self) -> None:
        """As a crash does it."""
        assert self.control is not None
        self.control.process.kill()
        self.control.process.wait(20)

    def start_traffic(self) -> None:
        self._flow.start()
        if self._lanes:
            self._asks.start()

    def close(self) -> None:
        self._stop.set()
        for thread in (self._flow, self._asks):
            if thread.ident is not None:
                thread.join(20)
        for process in (*self._lanes, *([self.control] if self.control else [])):
            process.__exit__()
        self.made.store.close()

    def audit(self) -> list[str]:
        """The verbs of the audit, oldest first."""
        return [entry.verb for entry in self.made.store.audit("ranker")]

    @property
    def bias(self) -> float:
        """Of the candidate, now."""
        spent = time.monotonic() - self.began
        return self.last_bias + (self.first_bias - self.last_bias) * math.exp(-spent / self.fall)

    def _answers(self) -> bool:
        assert self.control is not None
        assert self.control.process.poll() is None, self.control.errors.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return json.load(answer) == {"status": "ok"}
        except (urllib.error.URLError, ConnectionError):
            return False

    def _label(self) -> None:
        """40 requests of 20 rows a second, shown and clicked at once, until the scene is closed."""
        ids, clock = PredictionIds(load_secret(self.config.secret)), SystemClock()
        log, random = open_traffic_log(self.config), np.random.default_rng(1)
        self.began = time.monotonic()
        features = Features(ROWS, (IdPart(np.zeros(1, np.int32), np.array([[1]])),), ())
        while not self._stop.wait(0.025):
            now = clock.wall_ms()
            arm = "candidate" if random.random() < self.made.store.endpoint("ranker").weight / 100 else "stable"
            other = "candidate" if arm == "stable" else "stable"
            truth = random.uniform(0.1, 0.5, ROWS)
            scores = {"stable": truth * 1.01, "candidate": np.clip(truth * (1 + self.bias), 0.01, 0.99)}
            bundles = {"stable": ("teacher", 1), "candidate": ("student", 1)}
            made = ids.new(now)
            record = PredictionRecord(
                made, now, "ranker", arm, *bundles[arm], features, scores[arm].astype("f4"), routing_hash=1
            )
            log.append_predictions([pack(record)])
            log.append_scores([(made, Scores(other, *bundles[other], scores[other].astype("f4")))])
            clicks = [Outcome(int(at), 1.0) for at in np.flatnonzero(random.random(ROWS) < truth)]
            log.append_feedback([FeedbackEntry(made, (), clicks, exposed_all=True)], now)
        log.close()

    def _ask(self) -> None:
        """A few requests a second through the lane, from when it answers."""
        requests = synthetic_requests(SCHEMA, (20, 50, 100))
        with RankingClient(self.target) as client:
            number = 0
            while not self._stop.wait(0.04):
                number += 1
                with contextlib.suppress(BatonError):
                    client.rank("ranker", SCHEMA, requests[number % 3], routing_key=f"user {number}", timeout=5)
