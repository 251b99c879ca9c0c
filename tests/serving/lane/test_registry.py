from __future__ import annotations

import errno
import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign import endless, row_by_row, write_foreign
from handmade import write_bundle
from installation import WHO, Installation, eventually

from pipeline.bundle.bundle import GateReport
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.errors import Conflict, NotFound, NotReady
from pipeline.model.probe import PROBED, ProbeLimits, Verdict, note, noted
from pipeline.schema import FieldSpec, Schema
from serving.lane.registry import Registry
from serving.lane.served import Snapshot
from serving.rollout.document import StateDocument
from serving.rollout.routing import ArmSpec, Endpoint
from serving.state.kill import KillSwitch
from serving.wiring.registry import open_registry


@pytest.fixture
def registry(installation: Installation) -> Iterator[Registry]:
    registry = open_registry(installation.config, SystemClock())
    registry.start()
    assert registry.wait(lambda s: "ranker" in s.endpoints and s.endpoints["ranker"].candidate is not None, 20)
    yield registry
    registry.stop()


def candidate(snapshot: Snapshot) -> str:
    served = snapshot.endpoints["ranker"].candidate
    return served.model.version if served else ""


def test_a_new_version_is_taken_and_the_old_one_leaves_with_its_last_user(
    installation: Installation, registry: Registry
) -> None:
    in_flight = registry.snapshot.endpoints["ranker"].candidate
    assert in_flight is not None
    old = weakref.ref(in_flight.model)
    installation.publish("student", 7)
    assert registry.wait(lambda s: candidate(s) == "2", 20)
    assert ("student", "1") not in registry.snapshot.models
    assert old() is not None
    del in_flight

    def gone() -> bool:
        gc.collect()
        return old() is None

    eventually(gone, "the old version is released")


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_says_why(
    installation: Installation, registry: Registry
) -> None:
    elsewhere = Installation(installation.home.parent / "elsewhere")
    bundle = elsewhere.publish("student", 7)
    elsewhere.store.close()
    path = bundle.path / "tables" / "item.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    shutil.move(bundle.path, installation.repository.path("student", "2"))

    def refused() -> bool:
        report = registry.arms()["ranker"]["candidate"]
        return report.version == "1" and report.state == "READY" and "item" in report.reason

    eventually(refused, "the damaged version is reported")
    assert candidate(registry.snapshot) == "1"
    states = {(m.bundle, m.version): m.state for m in registry.models()}
    assert states["student", "2"] == "UNAVAILABLE"
    installation.publish("student", 9)
    assert registry.wait(lambda s: candidate(s) == "3", 20)


def test_the_newest_whole_version_serves_whatever_newer_ones_are(installation: Installation) -> None:
    """At a start, when nothing serves yet: a copy under another number, no manifest, a cut network, other inputs."""
    repository = installation.repository
    installation.publish("student", 5)
    first = repository.path("student", "1")
    for version in ("3", "4", "5"):
        shutil.copytree(first, repository.path("student", version))
    (repository.path("student", "4") / "manifest.json").write_text("")
    cut = repository.path("student", "5")
    (cut / "manifest.json").write_text((cut / "manifest.json").read_text().replace('"version": "1"', '"version": "5"'))
    (cut / "dense.onnx").write_bytes((cut / "dense.onnx").read_bytes()[:-9])
    other = Schema(fields=(FieldSpec(name="user", role="candidate"), FieldSpec(name="item", role="candidate")))
    tables = {name: installation.tables[name] for name in ("user", "item")}
    write_bundle(repository, tables, name="student", schema=other)
    registry = open_registry(installation.config, SystemClock())
    registry.start()
    try:
        assert registry.wait(lambda s: "ranker" in s.endpoints and candidate(s) == "2", 30)
        eventually(lambda: len(registry.faults()) == 4, "all are set aside")
        faults = registry.faults()
        assert "student version 1" in faults["student/3"]
        assert "JSON" in faults["student/4"]
        assert "dense.onnx" in faults["student/5"]
        assert "inputs" in faults["student/6"]
        report = registry.arms()["ranker"]["candidate"]
        assert (report.version, report.state) == ("2", "READY")
        assert report.reason.startswith("version 6: its inputs")
        shutil.rmtree(cut)
        eventually(lambda: "student/5" not in registry.faults(), "what was removed is no fault any more")
    finally:
        registry.stop()


def test_a_version_the_gate_refused_is_never_taken(installation: Installation, registry: Registry) -> None:
    write_bundle(
        installation.repository, installation.tables, name="student", gate=GateReport(passed=False, reasons=("biased",))
    )
    installation.publish("teacher", 3)
    assert registry.wait(lambda s: (arm := s.endpoints["ranker"].stable) is not None and arm.model.version == "2", 20)
    assert candidate(registry.snapshot) == "1"


def test_arms_that_contradict_each_other_in_a_field_do_not_serve_together(
    installation: Installation, registry: Registry
) -> None:
    schema = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="context")))
    tables = {"user": installation.tables["user"], "item": installation.tables["item"]}
    write_bundle(installation.repository, tables, name="stranger", schema=schema)
    installation.set(candidate=ArmSpec(bundle="stranger"), weight=50)

    def refused() -> bool:
        report = registry.arms()["ranker"]["candidate"]
        return (
            report.bundle == "stranger"
            and report.state == "UNAVAILABLE"
            and "'item': role is 'context' here" in report.reason
        )

    eventually(refused, "the candidate is refused")
    assert registry.snapshot.endpoints["ranker"].candidate is None
    assert registry.snapshot.endpoints["ranker"].stable is not None


def test_a_pinned_version_is_served_also_when_a_newer_one_is_there(
    installation: Installation, registry: Registry
) -> None:
    installation.publish("student", 7)
    assert registry.wait(lambda s: candidate(s) == "2", 20)
    installation.set(candidate=ArmSpec(bundle="student", version=1), weight=5)
    assert registry.wait(lambda s: candidate(s) == "1" and s.endpoints["ranker"].endpoint.weight == 5, 20)


def test_a_held_stable_arm_takes_nothing_newer_until_it_is_let_go(
    installation: Installation, registry: Registry
) -> None:
    def stable(snapshot: Snapshot) -> str:
        served = snapshot.endpoints["ranker"].stable
        return served.model.version if served else ""

    def hold(version: int) -> None:
        endpoint = installation.store.endpoint("ranker")
        installation.store.put_endpoint(endpoint.model_copy(update={"stable_held": version}), WHO)

    hold(1)
    installation.publish("teacher", 7)
    installation.publish("student", 7)
    assert registry.wait(lambda s: candidate(s) == "2", 20)
    assert stable(registry.snapshot) == "1"
    hold(0)
    assert registry.wait(lambda s: stable(s) == "2", 20)


def test_the_kill_file_is_enough(installation: Installation, registry: Registry) -> None:
    assert not registry.snapshot.endpoints["ranker"].killed
    switch = KillSwitch(installation.home)
    switch.engage("ranker", "it burns", "test")
    assert registry.wait(lambda s: s.endpoints["ranker"].killed, 5)
    switch.release("ranker")
    assert registry.wait(lambda s: not s.endpoints["ranker"].killed, 5)


def test_a_weight_is_followed_where_no_folder_can_be_listed(
    installation: Installation, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(self: Repository, name: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Repository, "held", no_descriptor)
    installation.set(weight=35)
    assert registry.wait(lambda s: s.endpoints["ranker"].endpoint.weight == 35, 20)
    assert registry.snapshot.endpoints["ranker"].candidate is not None


def test_models_loaded_by_name_are_loaded_in_every_process(installation: Installation, registry: Registry) -> None:
    installation.publish("spare", 4)
    other = open_registry(installation.config, SystemClock())
    other.start()
    registry.load("spare")
    assert registry.snapshot.newest("spare") is not None
    assert other.wait(lambda s: s.newest("spare") is not None, 20)
    registry.unload("spare")
    assert registry.snapshot.newest("spare") is None
    assert other.wait(lambda s: s.newest("spare") is None, 20)
    other.stop()
    with pytest.raises(NotFound):
        registry.load("nobody")
    with pytest.raises(NotFound):
        registry.unload("spare")
    with pytest.raises(Conflict):
        registry.unload("student")


def test_a_model_that_cannot_be_loaded_by_name_says_why(installation: Installation, registry: Registry) -> None:
    path = installation.publish("spare", 4).path / "dense.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(NotReady, match=r"dense\.onnx"):
        registry.load("spare")


def test_a_store_that_fails_leaves_the_endpoints_and_the_kill_switch(
    tmp_path: Path, installation: Installation
) -> None:
    class Broken:
        fails = False

        def data_version(self) -> int:
            if self.fails:
                raise OSError("disk gone")
            return installation.store.data_version()

        def document(self) -> StateDocument:
            return installation.store.document()

    source = Broken()
    registry = open_registry(installation.config, SystemClock())
    registry._desired_versions._source = source  # type: ignore[assignment]
    registry.start()
    assert registry.wait(lambda s: "ranker" in s.endpoints and s.endpoints["ranker"].stable is not None, 20)
    source.fails = True
    passes = registry._passes
    eventually(lambda: registry._passes > passes + 1, "the registry goes on looking")
    away = registry.state_away()
    assert away is not None
    assert away.reason == "disk gone"
    assert abs(away.since_ms - SystemClock().wall_ms()) < 20_000
    passes = registry._passes
    eventually(lambda: registry._passes > passes, "it looks once more")
    assert registry.state_away() == away  # since the first look that failed
    assert registry.snapshot.endpoints["ranker"].stable is not None
    KillSwitch(installation.home).engage("ranker", "it burns", "test")
    assert registry.wait(lambda s: s.endpoints["ranker"].killed, 5)
    installation.set(weight=10)
    source.fails = False
    assert registry.wait(lambda s: s.endpoints["ranker"].endpoint.weight == 10, 20)
    assert registry.state_away() is None
    registry.stop()


def test_a_model_of_which_no_version_may_serve_says_so(installation: Installation, registry: Registry) -> None:
    write_bundle(installation.repository, installation.tables, name="refused", gate=GateReport(passed=False))
    with pytest.raises(NotReady, match="no version that may serve"):
        registry.load("refused")


def test_a_version_that_hangs_is_set_aside_while_all_others_load(tmp_path: Path) -> None:
    made = Installation(tmp_path, engine={"load_timeout": 1})
    for version, network in ((1, row_by_row()), (2, endless())):
        write_foreign(made.config.repository / "alien" / str(version), network)
    made.set(candidate=ArmSpec(bundle="alien"), weight=5)
    made.store.put_endpoint(Endpoint(name="other", stable=ArmSpec(bundle="alien")), WHO)
    registry = open_registry(made.config, SystemClock())
    registry.start()
    try:
        assert registry.wait(lambda s: "ranker" in s.endpoints and s.endpoints["ranker"].stable is not None, 20)
        eventually(lambda: "alien/2" in registry.faults(), "the endless one is set aside", 60)
        assert "more than 1 s of processor time" in registry.faults()["alien/2"]
        eventually(lambda: ("alien", "1") in registry.snapshot.models, "the newest whole one answers")
        assert "version 2: loading" in registry.arms()["other"]["stable"].reason
        (told,) = [m for m in registry.models() if (m.bundle, m.version) == ("alien", "2")]
        assert told.state == "UNAVAILABLE"
        write_foreign(made.config.repository / "alien" / "3", row_by_row(3.0))
        eventually(lambda: ("alien", "3") in registry.snapshot.models, "a later one is taken", 60)
    finally:
        registry.stop()


def test_real_requests_that_hang_a_network_set_its_version_aside(tmp_path: Path) -> None:
    made = Installation(tmp_path, engine={"load_timeout": 1})
    bundle = write_foreign(made.config.repository / "alien" / "1", endless())
    notes = made.config.segments / "alien" / PROBED
    note(notes, bundle, ProbeLimits(1.0, made.config.engine.load_memory_bytes), Verdict())  # as if its probe had passed
    made.store.put_endpoint(Endpoint(name="other", stable=ArmSpec(bundle="alien")), WHO)
    registry = open_registry(made.config, SystemClock())
    registry.reconcile()
    assert "did not end within 3 s" in registry.faults()["alien/1"]
    assert registry.snapshot.endpoints["ranker"].stable is not None
    assert "did not end" in noted(notes)["1"].reason
