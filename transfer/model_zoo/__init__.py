"""The architectures that ship with Baton, one file each, and their registry.

A user's own architecture is a subclass of `Architecture`, named as `package.module:Class` in the configuration or on the
command line.
Next stop: `transfer.click_model.network`, which puts an architecture behind the inputs that every bundle's network has.
"""

from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.dcnv2 import DCNv2
from transfer.model_zoo.deepfm import DeepFM
from transfer.model_zoo.dnn import DNN
from transfer.model_zoo.fibinet import FiBiNET
from transfer.model_zoo.fm import FM
from transfer.model_zoo.lr import LR
from transfer.model_zoo.registry import ZOO, ZOO_ALONE, Architectures, parse_arch

__all__ = [
    "DNN", "FM", "LR", "ZOO", "ZOO_ALONE", "Architecture", "Architectures", "DCNv2", "DeepFM", "FiBiNET", "parse_arch",
]  # fmt: skip
