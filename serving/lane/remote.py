"""Callers of other servers' models over gRPC, for remote arms.

`RemoteServers` makes one `RemoteCaller` per version and process, and one thread asks servers that have failed whether they
live again. A call waits in the thread that makes it, until its answer, its limit, or the last of its requests has gone. It
knows no requests or endpoints. Next stop: `serving.wire.remote` (messages), `pipeline.model.remote` (what is asked).
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from itertools import count
from typing import Any

import grpc
from grpc.experimental import ChannelOptions

from pipeline.arrays import F64
from pipeline.bundle.remote_spec import RemoteServer, RemoteSpec
from pipeline.clock import Clock
from pipeline.embedding.redis.breaker import CircuitBreaker
from pipeline.errors import BatonError, BundleError, RemoteFault, RemoteTimeout, RemoteUnavailable
from pipeline.model.remote import RemoteReport
from pipeline.model.remote_inputs import Tensor
from protos.inference import SERVICE, methods
from serving.config.remote import RemoteConfig
from serving.wire.remote import ANSWER_BYTES, InferCall, differences

__all__ = ["RemoteCaller", "RemoteServers", "on_this_machine"]

CHANNEL_COUNT = 4
"""Connections to one server per version and process."""
PROBE_S, PROBE_EVERY_S = 1.0, 0.05
CHECK_S = 5.0
CONNECT_MS, RECONNECT_MS = 3000, 1000
"""Longest time of one attempt to connect, and between two."""
LOGGED_LETTERS = 300
NOT_ASKED = "is not asked now, since it has failed"
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", ANSWER_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A call reads its answer in its own thread, can be cancelled from another, and needs no thread of the channel.
    (ChannelOptions.SingleThreadedUnaryStream, 1),
)
_AWAY = {
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
}  # fmt: skip
"""Codes by which a server says that it answers nobody. By any other it speaks of the request alone."""

log = logging.getLogger(__name__)


class RemoteServers:
    """Maker of callers, and the thread that looks after those whose server has failed.

    Args:
        config: which addresses may be called, and by which certificates.
    """

    def __init__(self, config: RemoteConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._callers: weakref.WeakSet[RemoteCaller] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self, spec: RemoteSpec) -> RemoteCaller:
        """The caller of a spec; connections open with the first call.

        Raises:
            BundleError: this installation may not call the address, or its certificates cannot be read.
        """
        target = spec.remote.target
        if not on_this_machine(target) and target not in self._config.addresses:
            raise BundleError(
                f"remote: this installation may not call {target}: add it to `remote.addresses` in baton.yaml", "remote"
            )
        caller = RemoteCaller(spec, self._clock, self._credentials() if spec.remote.tls else None, self._bell.set)
        with self._lock:
            self._callers.add(caller)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="remote-watch", daemon=True)
                self._thread.start()
        return caller

    def metadata(self, server: RemoteServer) -> Any:
        """ModelMetadataResponse of a server's model, wherever it is: the caller has named it.

        Raises:
            RemoteUnavailable, RemoteTimeout, RemoteFault: it cannot be asked, or has the model not ready.
        """
        with _channel(server.target, self._credentials() if server.tls else None) as channel:
            questions = _Questions(server, channel)
            try:
                questions.ready(CHECK_S)
                return questions.metadata(CHECK_S)
            except grpc.RpcError as error:
                raise _refusal(server, error) from None

    def _credentials(self) -> grpc.ChannelCredentials:
        config = self._config
        try:
            ca, key, cert = (
                None if path is None else path.read_bytes() for path in (config.tls_ca, config.tls_key, config.tls_cert)
            )
        except OSError as error:
            raise BundleError(f"remote.tls: {error.filename} cannot be read: {error.strerror}", "remote") from None
        return grpc.ssl_channel_credentials(ca, key, cert)

    def _watch(self) -> None:
        while True:
            self._bell.wait(PROBE_EVERY_S if self._look() else None)
            self._bell.clear()

    def _look(self) -> bool:
        """Probe the servers that are ill; whether there are any. Holds no version beyond this call."""
        with self._lock:
            callers = [caller for caller in self._callers if caller.ill]
        for caller in callers:
            caller.probe()
        return bool(callers)


class RemoteCaller:
    """Caller of one model of one server. Several threads may call at once.

    Args:
        credentials: None: without TLS.
        alarm: called when the server should be looked after.
    """

    def __init__(
        self, spec: RemoteSpec, clock: Clock, credentials: grpc.ChannelCredentials | None, alarm: Callable[[], None]
    ) -> None:
        self.clock = clock
        self._spec = spec
        self._server = spec.remote
        self._message = InferCall(spec)
        self._alarm = alarm
        self._breaker = CircuitBreaker(clock, random.Random(), pause=0.05, longest_pause=1.0)
        self._suspect = False
        self._turn = count()
        self._lock = threading.Lock()
        self._failed: Counter[str] = Counter()
        self._calls = self._rows = 0
        self._reason = ""
        self._channels = [_channel(self._server.target, credentials) for _ in range(CHANNEL_COUNT)]
        self._questions = _Questions(self._server, self._channels[0])
        self._infer: list[Any] = [channel.unary_stream(f"/{SERVICE}/ModelInfer") for channel in self._channels]
        weakref.finalize(self, _close, self._channels)

    @property
    def available(self) -> bool:
        return self._breaker.state != "open"

    @property
    def ill(self) -> bool:
        """Whether the server should be looked after."""
        return self._suspect or self._breaker.state == "open"

    def report(self) -> RemoteReport:
        with self._lock:
            failed, calls, rows, reason = dict(self._failed), self._calls, self._rows, self._reason
        server, breaker = self._server, self._breaker
        return RemoteReport(
            address=server.address, model=server.model, breaker=breaker.state, opened=breaker.opened, calls=calls,
            failed=failed, rows=rows, reason=reason,
        )  # fmt: skip

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
        if not self._breaker.allow():
            raise self._count(RemoteUnavailable(f"{self._who} {NOT_ASKED}"))
        gone = False

        def begin(cancel: Callable[[], None]) -> None:
            def cancel_call() -> None:
                nonlocal gone
                gone = True
                cancel()

            begun(cancel_call)

        try:
            data = self._call(self._message.request(tensors), seconds, begin)
        except grpc.RpcError as error:
            if gone:
                self._breaker.unused()
                raise CancelledError from None
            raise self._failure(error, seconds, fully) from None
        except BaseException:
            self._breaker.unused()
            raise
        self._breaker.succeeded()
        try:
            values = read(self._message.answer(data))
        except RemoteFault as error:
            self._count(error)
            raise
        with self._lock:
            self._calls += 1
            self._rows += rows
            self._reason = ""
        return values

    def check(self) -> None:
        try:
            for channel in self._channels:  # so that the first calls find them connected
                _Questions(self._server, channel).ready(CHECK_S)
            metadata = self._questions.metadata(CHECK_S)
        except grpc.RpcError as error:
            raise _refusal(self._server, error) from None
        if faults := differences(self._spec, metadata):
            raise BundleError(f"{self._who} takes or gives something else: {'; '.join(faults)}", "remote")

    def probe(self) -> None:
        """Look whether the server lives again, where that is due; of a suspect one, whether it still does."""
        if not self._suspect and not self._breaker.due():
            return
        suspected, self._suspect = self._suspect, False
        try:
            self._questions.ready(PROBE_S)
        except (grpc.RpcError, BatonError) as error:
            self._breaker.probed(False)
            if suspected and self.available:
                self._breaker.failed()
                self._suspect = self.available
            log.debug("%s does not answer: %s", self._who, _text(error))
        else:
            self._breaker.probed(True)
            if not suspected:
                log.info("%s at %s answers again", self._who, self._server.target)

    @property
    def _who(self) -> str:
        return _who(self._server)

    def _call(self, data: bytes, seconds: float, begun: Callable[[Callable[[], None]], None]) -> bytes:
        call: Any = self._infer[next(self._turn) % CHANNEL_COUNT](data, timeout=max(seconds, 0.0))
        begun(call.cancel)
        found: list[bytes] = list(call)
        if len(found) != 1:
            raise self._count(RemoteFault(f"{self._who} gives {len(found)} answers to one call"))
        return found[0]

    def _failure(self, error: Any, seconds: float, fully: bool) -> BatonError:
        """The exception of a failed call; tells the breaker."""
        code, text = error.code(), _text(error)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            if fully:
                self._broke()
                return self._count(RemoteTimeout(f"{self._who} did not answer within {seconds * 1000:.0f} ms"))
            # The caller's own deadline says nothing about the server, so it is asked whether it lives.
            self._breaker.unused()
            self._suspect = True
            self._alarm()
            return self._count(RemoteTimeout(f"{self._who} did not answer within the deadline"))
        too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text
        if code in _AWAY and not too_large:
            self._broke()
            log.warning("%s at %s: %s %s", self._who, self._server.target, code.name, text)
            return self._count(RemoteUnavailable(f"{self._who} cannot be asked ({code.name})"), text)
        self._breaker.succeeded()
        log.warning("%s at %s refuses a call: %s %s", self._who, self._server.target, code.name, text)
        if too_large:
            return self._count(RemoteFault(f"{self._who} gives an answer of more than {ANSWER_BYTES:,} bytes"))
        return self._count(RemoteFault(f"{self._who} refuses the call ({code.name})"), text)

    def _broke(self) -> None:
        self._breaker.failed()
        self._alarm()

    def _count(self, error: BatonError, text: str = "") -> BatonError:
        with self._lock:
            self._failed[type(error).__name__] += 1
            if not str(error).endswith(NOT_ASKED):  # which says nothing of why
                self._reason = f"{error}: {text}" if text else str(error)
        return error


class _Questions:
    """What is asked of a server beside scores, over one channel. Raises, beside its own: grpc.RpcError."""

    def __init__(self, server: RemoteServer, channel: grpc.Channel) -> None:
        self._server, self._channel = server, channel

    def ready(self, seconds: float) -> None:
        """Raises: RemoteUnavailable: the server does not live, or has the model not ready."""
        if not self._ask("ServerLive", seconds).live:
            raise RemoteUnavailable(f"{_who(self._server)} says that it does not live")
        if not self._ask("ModelReady", seconds, name=self._server.model, version=self._server.version).ready:
            raise RemoteUnavailable(f"{_who(self._server)} says that the model is not ready")

    def metadata(self, seconds: float) -> Any:
        """ModelMetadataResponse."""
        return self._ask("ModelMetadata", seconds, name=self._server.model, version=self._server.version)

    def _ask(self, method: str, seconds: float, **fields: str) -> Any:
        request, answer = methods()[method]
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request(**fields), timeout=seconds)


def _refusal(server: RemoteServer, error: Any) -> BatonError:
    """The exception of a failed question."""
    code, who = error.code(), f"{_who(server)} at {server.target}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RemoteTimeout(f"{who} does not answer")
    return RemoteUnavailable(f"{who} cannot be asked: {code.name} {_text(error)}")


def _who(server: RemoteServer) -> str:
    return f"the server of remote model {server.model!r}"


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(target, _OPTIONS)
    return grpc.secure_channel(target, credentials, _OPTIONS)


def _close(channels: Sequence[grpc.Channel]) -> None:
    for channel in channels:
        channel.close()


def on_this_machine(target: str) -> bool:
    """Whether HOST:PORT is a loopback address, which every bundle may name."""
    host = target.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _text(error: Any) -> str:
    """What a server says of an error, as one bounded line."""
    text = str(error.details() if hasattr(error, "details") else error)
    return " ".join(text.split())[:LOGGED_LETTERS]
