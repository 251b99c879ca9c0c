"""A click model in training: schema, tables, network, optimisers, calibration.

`step` learns from a batch, `logits` scores, `served_logits` with the rows as they are published, `save_bundle` and
`save_delta` publish, `state_dict` and `load_state` are the checkpoint. One thread. Next stop: `transfer.offline.train` (the loop), `transfer.offline.distill` (stage 1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.bundle.bundle import Bundle, Calibration, GateReport
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.errors import Diverged, InvalidInput
from pipeline.features import Rows
from pipeline.schema import Schema
from transfer.bundles.export import DenseGraph
from transfer.bundles.publish import Snapshot, load_model, snapshot_of, write_snapshot
from transfer.click_model.batch_check import checked_labels
from transfer.click_model.blocks import TableSettings
from transfer.click_model.calibration import offset_for
from transfer.click_model.loss import distillation_loss
from transfer.click_model.network import Network, shift, steady
from transfer.click_model.state import load_into, state_of
from transfer.click_model.tables import Tables
from transfer.model_zoo import resolve

__all__ = ["ClickModel", "LearningSettings"]

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
SCORING_ROWS = 8192
LEVEL_ROWS = 2048


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """Rates of the dense part (Adam) and settings of the tables."""

    dense_rate: float = 1e-3
    tables: TableSettings = field(default_factory=TableSettings)


class ClickModel:
    """Made by `create`, `from_bundle` or `from_state`."""

    def __init__(
        self,
        schema: Schema,
        arch: str,
        width: int,
        *,
        seed: int,
        hyperparameters: Mapping[str, Any],
        learning: LearningSettings,
    ) -> None:
        self.schema = schema.with_width(width)
        self.arch, self.width, self.seed = arch, width, seed
        self.hyperparameters = json.loads(json.dumps(dict(hyperparameters)))  # as a manifest gives them back
        self.learning = learning
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network(self.schema, arch, width, self.hyperparameters)
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
        self.stored: RowFormat = "float32"
        """How bundles store its rows; training goes on in float32 whatever it is."""
        self.extra: Arrays = {}
        """Arrays that travel with the training state, for example the maps of an embedding projection."""
        self.last_logits: F32 = np.empty(0, np.float32)
        """The last batch's logits, float32 `[n]`, from before it was trained on. What `logits` would have given where
        `steady`, except that an id seen for the first time has its new row already: the default one, plus noise."""
        self.pending_batches = 0
        self.pending_rows = 0
        self.graphs: dict[str, DenseGraph] = {}
        """The exported network by file, once one was needed."""

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
    ) -> ClickModel:
        """A model that knows nothing yet.

        Args:
            schema: fields; widths in it are replaced by `width`.
            arch: a name of the zoo or `package.module:Class`.
            width: length of a field's vector (1 for architectures that use weights only).
            seed: of weights and new rows.
            hyperparameters: for the architecture.
            learning: rates.

        Raises:
            InvalidInput: unknown architecture or hyperparameter, or a schema without ids.
        """
        width = width if resolve(arch).uses_embeddings else 1
        return cls(
            schema,
            arch,
            width,
            seed=seed,
            hyperparameters=hyperparameters or {},
            learning=learning or LearningSettings(),
        )

    def to(self, device: torch.device) -> ClickModel:
        """Move the network there, for steps and scores from now on; tables stay in the machine's memory."""
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

    def _score(self, rows: Rows, stored: RowFormat) -> F32:
        out = np.empty(len(rows), np.float32)
        self.network.eval()
        for start in range(0, len(rows), SCORING_ROWS):
            part = rows.slice(start, min(start + SCORING_ROWS, len(rows)))
            vectors, linear = self.tables.gather(self.tables.lookup(part, create=False), stored)
            with torch.inference_mode():
                logits = self._forward(part, self._there(vectors), None if linear is None else self._there(linear))
                out[start : start + len(part)] = logits.cpu().numpy()
        return out

    def calibrated_logits(self, rows: Rows) -> F32:
        """Logits float32 `[n]` after calibration: the log-odds that serving answers with, but for rounded rows."""
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

    def start_level(self, rows: Rows, rate: float) -> None:
        """Give the network's own bias, where it has one, the value at which its scores of some rows have this mean.

        For before the first step: else every row of the tables has to learn the level that one number can tell, as far as
        it is trained, and rare ids stay at another level than popular ones (a prior as bias: Lin et al. 2017, "Focal Loss
        for Dense Object Detection", 4.1).
        """
        logits = self.logits(rows.slice(0, min(len(rows), LEVEL_ROWS))).astype(np.float64)
        shift(self.network, offset_for(logits, rate * len(logits)))

    def _forward(self, rows: Rows, vectors: Tensor, weights: Tensor | None) -> Tensor:
        numbers = self._there(np.ascontiguousarray(rows.numbers)) if self.schema.numbers else None
        logit: Tensor = self.network(vectors.flatten(1), weights, numbers)
        return logit

    def _there(self, array: F32) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    # --- learning ----------------------------------------------------------------------------------------------------

    def fit_numbers(self, rows: Rows) -> None:
        """Take mean and deviation of the numbers from these rows. Once, before training."""
        if self.network.transform is not None:
            self.network.transform.fit(rows.numbers)

    def step(
        self,
        rows: Rows,
        labels: npt.NDArray[Any],
        *,
        teacher_logits: F32 | None = None,
        a: float | F32 = 0.0,
        temperature: float = 1.0,
        label_offset: float | F32 = 0.0,
        train_tables: bool = True,
        most: float = np.inf,
    ) -> float:
        """Learn from a batch: `accumulate`, then `apply_accumulated`; same arguments, result and errors."""
        loss = self.accumulate(
            rows, labels, teacher_logits=teacher_logits, a=a, temperature=temperature, label_offset=label_offset,
            train_tables=train_tables, most=most,
        )  # fmt: skip
        self.apply_accumulated()
        return loss

    def accumulate(
        self,
        rows: Rows,
        labels: npt.NDArray[Any],
        *,
        teacher_logits: F32 | None = None,
        a: float | F32 = 0.0,
        temperature: float = 1.0,
        label_offset: float | F32 = 0.0,
        train_tables: bool = True,
        most: float = np.inf,
    ) -> float:
        """Add the gradients of a batch to those that wait for a step; the loss is `transfer.click_model.loss.distillation_loss`.

        Args:
            rows: n rows.
            labels: from 0 to 1, `[n]`; one of 0.3 counts as 0.3 of a click.
            teacher_logits: `[n]`; None: labels alone.
            a: weight of the teacher's term, one number or `[n]`.
            temperature: T.
            label_offset: log k of the sampling, one number or `[n]`.
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
        n, y = len(rows), checked_labels(self.schema, rows, labels, teacher_logits)
        lookup = self.tables.lookup(rows, create=train_tables)
        vectors, linear = self.tables.gather(lookup)
        embeddings = self._there(vectors).requires_grad_(train_tables)
        weights = None if linear is None else self._there(linear).requires_grad_(train_tables)
        with torch.random.fork_rng(devices=[]):
            # Dropout, where there is any, depends on seed and step alone: a resumed run draws the same masks.
            # `torch.manual_seed` would also take a stack trace for a GPU that was never used, a tenth of a small step.
            seed = hash((self.seed, self.steps, self.pending_batches)) & 0x7FFFFFFF
            torch.default_generator.manual_seed(seed)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            self.network.train()
            logits = self._forward(rows, embeddings, weights)
        self.last_logits = logits.detach().cpu().numpy()
        largest = float(np.abs(self.last_logits).max())
        if most < np.inf and not largest < most:
            raise Diverged(f"{self.arch}-{self.width}: the largest |logit| is {largest:g}")
        loss = distillation_loss(
            # The slope is part of what is served: without it training would undo it, and serving apply it all the same.
            self.calibration.alpha * logits,
            self._there(y),
            teacher_logits=None if teacher_logits is None else self._there(np.array(teacher_logits, np.float32)),
            a=self._there(a) if isinstance(a, np.ndarray) else a,
            temperature=temperature,
            label_offset=self._there(label_offset) if isinstance(label_offset, np.ndarray) else label_offset,
        ).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.pending_batches += 1
        self.pending_rows += n
        self.rows_trained += n
        if train_tables:
            grad = None if embeddings.grad is None else embeddings.grad.cpu().numpy()
            linear_grad = None if weights is None or weights.grad is None else weights.grad.cpu().numpy()
            self.tables.collect(lookup, grad, linear_grad, self.rows_trained)
        return float(loss.detach())

    def apply_accumulated(self) -> None:
        """One optimiser step on the mean of the gradients collected since the last one; none collected: nothing."""
        if not self.pending_batches:
            return
        share = 1.0 / self.pending_batches
        if self.pending_batches > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(share)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        # Batch losses are means; rows of tables learn from sums, so that their steps do not depend on the batch size.
        self.tables.apply(share * (self.pending_rows * share))
        self.steps += 1
        self.pending_batches = self.pending_rows = 0
        self.tables.age(self.rows_trained)

    def finite(self) -> bool:
        """Whether all weights, and all rows changed since the last `tables.saved`, are finite."""
        weights = (*self.network.parameters(), *self.network.buffers())
        return all(bool(torch.isfinite(w).all()) for w in weights) and self.tables.finite()

    # --- checkpoint --------------------------------------------------------------------------------------------------

    def state_dict(self, *, changes: bool = False) -> tuple[dict[str, Any], Arrays]:
        """Header (JSON values) and arrays (copies) from which `load_state` goes on exactly, to the bit.

        Args:
            changes: of the tables, only rows changed since `tables.saved`; `transfer.click_model.state.brought_up` adds them to
                the state of then. All rows where slots mean others since.
        """
        return state_of(self, self.tables.changed() if changes else None)

    def load_state(self, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            InvalidInput: it is the state of a model of another architecture, width or schema.
        """
        load_into(self, header, arrays)

    @classmethod
    def from_state(cls, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ClickModel:
        """The model whose `state_dict` this was."""
        learning = dict(header["learning"])
        learning["tables"] = TableSettings(**learning["tables"])
        model = cls(
            Schema.model_validate(header["schema"]),
            header["arch"],
            header["width"],
            seed=header["seed"],
            hyperparameters=header["hyperparameters"],
            learning=LearningSettings(**learning),
        )
        model.load_state(header, arrays)
        return model

    # --- publishing --------------------------------------------------------------------------------------------------

    def snapshot(self, *, full: bool, training: bool = False) -> Snapshot:
        """Copies of what a bundle is written from: all rows, or (a delta) those touched since `take_touched`.

        Writing it (`transfer.bundles.publish.write_snapshot`) may happen on another thread. Call `tables.take_touched()` when
        the version counts as published.
        """
        return snapshot_of(self, full=full, training=training)

    def save_bundle(
        self,
        target: Repository | Path,
        name: str,
        *,
        version: str | None = None,
        parent: str | None = None,
        metrics: Mapping[str, float | None] | None = None,
        gate: GateReport | None = None,
        training: bool = True,
        created_ms: int = 0,
    ) -> Bundle:
        """Publish all rows as a base; see `transfer.bundles.publish.write_snapshot` for the arguments."""
        slots = self.tables.touched()
        if gate is None or gate.passed:
            self.tables.take_touched()
        try:
            return write_snapshot(
                target, name, self.snapshot(full=True, training=training), version=version, parent=parent,
                metrics=self.metrics if metrics is None else metrics, gate=gate, created_ms=created_ms,
            )  # fmt: skip
        except BaseException:
            self.tables.put_back(slots)
            raise

    def save_delta(
        self,
        target: Repository | Path,
        name: str,
        *,
        base: str,
        deltas: Sequence[str] = (),
        version: str | None = None,
        parent: str | None = None,
        metrics: Mapping[str, float | None] | None = None,
        gate: GateReport | None = None,
        training: bool = False,
        created_ms: int = 0,
    ) -> Bundle:
        """Publish the rows touched since the last publication as a delta over `base` and the `deltas` before it
        (oldest first; the new version itself may stand at the end).

        A version that the gate refused is written as a report only; its rows go with the next one that passes.
        """
        bundle = write_snapshot(
            target, name, self.snapshot(full=False, training=training), version=version, parent=parent,
            base=base, deltas=deltas, metrics=metrics, gate=gate, created_ms=created_ms,
        )  # fmt: skip
        if bundle.manifest.servable:
            self.tables.take_touched()
        return bundle

    @classmethod
    def from_bundle(cls, source: Repository | Sequence[Bundle] | None, bundle: Bundle) -> ClickModel:
        """A model from a published version.

        Args:
            source: the repository that holds what the version builds on, or its chain, base first; None for a base.
            bundle: the version.

        Raises:
            InvalidInput: a delta without its chain.
            BundleError: it was not written by this trainer.
        """
        if isinstance(source, Repository):
            return load_model(cls, source.chain(bundle))
        if source is None and bundle.manifest.base is not None:
            raise InvalidInput(f"{bundle.path} is a delta; pass the repository that holds its base", "source")
        return load_model(cls, source or [bundle])
