"""Metrics of an installation in Prometheus' format.

`process`: figures of one process, written to a file every second. `overview`: figures of rollouts, labels and processes,
from the control process. `exposition`: the files of all processes as one answer to a scrape. `triton`: some figures under
Triton's names, for existing dashboards.
"""

from serving.telemetry.exposition import METRICS_DIR, Format, merged
from serving.telemetry.process import Telemetry

__all__ = ["METRICS_DIR", "Format", "Telemetry", "merged"]
