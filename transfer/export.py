"""A network as ONNX: exported once, afterwards only its weights are written anew.

Publishing every few seconds must not trace the network every time, so `DenseGraph` keeps the graph and replaces its
initialisers, which carry the names of the network's parameters. It knows nothing of tables or bundles.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.errors import BundleError
from pipeline.graph import inputs_of
from pipeline.schema import Schema
from transfer.network import Network

__all__ = ["DenseGraph", "graph_weights"]

OPSET = 17


class DenseGraph:
    """The ONNX graph of a network: inputs as `pipeline.graph.inputs_of` says, output `logit` float32 `[n]`.

    Args:
        network: to export.
        schema: with widths set.
    """

    def __init__(self, network: Network, schema: Schema) -> None:
        self._schema = schema
        self._inputs = inputs_of(schema, linear=network.uses_linear)
        self._model = self._trace(network)
        known, held = set(_weights(network)), {t.name for t in self._model.graph.initializer}
        # A user's architecture may turn weights into other constants while it is traced; then only a new trace is right.
        self.refillable = held <= known and {name for name, _ in network.named_parameters()} <= held
        """Whether publishing again only has to write the weights."""

    def write(self, network: Network) -> bytes:
        """The file's bytes with the network's present weights."""
        if not self.refillable:
            self._model = self._trace(network)
            return bytes(self._model.SerializeToString())
        weights = _weights(network)
        for tensor in self._model.graph.initializer:
            array = weights[tensor.name].detach().cpu().contiguous().numpy()
            if list(array.shape) != list(tensor.dims):
                raise BundleError(
                    f"weight {tensor.name!r} changed its shape after the network was exported", tensor.name
                )
            tensor.raw_data = array.tobytes()
        return bytes(self._model.SerializeToString())

    def _trace(self, network: Network) -> onnx.ModelProto:
        examples = {name: torch.zeros(2, width) for name, width in self._inputs.items()}
        arguments = tuple(examples.get(name) for name in ("embeddings", "linear", "numbers"))
        names = [name for name in ("embeddings", "linear", "numbers") if name in examples]
        training = network.training
        network.eval()
        buffer = io.BytesIO()
        try:
            # The TorchScript exporter keeps parameters as initialisers under their own names, which is the point here;
            # the newer one takes seconds and writes several times as many nodes for the same network.
            with _quiet():
                torch.onnx.export(
                    network, arguments, cast(Any, buffer), dynamo=False, opset_version=OPSET, do_constant_folding=False,
                    input_names=names, output_names=["logit"],
                    dynamic_axes={name: {0: "n"} for name in [*names, "logit"]},
                )  # fmt: skip
        finally:
            network.train(training)
        model = onnx.load_from_string(buffer.getvalue())
        given = {value.name for value in model.graph.input}
        for (
            name
        ) in names:  # inputs that the architecture ignores are dropped by the exporter, yet every caller sends them
            if name not in given:
                shape: list[str | int | None] = ["n", self._inputs[name]]
                model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return model


def graph_weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """Initialisers of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
