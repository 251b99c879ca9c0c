"""Registry of architectures: those of the zoo, and a user's own classes.

The only file of this package that imports by name. Names that are imported come from the configuration or the command
line; a name from data (a manifest, a training state, a checkpoint) is looked up among them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable

from pipeline.errors import InvalidInput
from transfer.architecture_names import unknown_architecture
from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.dcnv2 import DCNv2
from transfer.model_zoo.deepfm import DeepFM
from transfer.model_zoo.dnn import DNN
from transfer.model_zoo.fibinet import FiBiNET
from transfer.model_zoo.fm import FM
from transfer.model_zoo.lr import LR

__all__ = ["DEFAULT_WIDTH", "MOST_WIDTH", "ZOO", "ZOO_ALONE", "Architectures", "parse_arch"]

DEFAULT_WIDTH, MOST_WIDTH = 16, 4096

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
    if not 1 <= width <= MOST_WIDTH:
        raise InvalidInput(f"architecture {text!r}: the width must be in 1..{MOST_WIDTH}", "arch")
    return name if ":" in name else name.lower(), width


class Architectures:
    """Architectures that may be built: all of the zoo, and the classes that are named here.

    Args:
        own: `package.module:Class` from the configuration or the command line, never from data: importing runs code.
            Names of the zoo are allowed.
        tolerant: keep quiet of a class that cannot be imported until it is needed.

    Raises:
        InvalidInput: there is no such name, module or class, or it is no `Architecture`.
    """

    def __init__(self, own: Iterable[str] = (), *, tolerant: bool = False) -> None:
        self._broken: dict[str, InvalidInput] = {}
        self._known: dict[str, type[Architecture]] = dict(ZOO)
        self._own: tuple[str, ...] = tuple(name for name in own if name.lower() not in ZOO)
        for name in self._own:
            try:
                self._known[name] = _imported(name)
            except InvalidInput as error:
                if not tolerant:
                    raise
                self._broken[name] = error

    def __reduce__(self) -> tuple[type[Architectures], tuple[tuple[str, ...]]]:
        """Processes that score rows are sent the names that this one was given."""
        return Architectures, (tuple(name for name in self._own if name not in self._broken),)

    def find(self, arch: str) -> type[Architecture]:
        """The class behind a name. Nothing is imported.

        Raises:
            InvalidInput: it is neither of the zoo nor one of the named classes, or that class cannot be imported.

        >>> Architectures().find("fm").__name__
        'FM'
        """
        known = self._known.get(arch) or self._known.get(arch.lower())
        if arch in self._broken:
            raise self._broken[arch]
        if known is None:
            named = f"; named are {', '.join(self._own)}" if self._own else ""
            raise InvalidInput(unknown_architecture(arch) + named, "architecture")
        return known


def _imported(name: str) -> type[Architecture]:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InvalidInput(
            f"architecture {name!r} is not in the zoo ({', '.join(ZOO)}); name your own as package.module:Class", "arch"
        )
    try:
        own = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever importing a user's module raises
        raise InvalidInput(
            f"architecture {name!r} cannot be imported: {error}; install its package or put it on PYTHONPATH", "arch"
        ) from None
    if not (isinstance(own, type) and issubclass(own, Architecture)):
        raise InvalidInput(f"architecture {name!r} must be a subclass of transfer.model_zoo.Architecture", "arch")
    return own


ZOO_ALONE = Architectures()
"""What a name may be where nobody has named a class."""
