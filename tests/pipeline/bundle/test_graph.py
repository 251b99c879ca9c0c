from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from handmade import SCHEMA, write_network
from onnx import TensorProto, helper

from pipeline.bundle.graph import check_graph, inputs_of
from pipeline.bundle.network_parts import parts_of
from pipeline.errors import BundleError

WIDE = SCHEMA.with_width(4)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "dense.onnx"
    write_network(path, WIDE, linear=True)
    return path


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_standard_network_passes(graph: Path) -> None:
    check_graph(graph, WIDE, linear=True)
    assert inputs_of(WIDE, linear=True) == {"embeddings": 16, "linear": 4, "numbers": 2}
    assert inputs_of(WIDE, linear=False) == {"embeddings": 16, "numbers": 2}


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def custom_inside_a_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Evil", [], ["x"], domain="com.evil")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["missing"], ["y"], then_branch=inner, else_branch=inner))


def custom_inside_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Evil", ["a"], ["b"], domain="com.evil")
    model.functions.append(helper.make_function("mine", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_a_constant(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["x"], value=helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    external_tensor = node.attribute[0].t
    external_tensor.data_location = TensorProto.EXTERNAL
    external_tensor.external_data.add(key="location", value="/etc/passwd")
    function = helper.make_function("mine", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    model.functions.append(function)


def other_dimensions(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 20])


def dense_once_unpacked(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("spread", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "vectors"


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "probability"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (custom, "com.evil"),
        (custom_inside_a_branch, "com.evil"),
        (custom_inside_a_function, "com.evil"),
        (external, "outside the file"),
        (external_in_a_constant, "outside the file"),
        (other_dimensions, "4,398,046,511,104 bytes"),
        (dense_once_unpacked, "spread"),
        (other_input, "'vectors'"),
        (other_output, "'probability'"),
    ],
)
def test_what_may_not_be_served(graph: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    with pytest.raises(BundleError, match=message) as refused:
        check_graph(changed(graph, change), WIDE, linear=True)
    assert refused.value.field == "dense.onnx"


@pytest.mark.parametrize(
    "body", [b"\x0a\x00", b"\x2a\x00", b"\x0a\x02\x2a\x00"], ids=["nodes", "tensors", "attributes"]
)
def test_two_bytes_that_become_an_object_are_counted_before_they_are_read(graph: Path, body: bytes) -> None:
    count = 1 << 20
    graph.write_bytes(b"\x3a" + _varint(len(body) * count) + body * count)
    with pytest.raises(BundleError, match=r"parts in [0-9,]+ bytes, which would take \d\d\d"):
        check_graph(graph, WIDE, linear=True)


def _varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + _varint(number >> 7) if number > 127 else bytes([number])


def test_parts_are_counted_as_the_parser_finds_them(graph: Path) -> None:
    model = onnx.load(str(graph))
    own = sum(1 + len(node.attribute) for node in model.graph.node) + len(model.graph.initializer)
    messages, texts = parts_of(graph.read_bytes())
    assert own < messages < own + 100
    assert texts >= sum(len(node.input) + len(node.output) for node in model.graph.node)
    deep = b""
    for _ in range(60):
        deep = b"\x0a" + _varint(len(deep) + 4) + b"\x2a" + _varint(len(deep) + 2) + b"\x32" + _varint(len(deep)) + deep
    for broken in (b"\x3a\x05\x0a", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b", b"\x08", deep[:9]):
        with pytest.raises(ValueError, match="end"):
            parts_of(broken)


def test_inputs_follow_the_schema(graph: Path) -> None:
    with pytest.raises(BundleError, match="linear"):
        check_graph(graph, WIDE, linear=False)
    graph.write_bytes(b"\xff\xfe not a graph")
    with pytest.raises(BundleError, match="ONNX"):
        check_graph(graph, WIDE, linear=True)


def test_the_split_layout_has_inputs_of_its_own(graph: Path) -> None:
    assert inputs_of(WIDE, linear=True, split=True) == {
        "context_embeddings": 8,
        "context_linear": 2,
        "context_numbers": 1,
        "candidate_embeddings": 8,
        "candidate_linear": 2,
        "candidate_numbers": 1,
        "request": 0,
    }
    with pytest.raises(BundleError, match="candidate_embeddings"):
        check_graph(graph, WIDE, linear=True, split=True)


def narrow(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 15


def double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize("change", [narrow, double])
def test_inputs_of_another_shape_or_type_are_refused(graph: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    with pytest.raises(BundleError, match=r"'embeddings' is not float32 \[n, 16\]"):
        check_graph(changed(graph, change), WIDE, linear=True)
