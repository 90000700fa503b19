"""Temporal: one client per process, made when it is needed and again after failures, its errors mapped once.

The promise: what `ask` returns, Temporal has answered. What raises `TemporalUnavailable` has happened wholly or not at
all; the client repeats it a few times by itself, so whatever is asked must be safe to repeat. No wait is over
`ANSWER_SECONDS`. After `FAILURES_MAX` in a row the breaker opens: callers are told so at once, and one call at a time
is tried, at growing distances, until one is answered. `check`, of a probe, asks in any case.

Refuses: to wait for Temporal when it is made or started; it may be away then, and at any time after.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Final, TypeVar

import google.protobuf.message
import temporalio.exceptions
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import (
    Client,
    KeepAliveConfig,
    RetryConfig,
    RPCTimeoutOrCancelledError,
    WorkflowContinuedAsNewError,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode

from rise.clock import Clock
from rise.errors import (
    ExecutionExists,
    ExecutionFailed,
    ExecutionUnknown,
    RiseError,
    TemporalMisconfigured,
    TemporalSlow,
    TemporalUnavailable,
    Unavailable,
)
from rise.telemetry import log, temporal_breaker_open, temporal_call_seconds, temporal_calls_failed_total

T = TypeVar("T")

ANSWER_SECONDS: Final = 4.0
"""For one question, its tries included; less than a probe has."""
TRY_SECONDS: Final = 2.0
TRIES: Final = 3
FAILURES_MAX: Final = 3
"""In a row; then it is left alone."""
LEFT_ALONE_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""A reminder that is asked to be armed waits no longer for Temporal than this after it is back."""

_MISCONFIGURED: Final = {
    RPCStatusCode.PERMISSION_DENIED: "Temporal does not let Rise do what it needs: check its API key's rights",
    RPCStatusCode.UNAUTHENTICATED: "Temporal refuses the credentials: check RISE_TEMPORAL_API_KEY",
    RPCStatusCode.UNIMPLEMENTED: "what answers at RISE_TEMPORAL_ADDRESS is no Temporal, or one that is too old",
}
_LATE: Final = "Temporal does not answer in time"
_SLOW: Final = {
    RPCStatusCode.DEADLINE_EXCEEDED: _LATE,
    RPCStatusCode.CANCELLED: _LATE,
    RPCStatusCode.RESOURCE_EXHAUSTED: "Temporal is asked more than it takes",
}
_ANSWERS: Final = (
    WorkflowFailureError,
    WorkflowContinuedAsNewError,
    WorkflowQueryRejectedError,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    temporalio.exceptions.FailureError,
)
_VENDORS: Final = (
    temporalio.exceptions.TemporalError,
    google.protobuf.message.Error,
    OSError,
    TimeoutError,
)


def translated(error: Exception) -> RiseError:
    """What a vendor's error means here. Its own text stays in the log: it may quote what was sent."""
    ours = _meaning(error)
    ours.__cause__ = error
    return ours


def _meaning(error: Exception) -> RiseError:
    if isinstance(error, temporalio.exceptions.WorkflowAlreadyStartedError):
        return ExecutionExists("Temporal has a workflow under this id already")
    if isinstance(error, _ANSWERS):
        return ExecutionFailed(f"the workflow answers with an error ({type(error).__name__})")
    if isinstance(error, RPCError):
        return _of_missing_namespace(error) or _of_status(error.status)
    if isinstance(error, TimeoutError | RPCTimeoutOrCancelledError):
        return TemporalSlow(_LATE)
    if isinstance(error, OSError):
        return TemporalUnavailable("Temporal cannot be reached")
    return TemporalUnavailable(f"Temporal's client fails ({type(error).__name__})")


def _of_missing_namespace(error: RPCError) -> RiseError | None:
    """Its status is that of a workflow which is not there. What comes with it makes the difference."""
    if error.status is not RPCStatusCode.NOT_FOUND:
        return None
    failure = NamespaceNotFoundFailure()
    found = any(detail.Unpack(failure) for detail in error.grpc_status.details)
    return _no_namespace(failure.namespace) if found else None


def _no_namespace(name: str) -> TemporalMisconfigured:
    return TemporalMisconfigured(f"Temporal has no namespace {name}: make it, or correct RISE_TEMPORAL_NAMESPACE")


def _of_status(status: RPCStatusCode) -> RiseError:
    if status is RPCStatusCode.NOT_FOUND:
        return ExecutionUnknown("Temporal has no workflow running under this id")
    if status is RPCStatusCode.ALREADY_EXISTS:
        return ExecutionExists("Temporal has a workflow under this id already")
    if status in (RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.OUT_OF_RANGE):
        return ExecutionFailed(f"Temporal does not take this ({status.name.lower()})")
    if status in _MISCONFIGURED:
        return TemporalMisconfigured(_MISCONFIGURED[status])
    if status in _SLOW:
        return TemporalSlow(_SLOW[status])
    return TemporalUnavailable(f"Temporal does not answer ({status.name.lower()})")


@contextmanager
def temporal_errors() -> Iterator[None]:
    """The one place where Temporal's errors become ours. What is left through is our own bug."""
    try:
        yield
    except _VENDORS as error:
        raise translated(error) from error


@cache
def _runtime() -> Runtime:
    """One per process, because each has threads of its own. What it has to say comes out in our log."""
    forwarding = LogForwardingConfig(logging.getLogger("temporalio.core"))
    # Below an error it tells of each call that it tries again; that Temporal is away is said by us, once.
    said = LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"), forwarding=forwarding)
    return Runtime(telemetry=TelemetryConfig(logging=said), worker_heartbeat_interval=None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is, and as whom one enters."""

    address: str
    namespace: str = "default"
    api_key: str | None = field(default=None, repr=False)
    tls: bool | None = None
    """None: if there is an API key."""


class _Breaker:
    """Closed, open, or trying one call. It counts what is not answered, whatever was asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failed = 0
        self._closed_until = 0.0
        self._trouble: Unavailable | None = None

    @property
    def is_open(self) -> bool:
        return self._failed >= FAILURES_MAX

    def enter(self) -> None:
        """Raises why nothing is asked now. The one that is let in while it is open is a trial."""
        if not self.is_open or self._trouble is None:
            return
        if self._clock.monotonic() < self._closed_until:
            trouble = self._trouble
            raise type(trouble)(f"{trouble.public_message}; it is tried again soon") from trouble.__cause__
        self._leave_alone()  # until this trial has ended, nobody else is let in

    def answered(self) -> None:
        self._failed, self._trouble = 0, None
        temporal_breaker_open.set(0)

    def failed(self, trouble: Unavailable) -> None:
        self._failed += 1
        self._trouble = trouble
        if self.is_open:
            temporal_breaker_open.set(1)
            self._leave_alone()

    def _leave_alone(self) -> None:
        nth = min(max(self._failed - FAILURES_MAX, 0), len(LEFT_ALONE_SECONDS) - 1)
        self._closed_until = self._clock.monotonic() + LEFT_ALONE_SECONDS[nth] * self._clock.random.uniform(0.8, 1.0)


class Temporal:
    """One namespace of one Temporal, as one process reaches it."""

    def __init__(
        self,
        place: Place,
        *,
        clock: Clock,
        answer_seconds: float = ANSWER_SECONDS,
        on_trouble: Callable[[Unavailable | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble` is told why there is no answer, and None when there is again, before the callers are."""
        self._place = place
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._on_trouble = on_trouble
        self._trouble: Unavailable | None = None
        self._breaker = _Breaker(clock)
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._is_closed = False
        self.returns = 0
        """How often it has answered again after it did not. What was built on a client before is built anew then."""
        self._returned = asyncio.Event()

    async def ask(self, call: str, question: Callable[[Client], Awaitable[T]]) -> T:
        """What Temporal answers. `call`: how it is named among the metrics.

        Raises `TemporalUnavailable`; of answers that are refusals `ExecutionUnknown`, `ExecutionExists` or
        `ExecutionFailed`.
        """
        self._breaker.enter()
        return await self._asked(call, question)

    async def client(self) -> Client:
        """For a worker, which keeps it and asks by itself. Raises as `ask` does."""

        async def connected(client: Client) -> Client:
            await self._look(client)
            return client

        return await self.ask("client", connected)

    async def check(self) -> None:
        """It answers, and has our namespace; or raises. Asked whatever the breaker says, and its answer closes that."""
        await self._asked("check", self._look)

    async def until_back(self, returns: int) -> None:
        """Until it has returned more often than `returns`."""
        while self.returns <= returns:
            await self._returned.wait()

    def close(self) -> None:
        """Nothing more is asked. Whoever has the client has ended before."""
        self._is_closed = True
        self._client = None

    async def _look(self, client: Client) -> None:
        request = DescribeNamespaceRequest(namespace=self._place.namespace)
        try:
            await client.workflow_service.describe_namespace(request, timeout=timedelta(seconds=TRY_SECONDS))
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            raise _no_namespace(self._place.namespace) from error

    async def _asked(self, call: str, question: Callable[[Client], Awaitable[T]]) -> T:
        try:
            with temporal_errors(), temporal_call_seconds.labels(call).time():
                async with asyncio.timeout(self._answer_seconds):
                    answer = await question(await self._connected())
        except Unavailable as error:
            temporal_calls_failed_total.labels(call, error.code).inc()
            self._failed(error)
            raise
        except RiseError as error:
            # Refused, and thereby answered.
            temporal_calls_failed_total.labels(call, error.code).inc()
            self._answered()
            raise
        self._answered()
        return answer

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._is_closed:
                raise TemporalUnavailable("the connection to Temporal is closed")
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Client:
        try:
            return await self._new_client(self._place)
        except RuntimeError as error:  # it has no class of its own for that
            raise TemporalUnavailable("Temporal cannot be reached") from error

    async def _new_client(self, place: Place) -> Client:
        return await Client.connect(
            place.address,
            namespace=place.namespace,
            api_key=place.api_key,
            tls=place.tls,
            identity="rise",  # else the host's name
            runtime=_runtime(),
            connect_timeout=timedelta(seconds=TRY_SECONDS),
            # A host that is gone without a word is noticed by this alone.
            keep_alive_config=KeepAliveConfig(interval_millis=5000, timeout_millis=5000),
            retry_config=RetryConfig(
                initial_interval_millis=100,
                max_interval_millis=500,
                max_elapsed_time_millis=int(self._answer_seconds * 1000),
                max_retries=TRIES,
            ),
        )

    def _answered(self) -> None:
        self._breaker.answered()
        if self._trouble is None:
            return
        self._trouble = None
        self.returns += 1
        self._returned.set()
        self._returned = asyncio.Event()
        self._on_trouble(None)

    def _failed(self, trouble: Unavailable) -> None:
        if self._is_closed:
            return
        self._breaker.failed(trouble)
        if isinstance(trouble, TemporalSlow) and not self._breaker.is_open:
            return  # one answer that is late makes it no other Temporal: what was built on this one stays
        # The next one is made anew: its address may mean another host by now.
        self._client = None
        if str(trouble) != str(self._trouble):
            log.debug("temporal.trouble", error=trouble, cause=trouble.__cause__)
            self._on_trouble(trouble)
        self._trouble = trouble
