"""Repository of an installation, as configured: on this machine or behind a URL."""

from __future__ import annotations

from pipeline.bundle.versions import Repository
from serving.config import Config

__all__ = ["open_repository"]


def open_repository(config: Config) -> Repository:
    """The repository of bundles.

    Raises:
        InvalidInput: the URL's file system is unknown or needs a package that is not installed.
    """
    if not config.bundles_url:
        return Repository(config.repository)
    # The packages of remote file systems are imported only where one is configured.
    from pipeline.bundle.remote import RemoteRepository

    return RemoteRepository(config.repository, config.bundles_url, config.bundles_options)
