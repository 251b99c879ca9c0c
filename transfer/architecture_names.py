"""Names that a bundle may have as its architecture, without the classes: reading them takes no torch.

What stands behind a name is in `transfer.model_zoo.registry`.
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline.bundle.teachers import IMPORTED, REMOTE

__all__ = ["IMPORTED", "ZOO_NAMES", "is_known", "unknown_architecture"]

ZOO_NAMES = ("lr", "fm", "dnn", "deepfm", "dcnv2", "fibinet")


def is_known(architecture: str, own: Collection[str] = ()) -> bool:
    """Whether a bundle's architecture is of the zoo, imported, remote, or one of the classes that are named in `own`."""
    return architecture.lower() in ZOO_NAMES or architecture in (IMPORTED, REMOTE) or architecture in own


def unknown_architecture(architecture: str) -> str:
    """Why an architecture is refused, and how a class of one's own is named."""
    return (
        f"architecture {architecture[:200]!r} is not of the zoo ({', '.join(ZOO_NAMES)}). A name in a bundle is never "
        "imported: a class of your own is named in worker.architectures of baton.yaml or on the command line"
    )
