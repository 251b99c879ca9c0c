"""Packed twins of the ranking messages, whose long arrays are bytes.

A packed `repeated sfixed64` and a `bytes` field are the same on the wire. So a twin of a message, with its long arrays
declared `bytes`, is parsed without a Python object per number, read by `np.frombuffer` and written from `tobytes`. A
message that splits an array or does not pack it (legal, but no client does so) is read wrongly; a message found faulty
must be parsed again as declared, by `original`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from protos.baton.ranking.v1 import ranking_pb2

__all__ = ["PackedRankRequest", "PackedRankResponse", "original"]

_Field = descriptor_pb2.FieldDescriptorProto
_ARRAYS = {_Field.TYPE_SFIXED64, _Field.TYPE_FIXED32, _Field.TYPE_FLOAT}


def _twins() -> tuple[Any, Any]:
    file = descriptor_pb2.FileDescriptorProto()
    ranking_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        for field in message.field:
            if field.label == _Field.LABEL_REPEATED and field.type in _ARRAYS:
                field.label = _Field.LABEL_OPTIONAL
                field.type = _Field.TYPE_BYTES
                field.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request, response = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in ("RankRequest", "RankResponse")
    )
    return request, response


PackedRankRequest: Any
"""RankRequest whose arrays of numbers are bytes, little endian."""
PackedRankResponse: Any
"""RankResponse, the same."""
PackedRankRequest, PackedRankResponse = _twins()


def original(data: bytes) -> ranking_pb2.RankRequest:
    """The RankRequest of these bytes as declared."""
    return ranking_pb2.RankRequest.FromString(data)
