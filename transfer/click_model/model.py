"""A click model in training: schema, tables, network, optimisers, calibration.

`step` learns from a batch, `logits` scores, `served_logits` scores with the rows as they are published. One thread. It
knows neither checkpoints (`transfer.click_model.state`) nor bundles (`transfer.bundles.publish`). Next stop:
`transfer.offline.train` (the loop), `transfer.offline.distill` (stage 1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import F32, Array, Arrays
from pipeline.bundle.bundle import Calibration
from pipeline.bundle.row_format import RowFormat
from pipeline.errors import Diverged, InvalidInput
from pipeline.features import Rows
from pipeline.schema import Schema
from transfer.click_model.blocks import TableSettings
from transfer.click_model.calibration import offset_for
from transfer.click_model.loss import checked_labels, distillation_loss
from transfer.click_model.network import DenseNetwork, shift, steady
from transfer.click_model.tables import Tables
from transfer.model_zoo import ZOO_ALONE, Architectures

__all__ = ["ClickModel", "LearningSettings"]

SCORING_ROWS = 8192
LEVEL_ROWS = 2048


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """Rates of the dense part (Adam) and settings of the tables."""

    dense_rate: float = 1e-3
    tables: TableSettings = field(default_factory=TableSettings)


class ClickModel:
    """A network on top of embedding tables, with what trains both. Made by `create`; of a bundle by
    `transfer.bundles.publish.load`, of a checkpoint by `transfer.click_model.state.model_from`."""

    def __init__(
        self,
        schema: Schema,
        arch: str,
        width: int,
        *,
        seed: int,
        hyperparameters: Mapping[str, Any],
        learning: LearningSettings,
        architectures: Architectures = ZOO_ALONE,
    ) -> None:
        self.schema = schema.with_width(width)
        self.arch, self.width, self.seed = arch, width, seed
        self.hyperparameters = json.loads(json.dumps(dict(hyperparameters)))  # as a manifest gives them back
        self.learning = learning
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = DenseNetwork(self.schema, arch, width, self.hyperparameters, architectures)
        self.tables = Tables(self.schema, width, linear=self.network.uses_linear, settings=learning.tables, seed=seed)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=learning.dense_rate, fused=True)
        self.calibration = Calibration()
        self.steps = 0
        self.rows_trained = 0
        self.device = torch.device("cpu")
        self.frozen = False
        """True for a model whose bundle has no training state: it scores and does not learn."""
        self.metrics: dict[str, float | None] = {}
        """Metrics at birth, written into the manifest unless others are given."""
        self.unknown_ids: dict[str, float] = {}
        """By table: fraction of ids that had no row, of the rows that were scored before they were trained on."""
        self.stored: RowFormat = "float32"
        """How bundles store its rows; training goes on in float32 whatever it is."""
        self.extra: Arrays = {}
        """Arrays that travel with the training state, for example the maps of an embedding projection."""
        self.last_logits: F32 = np.empty(0, np.float32)
        """The last batch's logits, float32 `[n]`, from before it was trained on. What `logits` would have given where
        `steady`, except that an id seen for the first time has its new row already: the default one, plus noise."""
        self.pending_batches = 0
        self.pending_rows = 0

    @classmethod
    def create(
        cls,
        schema: Schema,
        arch: str,
        width: int,
        *,
        seed: int,
        hyperparameters: Mapping[str, Any] | None = None,
        learning: LearningSettings | None = None,
        architectures: Architectures = ZOO_ALONE,
    ) -> ClickModel:
        """An untrained model.

        Args:
            schema: fields; widths in it are replaced by `width`.
            arch: a name of the zoo, or of a class that `architectures` was given.
            width: length of a field's vector (1 for architectures that use weights only).
            seed: of weights and new rows.
            hyperparameters: for the architecture.
            learning: rates.
            architectures: what `arch` may name.

        Raises:
            InvalidInput: unknown architecture or hyperparameter, or a schema without ids.
        """
        width = width if architectures.find(arch).uses_embeddings else 1
        return cls(
            schema,
            arch,
            width,
            seed=seed,
            hyperparameters=hyperparameters or {},
            learning=learning or LearningSettings(),
            architectures=architectures,
        )

    def to(self, device: torch.device) -> ClickModel:
        """Move the network to a device, for steps and scores from now on; tables stay in the machine's memory."""
        self.network.to(device)
        for state in self.optimiser.state.values():
            state.update({key: value.to(device) for key, value in state.items()})
        self.device = device
        return self

    @cached_property
    def steady(self) -> bool:
        """Whether the network gives the same logits in training as in scoring (no dropout, no batch statistics)."""
        return steady(self.network)

    # --- scoring -----------------------------------------------------------------------------------------------------

    def logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]`, before calibration. No row is made: unknown ids take their table's default row."""
        return self._score(rows, "float32")

    def served_logits(self, rows: Rows) -> F32:
        """As `logits`, with the table's rows as a bundle stores them and serving reads them: what is calibrated and judged.

        Raises:
            InvalidInput: a row of an id that is asked for cannot be stored.
        """
        return self._score(rows, self.stored)

    def id_counts(self, rows: Rows) -> dict[str, tuple[int, int]]:
        """By table: ids of some rows, and how many of them have no row."""
        found = self.tables.lookup(rows, create=False)
        slots = [found.ids[:, column] for column in range(found.ids.shape[1])] + [bag for _, _, bag in found.bags]
        counts: dict[str, tuple[int, int]] = {}
        for spec, mine in zip((*self.schema.ids, *self.schema.bags), slots, strict=True):
            ids, unknown = counts.get(spec.table_name, (0, 0))
            counts[spec.table_name] = ids + mine.size, unknown + int(np.count_nonzero(mine < 0))
        return counts

    def _score(self, rows: Rows, stored: RowFormat) -> F32:
        out = np.empty(len(rows), np.float32)
        self.network.eval()
        for start in range(0, len(rows), SCORING_ROWS):
            part = rows.slice(start, min(start + SCORING_ROWS, len(rows)))
            vectors, linear = self.tables.gather(self.tables.lookup(part, create=False), stored)
            with torch.inference_mode():
                logits = self._forward(part, self._tensor(vectors), None if linear is None else self._tensor(linear))
                out[start : start + len(part)] = logits.cpu().numpy()
        return out

    def calibrated_logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]` after calibration: the log-odds of served scores, except where bundles round rows."""
        return (self.calibration.alpha * self.logits(rows) + self.calibration.beta).astype(np.float32)

    def scores(self, rows: Rows) -> F32:
        """Calibrated probabilities float32 `[n]`."""
        return torch.sigmoid(torch.from_numpy(self.calibrated_logits(rows))).numpy()

    def calibrate(self, calibration: Calibration) -> None:
        """Take a calibration before training goes on: its offset becomes part of the network where that has a bias of its
        own. Training brings the network's logits to the level of the labels; an offset beside it would count twice then.
        The slope stays, and training sees the logits with it."""
        folded = shift(self.network, calibration.beta / calibration.alpha)
        self.calibration = Calibration(alpha=calibration.alpha, beta=0.0) if folded else calibration

    def start_level(self, rows: Rows, rate: float, stands_for: F32 | None = None) -> None:
        """Give the network's own bias, where it has one, the value at which its scores of some rows have this mean. Of a
        sampled log `stands_for` `[n]` says how often each row counts.

        To be called before the first step. Otherwise every row of the tables has to learn the level that one number holds,
        and rare ids stay at another level than popular ones (a prior as bias: Lin et al. 2017, "Focal Loss for Dense Object
        Detection", 4.1).
        """
        logits = self.logits(rows.slice(0, min(len(rows), LEVEL_ROWS))).astype(np.float64)
        counts = np.ones(len(logits)) if stands_for is None else stands_for[: len(logits)].astype(np.float64)
        shift(self.network, offset_for(logits, rate * float(counts.sum()), counts))

    def _forward(self, rows: Rows, vectors: Tensor, weights: Tensor | None) -> Tensor:
        numbers = self._tensor(np.ascontiguousarray(rows.numbers)) if self.schema.numbers else None
        logit: Tensor = self.network(vectors.flatten(1), weights, numbers)
        return logit

    def _tensor(self, array: F32) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit_numbers(self, rows: Rows) -> None:
        """Take mean and deviation of the numbers from these rows. To be called once, before training."""
        if self.network.transform is not None:
            self.network.transform.fit(rows.numbers)

    def take_transform(self, teacher: ClickModel) -> None:
        """Take mean and deviation of the numbers that a teacher has, too."""
        own, other = self.network.transform, teacher.network.transform
        if own is None or other is None:
            return
        names = [spec.name for spec in teacher.schema.numbers]
        for at, spec in enumerate(self.schema.numbers):
            if spec.name in names:
                own.mean[at], own.scale[at] = other.mean[names.index(spec.name)], other.scale[names.index(spec.name)]

    def step(
        self,
        rows: Rows,
        labels: Array,
        *,
        teacher_logits: F32 | None = None,
        teacher_weight: float | F32 = 0.0,
        temperature: float = 1.0,
        label_offset: float | F32 = 0.0,
        row_weight: F32 | None = None,
        train_tables: bool = True,
        most: float = np.inf,
    ) -> float:
        """Learn from a batch: `accumulate`, then `apply_accumulated`; same arguments, result and errors."""
        loss = self.accumulate(
            rows, labels, teacher_logits=teacher_logits, teacher_weight=teacher_weight, temperature=temperature,
            label_offset=label_offset, row_weight=row_weight, train_tables=train_tables, most=most,
        )  # fmt: skip
        self.apply_accumulated()
        return loss

    def accumulate(
        self,
        rows: Rows,
        labels: Array,
        *,
        teacher_logits: F32 | None = None,
        teacher_weight: float | F32 = 0.0,
        temperature: float = 1.0,
        label_offset: float | F32 = 0.0,
        row_weight: F32 | None = None,
        train_tables: bool = True,
        most: float = np.inf,
    ) -> float:
        """Add the gradients of a batch to those that wait for a step; the loss is `transfer.click_model.loss.distillation_loss`.

        Args:
            rows: n rows.
            labels: from 0 to 1, `[n]`; one of 0.3 counts as 0.3 of a click.
            teacher_logits: `[n]`; None: labels alone.
            teacher_weight: a, weight of the teacher's term, one number or `[n]`.
            temperature: T.
            label_offset: log k of the sampling, one number or `[n]`.
            row_weight: factor of each row's loss, `[n]`, about 1 in the mean; None: 1.
            train_tables: False freezes the tables: no row is made or changed.
            most: the largest |logit| that a batch may have.

        Returns:
            The batch's mean loss before the step.

        Raises:
            DataError: labels outside 0..1, or logits or numbers that are not finite; nothing has changed.
            Diverged: a logit of this model is not below `most`; nothing has been learned.
            InvalidInput: the model came from a bundle without training state.
        """
        if self.frozen:
            raise InvalidInput("this model is frozen: its bundle has no training state; it can score, not learn")
        y = checked_labels(self.schema, rows, labels, teacher_logits)
        lookup = self.tables.lookup(rows, create=train_tables)
        vectors, linear = self.tables.gather(lookup)
        embeddings = self._tensor(vectors).requires_grad_(train_tables)
        weights = None if linear is None else self._tensor(linear).requires_grad_(train_tables)
        logits = self._training_logits(rows, embeddings, weights)
        self.last_logits = logits.detach().cpu().numpy()
        largest = float(np.abs(self.last_logits).max())
        if most < np.inf and not largest < most:
            raise Diverged(f"{self.arch}-{self.width}: the largest |logit| is {largest:g}")
        losses = distillation_loss(
            # The slope is part of what is served: without it training would undo it, and serving apply it all the same.
            self.calibration.alpha * logits,
            self._tensor(y),
            teacher_logits=None if teacher_logits is None else self._tensor(np.array(teacher_logits, np.float32)),
            teacher_weight=self._tensor(teacher_weight) if isinstance(teacher_weight, np.ndarray) else teacher_weight,
            temperature=temperature,
            label_offset=self._tensor(label_offset) if isinstance(label_offset, np.ndarray) else label_offset,
        )
        loss = (losses if row_weight is None else losses * self._tensor(row_weight)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.pending_batches += 1
        self.pending_rows += len(rows)
        self.rows_trained += len(rows)
        if train_tables:
            self.tables.collect(lookup, _gradient(embeddings), _gradient(weights), self.rows_trained)
        return float(loss.detach())

    def _training_logits(self, rows: Rows, embeddings: Tensor, weights: Tensor | None) -> Tensor:
        """Logits `[n]` in training mode. Dropout, where there is any, depends on seed and step alone: a resumed run draws
        the same masks."""
        with torch.random.fork_rng(devices=[]):
            # `torch.manual_seed` would also take a stack trace for a GPU that was never used, a tenth of a small step.
            seed = hash((self.seed, self.steps, self.pending_batches)) & 0x7FFFFFFF
            torch.default_generator.manual_seed(seed)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            self.network.train()
            return self._forward(rows, embeddings, weights)

    def apply_accumulated(self) -> None:
        """One optimiser step on the mean of the gradients collected since the last one; none collected: nothing."""
        if not self.pending_batches:
            return
        scale = 1.0 / self.pending_batches
        if self.pending_batches > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        # Batch losses are means; rows of tables learn from sums, so that their steps do not depend on the batch size.
        self.tables.apply(scale * (self.pending_rows * scale))
        self.steps += 1
        self.pending_batches = self.pending_rows = 0
        self.tables.age(self.rows_trained)

    def finite(self) -> bool:
        """Whether all weights, and all rows changed since the last `tables.saved`, are finite."""
        weights = (*self.network.parameters(), *self.network.buffers())
        return all(bool(torch.isfinite(w).all()) for w in weights) and self.tables.finite()


def _gradient(leaf: Tensor | None) -> F32 | None:
    return None if leaf is None or leaf.grad is None else leaf.grad.cpu().numpy()
