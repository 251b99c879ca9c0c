"""The kill switch where everything else fails: no room on the disk, no descriptor, no folder, a disk that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path

import pytest
from installation import eventually

from pipeline import memory_folder
from pipeline.errors import NotReady
from serving.lane import kill_watch
from serving.lane.kill_watch import KillWatch
from serving.state.kill import KillFiles, KillSwitch

NAMES = {"ranker", "shop"}
_WITHOUT_ROOM = """
import resource, signal, sys
from pathlib import Path
from serving.state.kill import KillSwitch
switch = KillSwitch(Path(sys.argv[1]))
if sys.argv[2] == "prepared":
    switch.prepare()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file may hold a byte from here on
switch.engage("ranker", "it burns", "ada")
"""
_WITHOUT_DESCRIPTORS = """
import json, os, resource, sys
from pathlib import Path
from serving.state.kill import KillSwitch
switch = KillSwitch(Path(sys.argv[1]))
switch.prepare()
last = os.dup(0)
resource.setrlimit(resource.RLIMIT_NOFILE, (last, last))
os.close(last)
try:
    while True:
        os.dup(0)
except OSError:
    pass
seen = [sorted(switch.files.engaged({"ranker"}))]
os.rename(sys.argv[1] + "/ready", sys.argv[1] + "/kill/ranker")
seen.append(sorted(switch.files.engaged({"ranker"})))
switch.engage("shop", "it burns", "ada")
seen.append(sorted(switch.files.engaged({"ranker", "shop"})))
os.write(1, json.dumps(seen).encode())
"""


def run(script: str, *arguments: str) -> bytes:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("before", ["prepared", "never prepared"])
def test_a_kill_needs_no_room(tmp_path: Path, before: str) -> None:
    run(_WITHOUT_ROOM, str(tmp_path), before)
    assert KillSwitch(tmp_path).files.engaged(NAMES) == {"ranker"}
    assert KillSwitch(tmp_path).why("ranker") == ("kill file without a reason", "unknown")


def test_kills_are_seen_and_made_without_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "ready").touch()
    assert json.loads(run(_WITHOUT_DESCRIPTORS, str(tmp_path))) == [[], ["ranker"], ["ranker", "shop"]]


def test_what_was_set_aside_is_no_kill_and_is_set_aside_again(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path)
    switch.prepare()
    spares = sorted(path.name for path in (tmp_path / "kill").iterdir())
    assert spares
    assert all(name.startswith(".") for name in spares)
    (tmp_path / "kill" / spares[0]).rename(tmp_path / "kill" / "ranker")
    assert switch.engaged("ranker")
    assert switch.release("ranker")
    assert sorted(path.name for path in (tmp_path / "kill").iterdir()) == spares


@pytest.mark.parametrize("how", ["removed", "replaced", "moved with its home"])
def test_the_folder_may_go_and_come_back(tmp_path: Path, how: str) -> None:
    home = tmp_path / "home"
    files = KillFiles(home)
    files.prepare()
    if how == "moved with its home":
        home.rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "kill" / "ranker").touch()
    else:
        (home / "kill").rename(tmp_path / "old")
        if how == "removed":
            subprocess.run(["rm", "-r", tmp_path / "old"], check=True)
            assert files.engaged(NAMES) == set()  # it is made again
        KillSwitch(home).engage("ranker", "it burns", "ada")
    assert files.engaged(NAMES) == {"ranker"}


def test_where_the_disk_takes_no_change_the_file_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_folder, "MEMORY_FOLDER", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    home = tmp_path / "home"
    lane = KillSwitch(home)
    lane.prepare()
    (home / "kill").rename(tmp_path / "old")
    (home / "kill").write_text("no folder")
    operator = KillSwitch(home)
    operator.engage("ranker", "it burns", "ada")
    (home / "kill").unlink()
    assert lane.files.engaged(NAMES) == {"ranker"}
    assert lane.why("ranker") == ("it burns", "ada")
    assert lane.release("ranker")
    assert not lane.release("ranker")
    assert lane.files.engaged(NAMES) == frozenset()


def test_no_place_for_a_kill_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_folder, "MEMORY_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    (tmp_path / "kill").write_text("a file where the folder should be")
    with pytest.raises(NotReady, match=r"'ranker' is not killed.*kill"):
        KillSwitch(tmp_path).engage("ranker", "it burns", "ada")


class HungDisk(KillFiles):
    """A disk that answers no look while `hangs` is set."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.answers = threading.Event()
        self.answers.set()

    def engaged(self, names: Collection[str]) -> frozenset[str]:
        self.answers.wait()
        return super().engaged(names)


@pytest.mark.parametrize("how", ["hangs", "gone"])
def test_who_cannot_look_for_a_while_sends_the_candidates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(kill_watch, "BLIND_S", 0.5)
    monkeypatch.setattr(kill_watch, "TICK_S", 0.05)
    home = tmp_path / "home"
    switch = KillSwitch(home)
    switch.files = disk = HungDisk(home)
    told: list[tuple[frozenset[str], str]] = []
    watch = KillWatch(switch, lambda: NAMES, lambda *now: told.append(now))
    watch.start()
    switch.engage("shop", "it burns", "ada")
    eventually(lambda: told == [({"shop"}, "")], "the kill is seen")
    if how == "hangs":
        disk.answers.clear()
    else:
        subprocess.run(["rm", "-r", home], check=True)
        home.write_text("no folder any more")
    eventually(lambda: len(told) == 2, "the watch is blind")
    assert told[1][0] == {"shop"}
    assert "cannot be looked at" in told[1][1]
    if how == "hangs":
        disk.answers.set()
    else:
        os.unlink(home)
        switch.engage("shop", "it burns", "ada")
    eventually(lambda: told[-1] == ({"shop"}, ""), "the watch sees again")
    watch.stop()
