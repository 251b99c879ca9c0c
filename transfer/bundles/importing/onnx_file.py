"""ONNX file of a team: read with its external data, and brought up to the versions that the import's own nodes need.

A model above 2 GB keeps its weights in files beside it. These are read from the model's own folder alone, whatever the
working directory is, and an array stays on disk until it is asked for: tables that are lifted out of the graph are never
in memory as a whole. Next stop: `transfer.bundles.importing.lifting`, `transfer.bundles.importing.graph`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter

from pipeline.arrays import Array
from pipeline.bundle.graph import NETWORK_BYTES, nodes_of, read_network, tensors_of
from pipeline.errors import BundleError

__all__ = ["OnnxFile"]

OPSET_VERSION, LEAST_OPSET_VERSION, IR_VERSION = 17, 11, 8
"""Operator set that older models are converted to, the oldest that needs no conversion, and the format that goes with it."""
_MAIN = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A model and the folder of its external data.

    Args:
        model: external tensors are not loaded.
        path: of the file.
    """

    model: ModelProto
    path: Path

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """The model in a file; its external tensors are looked up, not read.

        Raises:
            BundleError: it is no ONNX file, or a tensor lies outside the file's folder or is not as large as it says.
        """
        found = cls(read_network(path), path)
        for tensor in found.external():
            found._place(tensor)
        return found

    def external(self) -> list[TensorProto]:
        """Tensors whose data lies beside the file."""
        return [t for t in tensors_of(self.model) if t.data_location == TensorProto.EXTERNAL]

    def array(self, tensor: TensorProto) -> Array:
        """A tensor's numbers; of an external one a view of the mapped file, read-only.

        Raises:
            BundleError: it lies outside the model's folder.
        """
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        file, offset = self._place(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if not math.prod(tensor.dims):
            return np.zeros(tuple(tensor.dims), dtype)
        return np.memmap(file, dtype, "r", offset, tuple(tensor.dims))

    def inside(self) -> ModelProto:
        """The model with all its weights in one message, its operators and format no older than what the import adds.

        Raises:
            BundleError: it is above 2 GB as a whole, or its operators cannot be converted.
        """
        total = self.model.ByteSize() + sum(math.prod(t.dims) * _item_bytes(t) for t in self.external())
        if total > NETWORK_BYTES:
            raise BundleError(
                f"{self.path}: {total:,} bytes of weights are left in the network after its tables were taken out; at most "
                f"{NETWORK_BYTES:,} are served. Name the fields of its integer inputs with an `index`, so that its tables "
                "become the bundle's",
                self.path.name,
            )
        model = ModelProto.FromString(self.model.SerializeToString())
        for tensor in [t for t in tensors_of(model) if t.data_location == TensorProto.EXTERNAL]:
            raw = np.ascontiguousarray(self.array(tensor)).tobytes()
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
            tensor.raw_data = raw
        return self._modern(model)

    def _modern(self, model: ModelProto) -> ModelProto:
        versions = {opset.domain: opset.version for opset in model.opset_import}
        own = max((versions[d] for d in _MAIN if d in versions), default=0)
        if not any(node.domain in _MAIN for node in nodes_of(model)):
            others = [opset for opset in model.opset_import if opset.domain not in _MAIN]
            kept = [helper.make_opsetid(o.domain, o.version) for o in others]
            del model.opset_import[:]
            model.opset_import.extend([*kept, helper.make_opsetid("", max(own, OPSET_VERSION))])
        elif own < LEAST_OPSET_VERSION:
            try:
                model = version_converter.convert_version(model, OPSET_VERSION)
            except Exception as error:  # the converter raises what its C++ raises
                raise BundleError(
                    f"{self.path}: its operators are of version {own or 'unknown'}; {LEAST_OPSET_VERSION} is the oldest that "
                    f"is served, and conversion to {OPSET_VERSION} failed: {str(error)[:300]}. Export it again with a newer "
                    "opset",
                    self.path.name,
                ) from None
        model.ir_version = max(model.ir_version, IR_VERSION)
        return model

    def _place(self, tensor: TensorProto) -> tuple[Path, int]:
        """File and first byte of an external tensor."""
        said = {entry.key: entry.value for entry in tensor.external_data}
        where, folder = said.get("location", ""), os.path.realpath(self.path.parent)
        file = os.path.realpath(os.path.join(folder, where))
        name = f"{self.path}: tensor {tensor.name!r}"
        if os.path.isabs(where) or not file.startswith(folder + os.sep):
            raise BundleError(
                f"{name} is said to be in {where!r}, outside the model's folder; only files of that folder are read",
                self.path.name,
            )
        if not os.path.isfile(file):
            raise BundleError(f"{name} is said to be in {where!r}, which is no file beside the model", self.path.name)
        wanted = math.prod(tensor.dims) * _item_bytes(tensor)
        try:
            offset, length = int(said.get("offset") or 0), int(said.get("length") or wanted)
        except ValueError:
            raise BundleError(f"{name} has an offset or length that is no number", self.path.name) from None
        size = os.path.getsize(file)
        if min(tensor.dims, default=0) < 0 or length != wanted or not 0 <= offset <= size - wanted:
            raise BundleError(
                f"{name} of {list(tensor.dims)} takes {wanted:,} bytes; {where!r} has {size:,}, and {length:,} from byte "
                f"{offset:,} on are said to be it",
                self.path.name,
            )
        return Path(file), offset


def _item_bytes(tensor: TensorProto) -> int:
    try:
        return int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except (KeyError, TypeError):
        raise BundleError(
            f"tensor {tensor.name!r} has a type that cannot lie outside the file: {tensor.data_type}", tensor.name
        ) from None
