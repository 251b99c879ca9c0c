"""Health of an installation: one list of facts for `baton health`, `GET /api/v1/health` and the console's first page.

`reading` collects what processes, stores and state say, `health` makes the facts of it. The facts are true whichever of the
sources does not answer: what cannot be known is said, and is not taken for good or bad.
"""

from serving.health.facts import Fact, Health, Level
from serving.health.health import health_of
from serving.health.reading import Reading

__all__ = ["Fact", "Health", "Level", "Reading", "health_of"]
