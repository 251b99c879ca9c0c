"""Remote model: a bundle version whose network is another server.

It makes tensors of features, asks, and reads scores from the answer, several requests in one call. Who asks is behind
`RemoteNetwork`, so this file knows no gRPC (`serving.lane.remote` does). Deadlines and cancellation are those of the
requests that wait. Next stop: `pipeline.model.remote_inputs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from pipeline.arrays import F32, F64, Array
from pipeline.bundle.bundle import Bundle
from pipeline.bundle.remote_spec import CODES, DTYPES, REMOTE_SPEC, RemoteSpec
from pipeline.calibration import probabilities
from pipeline.clock import Clock
from pipeline.errors import BatonError, NotFinite, NotReady, RemoteFault, RemoteTimeout
from pipeline.features import Features
from pipeline.inputs import DenseInputs, Waiting
from pipeline.model.codes import Codes
from pipeline.model.model import Model
from pipeline.model.remote_inputs import Encoder, RemoteInputs, Tensor
from pipeline.model.remote_job import Job, Piece
from pipeline.model.warmup import synthetic_requests

__all__ = ["Connect", "RemoteModel", "RemoteNetwork", "RemoteReport"]

WARM_SIZES = (1, 8)
WARM_S = 20.0
"""Seconds that a server may take for its first answers, which are often slow."""
MARGIN_S, MARGIN_FRACTION = 0.02, 0.1
"""Time before a caller's deadline at which a call ends, so that the error still reaches the caller."""
ROUNDING_FRACTION = 1e-6
"""A probability may be so much below 0 or above 1, by rounding."""
LEAST_PROBABILITY = 1e-7
"""Probabilities of 0 and 1 have no finite logit; a calibration sees them this far inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteReport:
    """A remote model as one process sees it.

    Args:
        breaker: of the circuit; opened: how often it has opened.
        calls: answered; failed: by class of error; rows: of answered calls.
        reason: of the last failure, "" after a success.
        ids, unknown: values encoded, and those of them without a code.
    """

    address: str = ""
    model: str = ""
    breaker: Literal["closed", "half_open", "open"] = "closed"
    opened: int = 0
    calls: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    reason: str = ""
    ids: int = 0
    unknown: int = 0


class RemoteNetwork(Protocol):
    """Caller of one model of one server. Several threads may call it at once."""

    clock: Clock

    @property
    def available(self) -> bool:
        """False while the breaker is open: a call would fail at once."""

    def ask(
        self,
        tensors: Sequence[Tensor],
        rows: int,
        seconds: float,
        *,
        read: Callable[[Tensor], F64],
        fully: bool,
        begun: Callable[[Callable[[], None]], None],
    ) -> F64:
        """What `read` makes of the output tensor of the spec; it raises RemoteFault where it cannot.

        Args:
            seconds: that the call may take. fully: whether they are the server's own limit; one that misses a caller's
                shorter deadline has not failed.
            begun: is given what cancels the call.

        Raises:
            RemoteUnavailable, RemoteTimeout, RemoteFault: the call failed. CancelledError: it was cancelled.
        """

    def check(self) -> None:
        """Check that the server lives, has the model ready, and that its metadata fit the spec.

        Raises:
            RemoteUnavailable, RemoteTimeout: it cannot be asked. BundleError: the metadata differ from the spec.
        """

    def report(self) -> RemoteReport:
        """Counts so far."""


Connect = Callable[[RemoteSpec], RemoteNetwork]
"""Makes the caller of a spec. Raises: BundleError: this installation may not call it."""


class RemoteModel(Model):
    """A version that another server answers for. `score` may be called from several threads at once.

    Attributes: those of `Model` but `store`, `whole` and `split`, which are local.
    """

    remote = True

    def __init__(self, bundle: Bundle, network: RemoteNetwork) -> None:
        self.manifest = bundle.manifest
        self.name, self.version = bundle.manifest.name, bundle.manifest.version
        self.schema, self.calibration = bundle.manifest.model_schema, bundle.manifest.calibration
        self.inputs, self.fields, self._reads = self.schema, "", None
        self.spec = bundle.remote_spec()
        kinds = {field.name: field.kind for field in self.schema.fields}
        codes = {
            field: Codes.open(bundle, field, self.spec.unknown.get(field, -1))
            for field in self.spec.coded
            if kinds[field] != "number"
        }
        self.bytes = sum(info.bytes for name, info in self.manifest.files.items() if name.startswith(CODES))
        self.network = network
        self._codes = codes
        self._encoder = Encoder(self.spec, self.schema, codes)
        self._together = not any(put.per_request for put in self.spec.inputs.values())
        self._now = network.clock.monotonic

    @classmethod
    def open(cls, bundle: Bundle, connect: Connect | None) -> RemoteModel:
        """A remote model whose server has been looked at.

        Raises:
            BundleError: the spec is faulty, or the server's model is another than it says.
            RemoteUnavailable, RemoteTimeout: the server cannot be asked now.
            NotReady: this process calls no other servers.
        """
        if connect is None:
            raise NotReady(f"{bundle.path} is a model on another server, which this process does not call")
        model = cls(bundle, connect(bundle.remote_spec()))
        model.network.check()
        return model

    @property
    def available(self) -> bool:
        return self.network.available

    def file_of(self, inputs: DenseInputs) -> str:
        return REMOTE_SPEC

    def tiers(self) -> list[Mapping[str, float | str]]:
        return []

    def report(self) -> RemoteReport:
        """What this process has seen of the server."""
        codes = self._codes.values()
        return replace(
            self.network.report(), ids=sum(each.asked for each in codes), unknown=sum(each.unknown for each in codes)
        )

    def embed(self, features: Features) -> DenseInputs:
        """The values of a request's tensors. Raises: InvalidInput: the server cannot take a value of a field."""
        return self._encoder.inputs(self._own(features))

    def embed_batch(self, requests: Sequence[Features]) -> list[DenseInputs | Exception]:
        found: list[DenseInputs | Exception] = []
        for features in requests:
            try:
                found.append(self.embed(features))
            except Exception as error:  # of this request alone
                found.append(error)
        return found

    def infer(self, inputs: DenseInputs, wait: Waiting | None = None) -> F32:
        """Calibrated probabilities float32 `[n]`.

        Raises:
            RemoteUnavailable, RemoteTimeout, RemoteFault: the server has not answered.
            NotFinite: its score of a row is NaN or infinite.
            CancelledError: the caller has gone.
        """
        (scores,) = self.infer_batch([inputs], None if wait is None else [wait])
        if isinstance(scores, Exception):
            raise scores
        return scores

    def infer_batch(
        self, windows: Sequence[DenseInputs], waits: Sequence[Waiting] | None = None
    ) -> list[F32 | Exception]:
        """`infer` of each window, or its error; windows share calls of at most `max_rows` rows."""
        made: list[RemoteInputs] = []
        for window in windows:
            assert isinstance(window, RemoteInputs)
            made.append(window)
        job = Job(made, waits)
        for pieces in self._calls(made):
            self._ask(pieces, job, self.spec.remote.timeout_ms / 1000)
        return [job.errors[at] or self._scores(values) for at, values in enumerate(job.values)]

    def warm(self, requests: Iterable[Features] = (), seconds: float = math.inf) -> None:
        """Ask for scores of made-up rows, so that an answer of another shape is found before there is traffic.

        Args:
            requests: not used: stored ones are no business of another server.

        Raises:
            NotReady: the server does not answer them as the spec says.
        """
        for features in synthetic_requests(self.schema, WARM_SIZES):
            rows = features.rows(self.schema)
            rows.numbers[:] = np.abs(np.nan_to_num(rows.numbers)) > 1  # 0 and 1 are numbers of every datatype
            whole = Features.from_context(self.schema, rows)
            inputs = self._encoder.inputs(whole)
            job = Job([inputs], None)
            self._ask([(0, 0, inputs.n)], job, min(seconds, WARM_S))
            if (error := job.errors[0]) is not None:
                raise NotReady(f"the server does not answer {inputs.n} rows tried first: {error}") from error

    def _calls(self, windows: Sequence[RemoteInputs]) -> list[list[Piece]]:
        """Rows of windows by call."""
        most = self.spec.remote.max_rows
        calls: list[list[Piece]] = []
        room = 0
        for at, window in enumerate(windows):
            start = 0
            while start < window.n:
                fits = room >= min(window.n - start, most) and self._together
                if not fits:
                    calls.append([])
                    room = most
                stop = min(window.n, start + room)
                calls[-1].append((at, start, stop))
                room -= stop - start
                start = stop
        return calls

    def _ask(self, pieces: Sequence[Piece], job: Job, timeout: float) -> None:
        """One call, repeated without the requests whose deadline it met; what comes of it goes into the job."""
        while live := [piece for piece in pieces if job.waits_for(piece[0], self._now())]:
            now, due = self._now(), job.due(live)
            left = due - now
            left -= min(MARGIN_S, MARGIN_FRACTION * left)
            fully = left >= timeout
            rows = sum(stop - start for _, start, stop in live)
            try:
                with job.cancels(live) as begun:
                    tensors = self._encoder.tensors([(job.windows[at], start, stop) for at, start, stop in live])
                    values = self.network.ask(
                        tensors,
                        rows,
                        min(left, timeout),
                        read=lambda answer, rows=rows: self._values(answer, rows),  # type: ignore[misc]
                        fully=fully,
                        begun=begun,
                    )
            except RemoteTimeout as error:
                if not fully and job.fail_due(live, due, error):
                    continue
                job.fail(live, error)
            except (BatonError, CancelledError) as error:
                job.fail(live, error)
            else:
                at = 0
                for window, start, stop in live:
                    job.values[window][start:stop] = values[at : at + stop - start]
                    at += stop - start
            return

    def _values(self, answer: Tensor, rows: int) -> F64:
        """The head's column, float64 `[rows]`. Raises: RemoteFault: the answer has another form."""
        output = self.spec.output
        dtype = DTYPES.get(answer.datatype)
        if dtype is None or math.prod(answer.shape) * dtype.itemsize != len(answer.content):
            raise RemoteFault(
                f"output {output.name!r} of the remote model is {answer.datatype[:20]} {list(answer.shape)[:8]} in "
                f"{len(answer.content):,} bytes"
            )
        width = math.prod(answer.shape[1:])
        if not answer.shape or answer.shape[0] != rows or output.column >= width:
            raise RemoteFault(
                f"output {output.name!r} of the remote model has shape {list(answer.shape)[:8]} for {rows} rows where "
                f"column {output.column} of each is needed"
            )
        column: Array = np.frombuffer(answer.content, dtype).reshape(rows, width)[:, output.column]
        values: F64 = column.astype(np.float64)
        odd = np.flatnonzero((values < -ROUNDING_FRACTION) | (values > 1 + ROUNDING_FRACTION))
        if len(odd) and output.kind == "probability":
            raise RemoteFault(
                f"output {output.name!r} of the remote model is {values[odd[0]]:.6g} for a candidate, which is no "
                "probability; if it is a logit, say `kind: logit` in the spec"
            )
        return values

    def _scores(self, values: F64) -> F32 | Exception:
        """Calibrated probabilities of a request's values, or its error."""
        ill = np.flatnonzero(~np.isfinite(values))
        if len(ill):
            return NotFinite(
                f"version {self.version} of model {self.name!r}, a remote one, has no finite score for {len(ill)} of "
                f"{len(values)} candidates; the first is candidate {int(ill[0])}"
            )
        alpha, beta = self.calibration.alpha, self.calibration.beta
        if self.spec.output.kind == "logit":
            return probabilities(values.astype(np.float32), alpha, beta)
        if (alpha, beta) == (1.0, 0.0):
            return np.clip(values, 0.0, 1.0).astype(np.float32)
        inside = np.clip(values, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        return probabilities(np.log(inside / (1 - inside)).astype(np.float32), alpha, beta)
