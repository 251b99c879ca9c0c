"""Device that networks are trained on: the processor, or a GPU where there is one."""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.errors import InvalidInput

__all__ = ["DeviceChoice", "device_for"]

DeviceChoice = Literal["auto", "cpu", "cuda"]


def device_for(choice: DeviceChoice) -> torch.device:
    """`auto` is a GPU where torch finds one. Results are the same to the bit from run to run on the processor only.

    Raises:
        InvalidInput: a GPU is asked for and there is none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device is cuda, but torch finds no GPU here; choose auto or cpu", "device")
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")
