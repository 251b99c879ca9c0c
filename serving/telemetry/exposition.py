"""Text formats of the metrics, and the merge of all processes' files into one answer to a scrape.

Processes write OpenMetrics. For Prometheus' older text format exemplars are removed and counters renamed. A scrape costs
the process that answers it one pass over the lines of a few files, and the others nothing. `rendered` takes a third of the
time of `prometheus_client`'s own writer, for names and labels that need no check: each lane writes once a second, while
requests wait for the interpreter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from pipeline.reports import report_files
from serving.runtime.status import FRESH_S

__all__ = ["METRICS_DIR", "Format", "merged", "rendered"]

METRICS_DIR = Path("run") / "metrics"
_EXEMPLAR = re.compile(r" # \{[^{}]*\} \S+(?: \S+)?$")
_OLD_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge"}


class Format(Enum):
    """Format of an answer; the value is its content type."""

    OPENMETRICS = CONTENT_TYPE_LATEST
    TEXT = CONTENT_TYPE_PLAIN_0_0_4

    @classmethod
    def of(cls, accept: str) -> Format:
        """Format of an `Accept` header: OpenMetrics where it is named, else the older text.

        >>> Format.of("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").name, Format.of("*/*").name
        ('OPENMETRICS', 'TEXT')
        """
        asked = (part.split(";")[0].strip() for part in accept.split(","))
        return cls.OPENMETRICS if "application/openmetrics-text" in asked else cls.TEXT


def rendered(families: Iterable[Metric]) -> str:
    """Families as OpenMetrics text."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.documentation)}")
        lines.append(f"# TYPE {family.name} {family.type}")
        for sample in family.samples:
            labels = ",".join([f'{name}="{_escaped(value)}"' for name, value in sorted(sample.labels.items())])
            where = f"{{{labels}}}" if labels else ""
            exemplar = _exemplar(sample.exemplar) if sample.exemplar else ""
            lines.append(f"{sample.name}{where} {_number(sample.value)}{exemplar}")
    lines.append("# EOF\n")
    return "\n".join(lines)


def _number(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in exemplar.labels.items())
    return f" # {{{labels}}} {_number(exemplar.value)} {exemplar.timestamp:.3f}"


def merged(
    folder: Path,
    form: Format = Format.TEXT,
    *,
    now: Callable[[], float] = time.time,
    stale_after: float = FRESH_S,
) -> bytes:
    """Figures of all processes as one text; files older than `stale_after` seconds are left out."""
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for path in report_files(folder, ".prom"):
        try:
            if abs(now() - path.stat().st_mtime) > stale_after:
                continue
            text = path.read_text()
        except FileNotFoundError:
            continue
        family = ""
        for line in text.splitlines():
            if line.startswith("# ") and line != "# EOF":
                _, what, family, rest = line.split(" ", 3)
                heads.setdefault(family, {}).setdefault(what, rest)
            elif line and line != "# EOF":
                samples.setdefault(family, []).append(line)
    named = [name for name in heads if samples.get(name)]
    write = _openmetrics if form is Format.OPENMETRICS else _text
    lines = [line for name in named for line in write(name, heads[name], samples[name])]
    if form is Format.OPENMETRICS:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _openmetrics(name: str, head: dict[str, str], samples: list[str]) -> list[str]:
    return [*(f"# {what} {name} {rest}" for what, rest in head.items()), *samples]


def _text(name: str, head: dict[str, str], samples: list[str]) -> list[str]:
    kind = head.get("TYPE", "unknown")
    if kind == "unknown" and name.startswith("nv_inference_"):
        return [f"# HELP {name} {head.get('HELP', '')}", f"# TYPE {name} counter", *samples]
    name = f"{name}_total" if kind == "counter" else name
    return [
        f"# HELP {name} {head.get('HELP', '')}",
        f"# TYPE {name} {_OLD_TYPES.get(kind, kind)}",
        *(_EXEMPLAR.sub("", line) if kind == "histogram" else line for line in samples),
    ]
