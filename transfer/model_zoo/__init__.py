"""The architectures that ship with Baton, one file each, and their registry.

A user's own architecture is a subclass of `Architecture` named as `package.module:Class` in the local configuration.
Next stop: `transfer.click_model.network`, which puts an architecture behind the inputs that every bundle's network has.
"""

from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.dcnv2 import DCNv2
from transfer.model_zoo.deepfm import DeepFM
from transfer.model_zoo.dnn import DNN
from transfer.model_zoo.fibinet import FiBiNET
from transfer.model_zoo.fm import FM
from transfer.model_zoo.lr import LR
from transfer.model_zoo.registry import ZOO, parse_arch, resolve

__all__ = ["DNN", "FM", "LR", "ZOO", "Architecture", "DCNv2", "DeepFM", "FiBiNET", "parse_arch", "resolve"]
