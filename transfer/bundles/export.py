"""ONNX export of a network: traced once, afterwards only its weights are written.

Publishing every few seconds must not trace the network every time. So `DenseGraph` keeps the graph and replaces its
initialisers, which carry the names of the network's parameters. It knows nothing of tables or bundles.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.arrays import F32
from pipeline.bundle.bundle import CONTEXT, DENSE
from pipeline.bundle.graph import inputs_of
from pipeline.errors import BundleError, InvalidInput
from pipeline.inputs import REQUEST
from pipeline.model.probe import sample_of
from pipeline.model.probe_process import opened
from pipeline.model.proof import Unproved, prove
from pipeline.schema import FieldSpec, Schema
from transfer.click_model.network import DenseNetwork, SplitNetwork

__all__ = ["DenseGraph", "graph_weights", "quiet", "trace"]

OPSET_VERSION = 17


def trace(network: DenseNetwork, schema: Schema) -> dict[str, DenseGraph]:
    """The graphs of a network by the bundle's file: dense.onnx, and context.onnx where the architecture can split.

    Args:
        network: to export.
        schema: with widths set.

    Raises:
        InvalidInput: the architecture's `forward_split` gives other logits than its `forward`, or its rows influence each
            other.
    """
    graphs = {DENSE: DenseGraph(network, schema)}
    if type(network.body).can_split() and len({f.role for f in schema.fields}) > 1:
        split = SplitNetwork(network, schema)
        split.check()
        graphs[CONTEXT] = DenseGraph(split, schema)
    try:
        prove({file: opened(graph.write()) for file, graph in graphs.items()}, sample_of(schema, _vectors))
    except Unproved as error:
        raise InvalidInput(f"architecture {type(network.body).__name__}: {error}", "architecture") from None
    return graphs


class DenseGraph:
    """The ONNX graph of a network: inputs as `pipeline.bundle.graph.inputs_of` says, output `logit` float32 `[n]`.

    Args:
        network: to export.
        schema: with widths set.
    """

    def __init__(self, network: DenseNetwork | SplitNetwork, schema: Schema) -> None:
        self._network = network
        split = isinstance(network, SplitNetwork)
        self._plain = network.network if isinstance(network, SplitNetwork) else network
        self._inputs = inputs_of(schema, linear=self._plain.uses_linear, split=split)
        self._model = self._trace()
        known, held = set(_weights(network)), {t.name for t in self._model.graph.initializer}
        # A user's architecture may turn weights into other constants while it is traced; then only a new trace is right.
        self.refillable = held <= known and {name for name, _ in network.named_parameters()} <= held
        """Whether publishing again only has to write the weights."""

    def write(self) -> bytes:
        """The file's bytes with the network's present weights."""
        if not self.refillable:
            self._model = self._trace()
            return bytes(self._model.SerializeToString())
        weights = _weights(self._network)
        for tensor in self._model.graph.initializer:
            array = weights[tensor.name].detach().cpu().contiguous().numpy()
            if list(array.shape) != list(tensor.dims):
                raise BundleError(
                    f"weight {tensor.name!r} changed its shape after the network was exported", tensor.name
                )
            tensor.raw_data = array.tobytes()
        return bytes(self._model.SerializeToString())

    def _trace(self) -> onnx.ModelProto:
        network = self._network
        # Two requests of two candidates each.
        examples = {
            n: torch.tensor([0, 0, 1, 1]) if n == REQUEST else torch.zeros(4, w) for n, w in self._inputs.items()
        }
        examples |= {n: e[:2] for n, e in examples.items() if n.startswith("context_")}
        order = inspect.signature(network.forward).parameters
        arguments = tuple(examples.get(name) for name in order)
        names = [name for name in order if name in examples]
        rows = {name: "r" if name.startswith("context_") else "n" for name in [*names, "logit"]}
        training = self._plain.training
        network.eval()
        buffer = io.BytesIO()
        try:
            # The TorchScript exporter keeps parameters as initialisers under their own names, which is the point here;
            # the newer one takes seconds and writes several times as many nodes for the same network. Initialisers as
            # inputs, or two weights that happen to be equal now would become one.
            with quiet():
                torch.onnx.export(
                    network, arguments, cast(Any, buffer), dynamo=False, opset_version=OPSET_VERSION, do_constant_folding=False,
                    input_names=names, output_names=["logit"],
                    dynamic_axes={name: {0: dim} for name, dim in rows.items()}, keep_initializers_as_inputs=True,
                )  # fmt: skip
        finally:
            network.train(training)
        model = onnx.load_from_string(buffer.getvalue())
        traced = {value.name: value for value in model.graph.input}
        del model.graph.input[:]
        for name in names:
            kind = TensorProto.INT64 if name == REQUEST else TensorProto.FLOAT
            shape: list[str | int | None] = [rows[name]] if name == REQUEST else [rows[name], self._inputs[name]]
            # Inputs that the architecture ignores are dropped by the exporter, yet every caller sends them.
            model.graph.input.append(traced.get(name) or helper.make_tensor_value_info(name, kind, shape))
        return model


def _vectors(field: FieldSpec, count: int) -> tuple[F32, F32]:
    """Random vectors and weights of ids: whether rows influence each other does not depend on what was learned."""
    rng = np.random.default_rng(2)
    width = field.width or 0
    return 0.1 * rng.standard_normal((count, width), np.float32), 0.1 * rng.standard_normal(count, np.float32)


def graph_weights(model: onnx.ModelProto) -> dict[str, F32]:
    """Initialisers of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's words on its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
