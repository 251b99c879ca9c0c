"""The watchdog: silence ends a process, long work and a suspended machine do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from serving.supervisor.pulse import PULSE, Heart, Pulse, Sign
from serving.supervisor.watchdog import START_S, Watchdog

ROOT = Path(__file__).parents[3]


def fate(watchdog: Watchdog, signs: list[list[Sign]], *, stopped: bool = False, passed_s: float = 1.0) -> str:
    """The first reason to kill, over the looks."""
    return next((why for look in signs if (why := watchdog.look(look, stopped, passed_s))), "")


def test_a_loop_that_stands_still_is_named_while_another_goes_round() -> None:
    looks = [[Sign("requests", n, 0), Sign("stages", 7, 0)] for n in range(30)]
    assert fate(Watchdog(20), looks[:20]) == ""
    assert fate(Watchdog(20), looks) == "without a sign of life for 21 s: stages"
    assert fate(Watchdog(20), [[Sign("requests", n // 15, 0)] for n in range(300)]) == ""


def test_long_work_has_its_own_limit_unless_a_signal_has_stopped_the_process() -> None:
    looks = [[Sign("learning", 1, 1800)] for _ in range(60)]
    assert fate(Watchdog(20), looks) == ""
    assert fate(Watchdog(20), looks, stopped=True) == "stopped by a signal, without a sign of life for 21 s"
    watchdog = Watchdog(20)
    for _ in range(10):  # somebody looks at it with a debugger for a moment, again and again
        assert fate(watchdog, looks[:15], stopped=True) == ""
        assert fate(watchdog, looks[:1]) == ""


def test_a_process_has_minutes_for_its_start() -> None:
    looks: list[list[Sign]] = [[] for _ in range(int(START_S) + 1)]
    assert fate(Watchdog(20), looks[:-1]) == ""
    assert "first sign of life" in fate(Watchdog(20), looks)


def test_a_machine_that_was_suspended_and_a_supervisor_that_was_stopped_lose_no_patience() -> None:
    looks = [[Sign("requests", 1, 0)] for _ in range(15)]
    assert fate(Watchdog(20), looks, passed_s=3600.0) == ""
    assert fate(Watchdog(20), looks, passed_s=-5.0) == ""


def test_signs_of_a_process_reach_its_supervisor_and_nobody_below_it() -> None:
    pulse = Pulse.make()
    assert pulse is not None
    code = (
        "import os, sys; from serving.supervisor.pulse import PULSE, own_heart\n"
        "one, two = own_heart('one'), own_heart('two', 5.0)\n"
        "one.beat(); one.beat()\n"
        "with two.long(90): sys.stdout.write('long'); sys.stdout.flush(); sys.stdin.read(1)\n"
        "assert PULSE not in os.environ; sys.stdout.write('done'); sys.stdout.flush(); sys.stdin.read(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(pulse.descriptor,),
        env={**os.environ, PULSE: str(pulse.descriptor), "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(4) == b"long"
        assert pulse.signs() == [Sign("one", 2, 0.0), Sign("two", 0, 90.0)]
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(4) == b"done"
        assert pulse.signs() == [Sign("one", 2, 0.0), Sign("two", 1, 5.0)]
        process.stdin.close()
        assert process.wait(20) == 0
    pulse.close()
    Heart(None, 0).beat()  # of a process that nobody watches
