"""Prediction record: one packed blob per answered request, with all that training and analysis need.

Lanes send it to the shadow lane, too. Labels are not in it; they come later. What it says is in `record`, how it is written
in `layout`.
"""

from pipeline.traffic.record.finding import finder, lazy_finder
from pipeline.traffic.record.reading import made_by, read_head, unpack
from pipeline.traffic.record.record import ARMS, HeadScores, PredictionRecord, RecordHead, Texts
from pipeline.traffic.record.writing import pack

__all__ = [
    "ARMS",
    "HeadScores",
    "PredictionRecord",
    "RecordHead",
    "Texts",
    "finder",
    "lazy_finder",
    "made_by",
    "pack",
    "read_head",
    "unpack",
]
