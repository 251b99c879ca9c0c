"""Registry of architectures: names of the zoo, and a user's own classes."""

from __future__ import annotations

import importlib
import re

from pipeline.errors import InvalidInput
from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.dcnv2 import DCNv2
from transfer.model_zoo.deepfm import DeepFM
from transfer.model_zoo.dnn import DNN
from transfer.model_zoo.fibinet import FiBiNET
from transfer.model_zoo.fm import FM
from transfer.model_zoo.lr import LR

__all__ = ["DEFAULT_WIDTH", "ZOO", "parse_arch", "resolve"]

DEFAULT_WIDTH = 16

ZOO: dict[str, type[Architecture]] = {
    "lr": LR,
    "fm": FM,
    "dnn": DNN,
    "deepfm": DeepFM,
    "dcnv2": DCNv2,
    "fibinet": FiBiNET,
}


def parse_arch(text: str, default_width: int = DEFAULT_WIDTH) -> tuple[str, int]:
    """Split a name that may carry a width.

    Raises:
        InvalidInput: the width is not in 1..4096.

    >>> parse_arch("dcnv2-8"), parse_arch("deepfm"), parse_arch("my.models:Tower-32")
    (('dcnv2', 8), ('deepfm', 16), ('my.models:Tower', 32))
    """
    match = re.fullmatch(r"(.+?)-(\d+)", text)
    name, width = (match[1], int(match[2])) if match else (text, default_width)
    if not 1 <= width <= 4096:
        raise InvalidInput(f"architecture {text!r}: the width must be in 1..4096", "arch")
    return name if ":" in name else name.lower(), width


def resolve(arch: str) -> type[Architecture]:
    """The class behind a name of the zoo or behind `package.module:Class`.

    To be called only with a name from the local configuration or command line: importing runs code.

    Raises:
        InvalidInput: there is no such name, module or class, or it is no `Architecture`.
    """
    if ":" not in arch:
        known = ZOO.get(arch.lower())
        if known is None:
            raise InvalidInput(
                f"architecture {arch!r} is not in the zoo ({', '.join(ZOO)}); name your own as package.module:Class",
                "arch",
            )
        return known
    module, _, name = arch.partition(":")
    try:
        own = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"architecture {arch!r} cannot be imported: {error}", "arch") from None
    if not (isinstance(own, type) and issubclass(own, Architecture)):
        raise InvalidInput(f"architecture {arch!r} must be a subclass of transfer.model_zoo.Architecture", "arch")
    return own
