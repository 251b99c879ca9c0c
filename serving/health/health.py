"""Health of an installation from a reading of it."""

from __future__ import annotations

from serving.health import endpoints, machine
from serving.health.facts import Health
from serving.health.reading import Reading

__all__ = ["health_of"]

PARTS = (
    machine.process_facts,
    machine.state_facts,
    endpoints.endpoint_facts,
    endpoints.bias_facts,
    endpoints.label_facts,
    endpoints.rollout_facts,
    endpoints.approval_facts,
    endpoints.freeze_facts,
    machine.worker_facts,
    machine.log_facts,
    machine.store_facts,
)


def health_of(reading: Reading) -> Health:
    """All facts, in the order in which they are read."""
    facts = [fact for part in PARTS for fact in part(reading)]
    return Health(reading.now_ms, reading.source, facts)
