"""Commands. Here is what libraries read from the environment when they are loaded, so it is set before the others are."""

from pipeline.host import limit_threads
from serving.runtime.loopback import spare_from_proxies

limit_threads()
spare_from_proxies()
