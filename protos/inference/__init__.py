"""Messages of the Open Inference Protocol in a descriptor pool of their own.

The protocol's package is called `inference` in every client library too, and one process must not hold two different
descriptions of it in one pool. So they are built here from `inference.binpb` (made by `make protos`), apart from the
default pool: bytes are interchangeable, classes are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["POOL", "SERVICE", "data_type", "message", "methods"]

SERVICE = "inference.GRPCInferenceService"

POOL = descriptor_pool.DescriptorPool()
_files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("inference.binpb").read_bytes())
for _file in _files.file:
    POOL.Add(_file)


def message(name: str) -> Any:
    """The class of a message, for example `message("ModelInferRequest")`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


def methods() -> dict[str, tuple[Any, Any]]:
    """Method name -> (request class, response class) of the service."""
    service = POOL.FindServiceByName(SERVICE)
    return {m.name: (message(m.input_type.name), message(m.output_type.name)) for m in service.methods}


def data_type(name: str) -> int:
    """Number of a DataType, for example `data_type("TYPE_FP32")`."""
    return int(POOL.FindEnumTypeByName("inference.DataType").values_by_name[name].number)
