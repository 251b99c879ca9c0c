"""Experiments: ways to a successor of a teacher, side by side on the same rows.

`crossadapt` is the door; `runs` are the ways, `learners` what they do with a batch, `report` and `plots` what is left of it.
"""

from transfer.experiment.crossadapt import Point, RunResult, Split, crossadapt
from transfer.experiment.report import Outcome, write_report
from transfer.experiment.runs import RUNS, STANDARD

__all__ = ["RUNS", "STANDARD", "Outcome", "Point", "RunResult", "Split", "crossadapt", "write_report"]
