"""Levels that `baton transfer` holds against each other: of the log, of the teacher, and of the traffic of its endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BatonError
from pipeline.traffic.record import unpack
from serving.cli.output import say, show_table
from serving.config import Config
from serving.wiring.state import stored_endpoints
from serving.wiring.traffic import open_traffic_log

if TYPE_CHECKING:
    from transfer.offline.side_by_side import SideBySide

__all__ = ["Traffic", "show_sides", "traffic_of", "warnings_of"]

ENTRIES, PAGE_ENTRIES = 4096, 256
LEAST_POSITIVES = 100
"""Fewer tell no level."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Newest labelled rows of an endpoint: its name, their number, the share of positives, and the mean score of the model that
    is asked about; None: it has scored none of them."""

    endpoint: str
    rows: int
    rate: float
    score: float | None


def traffic_of(config: Path, bundle: str) -> Traffic | None:
    """What the traffic log of an installation says of an endpoint that serves a bundle; None: there is none, or too little."""
    if not config.exists():
        return None
    try:
        settings = Config.load(config)
        arms: dict[str, Any] = {**settings.endpoints, **stored_endpoints(settings)}
        names = [name for name, endpoint in sorted(arms.items()) if endpoint.stable.bundle == bundle]
        return _read(settings, names[0], bundle) if names else None
    except BatonError as error:
        say(f"the traffic of {config} is not compared with: {error}")
        return None


def _read(settings: Config, endpoint: str, bundle: str) -> Traffic | None:
    if not settings.traffic.url and not settings.traffic_folder.exists():
        return None
    rows = 0
    counts, clicks, scored, scores = 0.0, 0.0, 0.0, 0.0
    with closing(open_traffic_log(settings)) as log:
        after = max(0, log.stats(log.now_ms()).last_seq - ENTRIES)
        while page := log.labelled(after, PAGE_ENTRIES):
            after = page[-1].seq
            for entry in page:
                if not len(entry.indices):
                    continue
                record = unpack(entry.record)
                fresh = np.isnan(entry.previous)
                if record.endpoint != endpoint or record.overridden or not fresh.any():
                    continue
                index, stands_for = entry.indices[fresh], 1.0 / record.inclusion_probability
                rows += len(index)
                counts += stands_for * len(index)
                clicks += stands_for * float(entry.labels[fresh].sum())
                known = [(record.bundle, record.scores), *((other.bundle, other.scores) for other in entry.other)]
                own = next((values[index] for name, values in known if name == bundle), None)
                if own is not None and np.isfinite(own).all():
                    scored += stands_for * len(index)
                    scores += stands_for * float(own.sum())
    if clicks < LEAST_POSITIVES:
        return None
    return Traffic(endpoint, rows, clicks / counts, scores / scored if scored else None)


def warnings_of(sides: SideBySide, traffic: Traffic | None) -> list[str]:
    """Sentences about levels that disagree."""
    from transfer.offline.side_by_side import Level, disagreements

    sampling = "if the log lacks rows, declare `sampling` in the data set descriptor"
    labels = Level("the labels of this log", sides.rate, sampling)
    calibrate = "if the teacher was trained on such a log, calibrate it: baton bundle publish DIR --calibrate DATA"
    found = disagreements(labels, Level("the teacher's scores on it", sides.mean("teacher"), calibrate))
    if traffic is not None:
        about = f"of the newest {traffic.rows:,} rows of endpoint {traffic.endpoint!r}"
        look = "see whether all exposed rows and all labels are sent (baton doctor)"
        found += disagreements(labels, Level(f"the labels {about}", traffic.rate, look))
        if traffic.score is not None:
            teacher = Level("the teacher's scores on this log", sides.mean("teacher"), sampling)
            found += disagreements(teacher, Level(f"its scores {about}", traffic.score, "see which rows the log holds"))
    return found


def show_sides(sides: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the figures of several models side by side."""
    keys = ("auc", "logloss", "bias", "pcoc", "rows", "positives")
    rows = [(key, *(figures[key] for figures in sides.values())) for key in keys]
    show_table("on the rows after, which neither was trained on here", ("what", *sides), rows)
