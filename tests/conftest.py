"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from serving.runtime.loopback import spare_from_proxies

spare_from_proxies()  # servers of tests are on this machine

# A busy machine is no finding, and a run finds what the run before it found.
settings.register_profile("baton", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")
