"""REST against its own OpenAPI document: thousands of requests made from it, good and bad, on a real store.

`make fuzz` sends 100,000. No answer says 500, nothing is logged with a traceback, and memory does not grow. Left out are `watch`, whose answer has no end, `/readyz`, which says 503 on purpose, and forgetting and the answers that are files, which have their own tests.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import schemathesis.config
import schemathesis.specs.openapi.schemas  # here, not in the middle of a test: a lazy import there is rewritten under its load
from fuzzing import MOST_GROWTH, REQUESTS, resident, tracebacks
from operated import Operated, operated, rollout_file
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import EngineFinished, NonFatalError, ScenarioFinished

from serving.admin import requests as r
from serving.admin.verbs import ROLLOUTS_START
from serving.config.principal import Principal, Role

KNOWN = {"name": ("ranker", "student"), "bundle": ("teacher", "student"), "endpoint": ("ranker",)}
ROUND_EXAMPLES = 100
"""Of each operation in one round of the long test: schemathesis keeps all cases of an operation until it is through."""
UNCHECKED = {
    "ignored_auth": "every verb by every caller is in test_admin_access",
    "positive_data_acceptance": "a name that fits the document need not exist",
    "missing_required_header": "no header is required",
    "use_after_free": "nothing is ever deleted",
    "ensure_resource_availability": "nothing is ever deleted",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "home") as made:
        ann = Principal("ann", Role.OPERATOR)
        made.admin.call(ROLLOUTS_START, r.RolloutFile(file=rollout_file()), ann)
        yield made


def checked(world: Operated, app: Any, examples: int, seed: int = 0) -> tuple[int, list[str]]:
    """Number of requests, and errors in their answers."""
    config = schemathesis.config.SchemathesisConfig(seed=seed)
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app, config=config)
    schema.hook("map_path_parameters")(_known_names)
    schema.config.update(headers={"authorization": f"Bearer {world.token(Role.OPERATOR)}"}, continue_on_failure=True)
    schema.config.generation.update(
        max_examples=examples, no_shrink=True, database="none", allow_extra_parameters=False
    )
    for name in UNCHECKED:
        getattr(schema.config.checks, name).enabled = False
    schema.config.phases.stateful.enabled = False
    schema.config.phases.coverage.enabled = False
    cases, wrong = 0, []
    for event in from_schema(schema.exclude(path_regex="watch$|readyz$|forget$|export$|backup$")).execute():
        if isinstance(event, NonFatalError):
            wrong.append(f"{event.label}: {event.info.format()}")
        if isinstance(event, ScenarioFinished):
            cases += len(event.recorder.cases)
            for checks in event.recorder.checks.values():
                wrong += [
                    f"{event.label}: {check.name}: {check.failure_info.failure.message} {check.failure_info.code_sample}"
                    for check in checks
                    if check.status is Status.FAILURE and check.failure_info is not None
                ]
    assert isinstance(event, EngineFinished)
    return cases, wrong


def _known_names(context: Any, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Use existing names half of the time; otherwise almost every request would end with "not found"."""
    for name, known in KNOWN.items():
        given = (parameters or {}).get(name)
        if parameters is not None and isinstance(given, str) and 1 <= len(given) <= 200:
            number = zlib.crc32(given.encode(errors="replace"))
            if number % 2:
                parameters[name] = known[number // 2 % len(known)]
    return parameters


def test_answers_are_what_the_document_says(world: Operated) -> None:
    cases, wrong = checked(world, world.app(), 10)
    assert not wrong, "\n".join(wrong)
    assert cases >= 200


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_thousands_of_answers_are_what_the_document_says(world: Operated) -> None:
    app = world.app()
    warm, wrong = checked(world, app, ROUND_EXAMPLES)
    before, cases, rounds = resident(), 0, 0
    with tracebacks() as seen:
        while cases < REQUESTS:
            rounds += 1
            more, faults = checked(world, app, ROUND_EXAMPLES, seed=rounds)
            assert more
            cases += more
            wrong += faults
    assert not wrong, "\n".join(wrong)
    assert not seen
    grown = resident() - before
    print(f"{warm + cases} requests in {rounds + 1} rounds, {grown >> 20} MiB more")
    assert grown < MOST_GROWTH
    assert world.made.store.audit("ranker")  # and the store is whole
