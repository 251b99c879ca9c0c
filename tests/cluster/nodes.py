"""A real Ray cluster of several nodes on this machine, for a scenario that has a network of its own."""

from __future__ import annotations

from typing import Any

from ray.cluster_utils import Cluster


class Nodes:
    """A head of 2 CPUs and workers of 3, without dashboard and with small object stores."""

    def __init__(self, workers: int) -> None:
        self._made = 0
        self.cluster = Cluster(initialize_head=True, head_node_args=self._arguments(2))
        self.workers = [self.add() for _ in range(workers)]

    def add(self) -> Any:
        return self.cluster.add_node(**self._arguments(3))

    def _arguments(self, cpus: int) -> dict[str, Any]:
        self._made += 1
        agents = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
        ports = {name: 20_000 + 100 * i + self._made for i, name in enumerate(agents)}
        return {
            "num_cpus": cpus, "object_store_memory": 80 << 20, "include_dashboard": False,
            "node_ip_address": "127.0.0.1", **ports,
        }  # fmt: skip
