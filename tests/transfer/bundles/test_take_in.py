"""Bundles of others become versions: numbers, refusals, several at once, kills, a repository behind a URL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from nightly import another, spoil, train_once, write_log

from pipeline.bundle.bundle import Bundle, Calibration
from pipeline.bundle.remote import RemoteRepository
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, InvalidInput
from pipeline.model.scorer import Scorer
from transfer.bundles.take_in import checked, judged, take_in
from transfer.data import Log, open_log
from transfer.quality.gate import GateLimits

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def log(data: Path) -> Log:
    return open_log(data, data.parent / "cache")


@pytest.fixture(scope="module")
def made(data: Path) -> Bundle:
    return train_once(data, data.parent / "made")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "bundles")


def test_a_bundle_becomes_the_next_version_under_its_own_or_another_name(made: Bundle, repository: Repository) -> None:
    bundle = checked(made.path, repository)
    for name, version in (("", "1"), ("", "2"), ("student", "1")):
        taken = take_in(bundle, repository, name, now_ms=NOW_MS)
        assert (taken.manifest.name, taken.manifest.version) == (name or "nightly", version)
        assert taken.manifest.files == made.manifest.files
        assert taken.manifest.created_ms == NOW_MS
        assert repository.newest(name or "nightly", verify=True)[-1].manifest.version == version
    assert made.manifest == Bundle.open(made.path).manifest, "the original stays"


def test_what_is_damaged_gets_no_number(made: Bundle, repository: Repository, tmp_path: Path) -> None:
    for damage, said in (
        (lambda path: spoil(path), "dense.onnx"),
        (lambda path: spoil(path, "manifest.json", by=lambda _: b"{}"), "manifest.json"),
        (lambda path: spoil(path, "tables/item.safetensors", by=lambda content: content[:-5]), "item"),
    ):
        path = another(made, tmp_path / said)
        damage(path)
        with pytest.raises(BundleError, match=said):
            checked(path, repository)
    with pytest.raises(InvalidInput, match="no name"):
        checked(made.path, repository, "a/b")
    late = another(made, tmp_path / "late")
    bundle = checked(late, repository)
    spoil(late, "warmup.arrow")
    with pytest.raises(BundleError, match="changed while"):
        take_in(bundle, repository, now_ms=NOW_MS)
    assert repository.versions("nightly") == []
    assert [path.name for path in (repository.root / "nightly").iterdir()] == [".versions"], "nothing is left of it"


def test_the_gate_judges_beside_the_newest_version(
    made: Bundle, log: Log, repository: Repository, tmp_path: Path
) -> None:
    def handed(name: str, **change: float) -> Bundle:
        bundle = checked(another(made, tmp_path / name, **change), repository)
        calibration = bundle.manifest.calibration
        judgement = judged(bundle, calibration, repository, "nightly", log, 0.8, 1.0, limits)
        return take_in(bundle, repository, now_ms=NOW_MS, calibration=calibration, judgement=judgement)

    limits = GateLimits(bias=0.2)
    first = handed("first").manifest
    assert first.servable, first.gate
    assert "score_shift" not in first.metrics
    biased, flat = handed("biased", beta=0.9).manifest, handed("flat", alpha=0.01).manifest
    for refused in (biased, flat):
        assert not refused.servable
        assert refused.gate is not None
        assert refused.files == {}
    assert "bias" in biased.gate.reasons[0]  # type: ignore[union-attr]
    assert any("LogLoss" in reason for reason in flat.gate.reasons)  # type: ignore[union-attr]
    last = handed("last", beta=0.01).manifest
    assert (first.version, biased.version, flat.version, last.version) == ("1", "2", "3", "4")
    assert last.metrics["score_shift"] == pytest.approx(0.007, abs=0.003)
    assert (last.shift_from, last.publisher) == ("1", "")
    assert repository.latest("nightly") == "4"
    elsewhere = checked(repository.path("nightly", "4"), repository)
    unjudged = take_in(elsewhere, repository, now_ms=NOW_MS, publisher="ann@laptop").manifest
    assert (unjudged.gate, unjudged.publisher, unjudged.shift_from) == (None, "ann@laptop", None)
    assert "score_shift" not in unjudged.metrics, "a report of elsewhere says nothing of what serves here"


def test_a_calibration_is_written_and_served(made: Bundle, repository: Repository, tmp_path: Path) -> None:
    bundle = checked(made.path, repository)
    taken = take_in(bundle, repository, now_ms=NOW_MS, calibration=Calibration(alpha=2.0, beta=0.5))
    frame = {"user": ["u1", "u2"], "item": ["i1", "new"], "price": [0.5, None], "tags": ["a|b1", ["a", "b2"][0]]}
    with Scorer(made) as own, Scorer(taken.path) as changed:
        logit = np.log(own.score(frame) / (1 - own.score(frame)))
        before = (logit - made.manifest.calibration.beta) / made.manifest.calibration.alpha
        assert changed.score(frame) == pytest.approx(1 / (1 + np.exp(-(2 * before + 0.5))), rel=1e-4)


def test_several_at_once_and_a_worker_get_consecutive_numbers(made: Bundle, repository: Repository) -> None:
    bundle = checked(made.path, repository)
    with ThreadPoolExecutor(6) as pool:
        outside = [pool.submit(take_in, bundle, repository, now_ms=NOW_MS) for _ in range(5)]
        reserved = pool.submit(repository.reserve, "nightly")  # as a worker does
        taken = [int(done.result().manifest.version) for done in outside]
    assert sorted([*taken, int(reserved.result())]) == [1, 2, 3, 4, 5, 6]
    assert sorted(map(int, repository.versions("nightly"))) == sorted(taken)


KILLED = """
import os, signal, sys
from pathlib import Path
import pipeline.bundle.bundle as b
from pipeline.bundle.remote import RemoteRepository
from pipeline.bundle.versions import Repository
from transfer.bundles.take_in import checked, take_in
source, root, url = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
def publish(at):
    repository = RemoteRepository(root, url) if url else Repository(root)
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename.endswith(("take_in.py", "bundle/bundle.py", "bundle/remote.py", "versions.py")):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    bundle = checked(Path(source), repository)
    sys.settrace(trace)
    take_in(bundle, repository, now_ms=1)
    sys.settrace(None)
    os.write(told, str(count).encode())
for line in sys.stdin:
    read, told = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            publish(int(line))
            code = 0
        finally:
            os._exit(code)
    os.close(told)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(ended, os.read(read, 100).decode() or 0, flush=True)
    os.close(read)
"""
"""Imports once and forks a publisher for each line it reads, which is the line of code to be killed at; 0: at none. Tells
its exit code, and how many lines of code it ran."""


@pytest.mark.long
@pytest.mark.parametrize("remote", [False, True])
def test_a_publisher_killed_at_any_moment_leaves_a_whole_version_or_none(
    made: Bundle, tmp_path: Path, remote: bool
) -> None:
    url = f"file://{tmp_path / 'shared'}" if remote else ""
    command = [sys.executable, "-c", KILLED, str(made.path), str(tmp_path / "bundles"), url]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        asks, tells = parent.stdin, parent.stdout
        assert asks is not None
        assert tells is not None

        def publish(at: int) -> tuple[int, int]:
            print(at, file=asks, flush=True)
            ended, lines = tells.readline().split()
            return int(ended), int(lines)

        _, lines = publish(0)
        ended = []
        for at in np.linspace(1, lines, 12).astype(int).tolist():
            ended.append(publish(at)[0])
            other = RemoteRepository(tmp_path / f"reader{at}", url) if remote else Repository(tmp_path / "bundles")
            for version in other.versions("nightly"):
                other.open("nightly", version, verify=True)
            assert int(other.latest("nightly")) >= 1
        assert ended.count(-signal.SIGKILL) >= 10
        assert publish(0)[0] == 0, "the next one is taken in as ever"
        asks.close()
    assert parent.returncode == 0


def test_a_repository_behind_a_url_takes_bundles_in(made: Bundle, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'shared'}"
    here, there = RemoteRepository(tmp_path / "here", url), RemoteRepository(tmp_path / "there", url)
    bundle = checked(made.path, here)
    assert take_in(bundle, here, now_ms=NOW_MS).manifest.version == "1"
    assert take_in(bundle, there, now_ms=NOW_MS).manifest.version == "2"
    assert RemoteRepository(tmp_path / "third", url).open("nightly", "2", verify=True).manifest.created_ms == NOW_MS
