"""What an installation says of itself in Prometheus' terms.

`process`: the figures of one process, written to a file every second. `overview`: what only the control process can
tell, of rollouts, labels and who is alive. `exposition`: the files of all processes as the one answer to a scrape.
`triton`: some of it once more under Triton's names, for those who have dashboards.
"""

from serving.telemetry.exposition import METRICS_DIR, Format, merged
from serving.telemetry.process import Telemetry

__all__ = ["METRICS_DIR", "Format", "Telemetry", "merged"]
