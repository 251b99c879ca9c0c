"""Lua scripts that change the traffic log in Redis, and the layout of its keys.

A script runs whole or not at all, for readers and in the append-only file alike. Each is a file in `lua/`, which starts
with its arguments and its result.

Keys, all under `traffic:`

    predictions   stream, id SEQ-0: fields i (prediction id), e (endpoint), r (routing hash); group `join`: the watermark
    labelled      stream, id SEQ-0: fields i, r (revision), m (rows); one group per reader: its position
    p:ID          hash, one prediction with all that belongs to it: seq, n, ms, closes, endpoint, record, changes, mature, scores, ...;
                  `revision` once it is closed; before the prediction is written only parked feedback and scores
    p:~KEY        hash, feedback that waits for the prediction with this key of a request id (`pipeline.traffic.requests`)
    r:KEY         sorted set of the ids of the predictions with this key
    ids           sorted set of the ids of all written predictions, which sort by time
    unscored, late, parked, orphans   sorted sets of ids: by seq; by time of the next look; feedback and scores without a
                  prediction
    waiting       sorted set of the ~KEYs, by the time when their first feedback came
    counters, forgotten, format

`counters` has totals, the last numbers of both streams, and `begun`, the number after which they began. A script that adds
something begins with `whole`, which refuses a database that is no log any more.

The rules are not here: `log` reads a prediction, asks `feedback` and `join`, and sends the result together with the
`version` that it read. A script leaves a prediction alone that has changed since, and returns its id.
"""

from __future__ import annotations

from pipeline.redis.scripts import script

__all__ = ["FEEDBACK", "FORGET", "INSERT", "OPEN", "PLACE", "PREFIX", "RETAIN", "SCORES", "SETTLE", "TIMES"]

PREFIX = "traffic:"

FEEDBACK = script(__file__, "whole", "feedback")
FORGET = script(__file__, "remove", "forget")
INSERT = script(__file__, "whole", "remove", "insert")
OPEN = script(__file__, "open")
PLACE = script(__file__, "whole", "place")
RETAIN = script(__file__, "remove", "retain")
SCORES = script(__file__, "whole", "scores")
SETTLE = script(__file__, "whole", "settle")
TIMES = script(__file__, "times")
