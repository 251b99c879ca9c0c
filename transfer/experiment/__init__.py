"""Experiments: ways to a successor of a teacher, compared on the same rows.

`crossadapt` is the entry point; `runs` are the ways, `learners` learn a batch, `report` and `plots` write the results.
"""

from transfer.experiment.crossadapt import Point, RunResult, Split, crossadapt
from transfer.experiment.report import ExperimentResults, write_report
from transfer.experiment.runs import RUNS, STANDARD

__all__ = ["RUNS", "STANDARD", "ExperimentResults", "Point", "RunResult", "Split", "crossadapt", "write_report"]
