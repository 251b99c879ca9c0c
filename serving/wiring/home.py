"""Condition of a home before anything opens it: parts that are missing, damaged, or not of one time.

What is absent is created, so a home that has lost a part would start as a new one: without weights, or with ids that
nobody can verify. Everything here reads; how a whole home is copied and brought back is `serving.wiring.backup`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from serving.config import Config
from serving.rollout.sqlite_store import FORMAT_VERSION
from serving.wiring.databases import ADVICE, HomeDatabase
from serving.wiring.traffic_parts import TrafficParts

__all__ = ["check_home", "home_faults", "interrupted_restore", "learned_place"]

CHECK_S = 2.0
"""Time at a start for reading a database for damage; what is not read by then is not checked."""
OPENED = "token-open"
"""Verb of the audit for a home whose tokens were removed on purpose."""
_CONTROL_TABLES = frozenset({"endpoints", "rollouts", "audit"})


def check_home(config: Config) -> None:
    """Refuse a home that is half there.

    Raises:
        InvalidInput: it is; the message names what is missing and what to do.
    """
    faults = home_faults(config, CHECK_S)
    if faults:
        raise InvalidInput(f"home {config.home} is not whole: " + "; ".join(faults), "home")


def interrupted_restore(home: Path) -> Path:
    """File that is there while a backup is brought back into a home."""
    return home / "run" / "restoring"


def home_faults(config: Config, check_s: float) -> list[str]:
    """What is wrong with a home, each with what to do; empty: it is whole, or new.

    Args:
        check_s: longest time for the pages of each database, in seconds.
    """
    if not config.home.is_dir():
        return []
    if interrupted_restore(config.home).exists():
        return ["a restore into it was interrupted: run `baton restore` again with --replace"]
    control = None if config.state.url else HomeDatabase(config.control_db, _CONTROL_TABLES, FORMAT_VERSION)
    traffic = None if config.traffic.url else TrafficParts(config)
    faults = [fault for part in (control, traffic) if part is not None for fault in part.faults(check_s)]
    if not faults:
        faults = [*_secret(config, control, traffic), *_missing(config, control, traffic), *_tokens(config, control)]
    return faults


def _tokens(config: Config, control: HomeDatabase | None) -> Iterator[str]:
    """Tokens that the audit knows of, whose file is gone; homes remember it themselves since version 0.2."""
    if control is None or config.tokens.exists():
        return
    query = "SELECT verb FROM audit WHERE verb IN ('token-create', ?) ORDER BY seq DESC LIMIT 1"
    if control.rows(query, OPENED) == [("token-create",)]:
        yield (
            f"{config.tokens} is missing, and this home had tokens (without it everyone on this machine would be an operator): "
            f"{ADVICE}, make a new one (baton token create NAME --role operator), or open this machine on purpose: baton token "
            "open --reason '...'"
        )


def _secret(config: Config, control: HomeDatabase | None, traffic: TrafficParts | None) -> Iterator[str]:
    if config.state.url or config.secret.exists():
        return
    # Commands that only write into the audit (the first token of a new home) make a control.db before there is a secret.
    present = []
    if control is not None and control.rows("SELECT 1 FROM endpoints LIMIT 1"):
        present.append(control.path.name)
    if traffic is not None and traffic.used():
        present.append(traffic.name)
    if present:
        yield (
            f"secret.key is missing, and {' and '.join(present)} was made with it (a new one would refuse the labels of all "
            f"predictions and move users between the arms): {ADVICE}, or write 32 bytes of your own into {config.secret}"
        )


def _missing(config: Config, control: HomeDatabase | None, traffic: TrafficParts | None) -> Iterator[str]:
    answered = set() if traffic is None else traffic.answered()
    learned = learned_place(config.home / "worker")
    # With a snapshot lanes answer as before, and `baton state restore` fills the state again (`serving.rollout.identity`).
    if control is not None and not control.there and (learned or answered) and not config.state_snapshot.exists():
        yield f"control.db is missing, with weights, rollouts and audit: {ADVICE}, or move the whole home away"
    if control is not None and traffic is not None and control.there and not traffic.there:
        if learned or control.rows("SELECT 1 FROM rollouts LIMIT 1"):
            yield f"{traffic.name} is missing, with the evidence of rollouts and the worker's place: {ADVICE}, or move control.db and worker/ away, too"
        return
    if traffic is not None and learned > (last := traffic.last_seq()):
        yield f"worker/ has learned up to entry {learned} of a log that ends at {last}: bring back both from one backup"
    if control is not None and not config.bundles_url:
        yield from _bundles(config, control, answered)


def _bundles(config: Config, control: HomeDatabase, answered: set[object]) -> Iterator[str]:
    """Bundles of endpoints that have answered and cannot any more."""
    repository = Repository(config.repository)
    for name, body in control.rows("SELECT name, body FROM endpoints"):
        stable = json.loads(str(body))["stable"]["bundle"]
        if name in answered and not repository.versions(stable):
            yield f"{config.repository / stable} has no version, and endpoint {name} answers with it: {ADVICE}, or publish one"


def learned_place(folder: Path) -> int:
    """Highest place in the log of the worker's checkpoints; 0 where there is none."""
    places = [0]
    for path in folder.glob("*/*/state.json"):
        try:
            places.append(int(json.loads(path.read_text())["place"]["position"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(places)
