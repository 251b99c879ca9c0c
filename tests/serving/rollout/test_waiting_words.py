"""What a rollout says of itself between looks, after its end, and where an older version has written its state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from operated import operated, rollout_file

from serving.admin import verbs as v
from serving.admin.door import request_of
from serving.config.principal import Principal, Role

ADA = Principal("ada", Role.OPERATOR)


def test_a_pause_says_who_and_why_before_the_next_look_and_after_an_upgrade(tmp_path: Path) -> None:
    with operated(tmp_path / "home") as world:
        admin, store = world.admin, world.made.store

        def call(verb: v.Verb, **fields: object):  # type: ignore[no-untyped-def,type-arg]
            return admin.call(verb, request_of(verb, fields), ADA)

        call(v.ROLLOUTS_START, file=rollout_file(), reason="a test")
        paused = call(v.ROLLOUTS_PAUSE, name="ranker", reason="lunch")
        assert (paused.code, paused.waiting.startswith("paused by ada at ")) == ("paused", True)
        assert paused.waiting.endswith(": lunch")
        stored = store.rollout("ranker")
        old = replace(stored, state=replace(stored.state, cause=None))
        assert old.waiting == "paused; the audit says by whom"
        assert store.with_cause(old).waiting == paused.waiting
        ended = call(v.ROLLOUTS_ABORT, name="ranker", reason="enough")
        assert (ended.next_look_ms, ended.missing_clicks, ended.alarm) == (None, None, "")
        assert ended.waiting.startswith("aborted by ada at ")
        assert (
            store.with_cause(
                replace(store.rollout("ranker"), state=replace(store.rollout("ranker").state, cause=None))
            ).waiting
            == ended.waiting
        )
