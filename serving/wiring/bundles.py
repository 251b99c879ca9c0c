"""The repository of an installation, on this machine or behind a URL: the one place where configuration says which."""

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
    # What speaks to file systems of others is loaded only where there is one.
    from pipeline.bundle.remote import RemoteRepository

    return RemoteRepository(config.repository, config.bundles_url, config.bundles_options)
