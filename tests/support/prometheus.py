"""Debian's Prometheus as a process of its own, scraping one server on 127.0.0.1 every second."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from machine import free_ports, until

__all__ = ["Prometheus"]


class Prometheus:
    """Runs while its block lasts.

    Args:
        folder: for its data and configuration.
        url: of the server, whose /metrics is scraped.
        rules: file of alerts.
    """

    def __init__(self, folder: Path, url: str, rules: Path) -> None:
        binary = shutil.which("prometheus")
        assert binary is not None, "prometheus is not installed: `make tools`, or apt-get install prometheus"
        folder.mkdir(parents=True)
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules.resolve())],
            "scrape_configs": [{"job_name": "baton", "static_configs": [{"targets": [urlsplit(url).netloc]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        self._command = [
            binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn",
        ]  # fmt: skip
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        self._began = time.time()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        until(self._answers, "Prometheus answers")
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: Any) -> Any:
        """Data of an answer of its API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False, timeout=60)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body}"
        return body["data"]

    def series(self, query: str) -> list[dict[str, Any]]:
        """Series of a query since the start."""
        found = self.get("query_range", query=query, start=self._began, end=time.time(), step="0.5")
        result: list[dict[str, Any]] = found["result"]
        return result

    def value(self, query: str) -> float | None:
        """Value of a query now, of one of its series; None: it has none."""
        result = self.get("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None
