"""Lua scripts that change the traffic log in Redis, and the layout of its keys.

A script runs whole or not at all, for readers and in the append-only file alike. Each is a file in `lua/`, which starts
with its arguments and its result.

Keys, all under `traffic:`

    predictions   stream, id SEQ-0: fields i (prediction id), e (endpoint), r (routing hash); group `join`: the watermark
    labelled      stream, id SEQ-0: fields i, r (revision), m (rows); one group per reader: its position
    p:ID          hash, one prediction with all that belongs to it: seq, n, ms, closes, record, changes, mature, scores, ...;
                  `revision` once it is closed; before the prediction is written only parked feedback and scores
    ids           sorted set of the ids of all written predictions, which sort by time
    unscored, late, parked, orphans   sorted sets of ids: by seq; by time of the next look; feedback and scores without a
                  prediction
    counters, forgotten, format

The rules are not here: `log` reads a prediction, asks `feedback` and `join`, and sends the result together with the
`version` that it read. A script leaves a prediction alone that has changed since, and returns its id.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CLAMP", "FEEDBACK", "FORGET", "INSERT", "OPEN", "PLACE", "PREFIX", "RETAIN", "SCORES", "SETTLE"]

PREFIX = "traffic:"


def _script(*names: str) -> str:
    return "\n".join((Path(__file__).parent / "lua" / f"{name}.lua").read_text() for name in names)


CLAMP = _script("clamp")
FEEDBACK = _script("feedback")
FORGET = _script("remove", "forget")
INSERT = _script("remove", "insert")
OPEN = _script("open")
PLACE = _script("place")
RETAIN = _script("remove", "retain")
SCORES = _script("scores")
SETTLE = _script("settle")
