from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protos.inference import message
from serving.wire.delimited import detach, field

Request = message("ModelInferRequest")
RAW = 7


@given(
    raw=st.lists(st.binary(max_size=400), max_size=4),
    name=st.text(max_size=200),
    priority=st.integers(0, 2**64 - 1),
    share=st.floats(allow_nan=False),
    shape=st.lists(st.integers(0, 2**62), max_size=3),
)
def test_what_is_cut_out_and_what_is_left_are_the_whole(
    raw: list[bytes], name: str, priority: int, share: float, shape: list[int]
) -> None:
    request = Request(model_name=name, raw_input_contents=raw)
    request.parameters["priority"].uint64_param = priority
    request.parameters["share"].double_param = share
    request.inputs.add(name="ids", shape=shape)
    rest, found = detach(request.SerializeToString(), RAW)
    assert found == raw
    left = Request.FromString(rest)
    assert not left.raw_input_contents
    assert Request.FromString(rest + b"".join(field(RAW, value) for value in found)) == request


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_message_are_left_to_the_parser(data: bytes) -> None:
    rest, found = detach(data, RAW)
    if not found:
        assert rest == data
    else:
        assert len(rest) + sum(len(field(RAW, value)) for value in found) <= len(data)


@given(data=st.binary(max_size=400), cut=st.integers(1, 20))
def test_a_message_that_is_cut_off_is_returned_whole(data: bytes, cut: int) -> None:
    whole = field(1, b"ranker") + field(RAW, data)
    short = whole[: max(8, len(whole) - cut)]
    if short != whole[:8]:
        assert detach(short, RAW) == (short, [])
