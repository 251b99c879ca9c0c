"""Types of numpy arrays, named after their dtype: `F32` is an array of 32-bit floats, of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Floats = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
