"""The dense network of a model: one architecture behind the inputs that every bundle's network has.

Its inputs are raw numbers, so transform, fill and missing flag are part of the exported graph, the same for all
callers. Next stop: `transfer.click_model.model` (training it) and `transfer.bundles.export` (writing it as ONNX).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.arrays import F32
from pipeline.errors import DataError, InvalidInput
from pipeline.inputs import Layout
from pipeline.schema import Schema
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.model_zoo.layers import SplitHalf, SplitOutput

__all__ = ["DenseNetwork", "NumberTransform", "SplitNetwork", "shift", "steady"]


class NumberTransform(nn.Module):
    """Raw numbers `[n, M]` to `[n, 2M]`: standardised values, then missing flags.

    A field with transform `log1p` goes through `sign(x) * log(1 + |x|)` first. Mean and deviation are those of the rows
    given to `fit`; a missing value (NaN) becomes 0, the mean, and raises its flag.
    """

    mean: Tensor
    scale: Tensor
    logged: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        count = len(schema.numbers)
        self._names = [f.name for f in schema.numbers]
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        logged = torch.tensor([float(f.transform == "log1p") for f in schema.numbers])
        self.register_buffer("logged", logged, persistent=False)

    def fit(self, numbers: F32) -> None:
        """Take mean and deviation from rows float32 `[n, M]`; a column that is always missing or constant keeps scale 1.

        Raises:
            DataError: a number is infinite.
        """
        x = torch.from_numpy(np.ascontiguousarray(numbers))
        infinite = torch.isinf(x).any(0)
        if bool(infinite.any()):
            name = self._names[int(infinite.nonzero()[0])]
            raise DataError(f"number {name!r} is infinite; leave the value empty where it is missing", name)
        x = _transformed(x, self.logged).double()
        known = ~torch.isnan(x)
        count = known.sum(0).clamp(min=1)
        filled = torch.where(known, x, torch.zeros_like(x))
        mean = filled.sum(0) / count
        deviation = torch.where(known, x - mean, torch.zeros_like(x)).square().sum(0).div(count).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, 1.0 / deviation.clamp(min=1e-6), torch.ones_like(deviation)))

    def forward(self, numbers: Tensor, columns: Tensor | None = None) -> Tensor:
        """All numbers `[n, M]`, or some columns of them, int64 `[k]`, given as `[n, k]`."""
        mean, scale, logged = (
            t if columns is None else t.index_select(0, columns) for t in (self.mean, self.scale, self.logged)
        )
        missing = torch.isnan(numbers)
        value = (_transformed(numbers, logged) - mean) * scale
        return torch.cat([torch.where(missing, torch.zeros_like(value), value), missing.to(value.dtype)], 1)


def _transformed(numbers: Tensor, logged: Tensor) -> Tensor:
    # Mixed by weights instead of a branch: NaN stays NaN either way and the graph stays short.
    by_log = torch.sign(numbers) * torch.log(1.0 + torch.abs(numbers))
    return torch.where(logged > 0, by_log, numbers)


class DenseNetwork(nn.Module):
    """`embeddings` [n, F * d], `linear` [n, F], `numbers` [n, M] raw -> `logit` [n].

    Args:
        schema: fields; widths are taken from `width`.
        arch: name of the architecture.
        width: length of a field's vector.
        hyperparameters: for the architecture.
        architectures: what `arch` may name.

    Raises:
        InvalidInput: `arch` is not among them, the schema has no field with vectors, or the architecture refuses its hyperparameters.
    """

    def __init__(
        self,
        schema: Schema,
        arch: str,
        width: int,
        hyperparameters: dict[str, Any],
        architectures: Architectures = ZOO_ALONE,
    ) -> None:
        super().__init__()
        kind = architectures.find(arch)
        if not schema.embedded:
            raise InvalidInput("the schema has only numbers; add at least one field of kind id or bag", "fields")
        self.fields, self.width = len(schema.embedded), width
        self.transform = NumberTransform(schema) if schema.numbers else None
        try:
            self.body = kind(self.fields, width, 2 * len(schema.numbers), **hyperparameters)
        except TypeError as error:
            raise InvalidInput(f"architecture {arch!r}: {error}", "hyperparameters") from None
        self.uses_linear = kind.uses_linear

    def forward(self, embeddings: Tensor, linear: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        vectors = embeddings.view(-1, self.fields, self.width)
        if self.transform is None or numbers is None:
            return self._logit(vectors, linear, embeddings.new_zeros(embeddings.shape[0], 0))
        return self._logit(vectors, linear, self.transform(numbers))

    def _logit(self, vectors: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        logit: Tensor = self.body(vectors, linear, numbers)
        return logit


def _probe(network: DenseNetwork) -> tuple[DenseNetwork, tuple[Tensor, Tensor | None, Tensor | None]]:
    """A copy of a network and some random rows for it."""
    random, rows = torch.Generator().manual_seed(0), 64
    linear = torch.randn(rows, network.fields, generator=random) if network.uses_linear else None
    numbers = None if network.transform is None else torch.randn(rows, len(network.transform.mean), generator=random)
    return copy.deepcopy(network).cpu(), (
        torch.randn(rows, network.fields * network.width, generator=random),
        linear,
        numbers,
    )


def shift(network: DenseNetwork, by: float) -> bool:
    """Add a number to all logits of a network, in its own bias; False, with nothing changed, where it has none.

    The bias is found by trial on random rows, so that an architecture need not name it.
    """
    probe, inputs = _probe(network)
    probe.eval()
    with torch.inference_mode():
        before = probe(*inputs)
        for name, parameter in probe.named_parameters():
            if parameter.numel() != 1:
                continue
            kept = parameter.clone()
            parameter.add_(by)
            if torch.allclose(probe(*inputs), before + by, rtol=1e-4, atol=1e-4):
                with torch.no_grad():
                    network.get_parameter(name).add_(by)
                return True
            parameter.copy_(kept)
    return False


def steady(network: DenseNetwork) -> bool:
    """Whether a network gives the same logits in training as in evaluation, tried on random rows.

    Dropout and batch statistics make the difference. A check of the modules' classes would miss functional ones.
    """
    probe, inputs = _probe(network)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        evaluated, trained = probe.eval()(*inputs), probe.train()(*inputs)
    return torch.equal(evaluated, trained)


class SplitNetwork(nn.Module):
    """The same logits from inputs whose context is kept once per request (`pipeline.inputs`, split layout).

    Args:
        network: whose weights it uses; its architecture can split.
        schema: with widths set, and fields of both roles.
    """

    def __init__(self, network: DenseNetwork, schema: Schema) -> None:
        super().__init__()
        self.network = network
        vectors, numbers = network.fields * network.width, len(schema.numbers)
        for block in Layout.split(schema).blocks:
            fields = np.flatnonzero(block.places >= 0)
            raw = np.flatnonzero(block.numbers >= 0)
            weights = np.concatenate([raw, raw + numbers])
            columns = np.concatenate([fields.repeat(network.width) * network.width, vectors + weights])
            columns[: len(fields) * network.width] += np.tile(np.arange(network.width), len(fields))
            for name, index in (("fields", fields), ("raw", raw), ("weights", weights), ("columns", columns)):
                self.register_buffer(block.prefix + name, torch.from_numpy(index), persistent=False)

    def forward(
        self,
        context_embeddings: Tensor | None = None,
        context_linear: Tensor | None = None,
        context_numbers: Tensor | None = None,
        candidate_embeddings: Tensor | None = None,
        candidate_linear: Tensor | None = None,
        candidate_numbers: Tensor | None = None,
        request: Tensor | None = None,
    ) -> Tensor:
        """Logits `[n]`; an input without columns is None. `request` int64 `[n]`: the context row of each candidate."""
        assert request is not None
        context = self._half("context_", context_embeddings, context_linear, context_numbers)
        candidates = self._half("candidate_", candidate_embeddings, candidate_linear, candidate_numbers)
        logit: Tensor = self.network.body.forward_split(SplitOutput(context, candidates, request))
        return logit

    def check(self) -> None:
        """Compare `forward_split` with `forward` on random rows of three requests.

        Raises:
            InvalidInput: they give different logits.
        """
        network, random = self.network, torch.Generator().manual_seed(0)
        first, request = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1, 2, 2, 2])
        numbers = len(self.get_buffer("context_raw")) + len(self.get_buffer("candidate_raw"))
        whole: dict[str, Tensor] = {}
        halves: dict[str, Tensor | None] = {}
        for name, columns, shape in (
            ("embeddings", "fields", (network.fields, network.width)),
            ("linear", "fields", (network.fields,)),
            ("numbers", "raw", (numbers,)),
        ):
            rows = torch.randn(6, *shape, generator=random)
            shared, own = self.get_buffer("context_" + columns), self.get_buffer("candidate_" + columns)
            rows[:, shared] = rows[first][:, shared][request]
            halves["context_" + name] = rows[first][:, shared].flatten(1) if len(shared) else None
            halves["candidate_" + name] = rows[:, own].flatten(1) if len(own) else None
            whole[name] = rows.flatten(1)
        training = network.training
        self.eval()
        try:
            with torch.inference_mode():
                expected, split = network(**whole), self(**halves, request=request)
        finally:
            self.train(training)
        if split.shape != expected.shape or not torch.allclose(split, expected, rtol=1e-4, atol=1e-4):
            raise InvalidInput(
                f"architecture {type(network.body).__name__}: forward_split gives {split.tolist()} where forward gives "
                f"{expected.tolist()}; correct it, or remove it to serve unsplit",
                "arch",
            )

    def _half(self, prefix: str, embeddings: Tensor | None, linear: Tensor | None, numbers: Tensor | None) -> SplitHalf:
        fields, raw, weights, columns = (
            self.get_buffer(prefix + name) for name in ("fields", "raw", "weights", "columns")
        )
        some = embeddings if embeddings is not None else numbers
        assert some is not None
        rows, transform = some.shape[0], self.network.transform
        none = some.new_zeros(rows, 0)
        shape = (len(fields), self.network.width)
        vectors = some.new_zeros(rows, *shape) if embeddings is None else embeddings.view(-1, *shape)
        values = none if numbers is None or transform is None else transform(numbers, raw)
        return SplitHalf(vectors, none if linear is None else linear, values, fields, columns, weights)
